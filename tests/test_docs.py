"""Every Python block of the guides runs and prints what the page shows, and the site builds."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(
    r'^ *```python(?: title="[^"]*")?\n(?P<code>.*?)^ *```$', re.MULTILINE | re.DOTALL
)


def blocks(page):
    """The Python blocks of a page, each padded so that errors show the page's line numbers."""
    text = page.read_text()
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code"))
        yield "\n" * line + textwrap.dedent(match["code"])


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:nothing in this module is trainable:UserWarning")
@pytest.mark.parametrize("page", [p for p in PAGES if list(blocks(p))], ids=lambda p: p.stem)
def test_the_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for code in blocks(page):
        exec(compile(code, str(page), "exec"), namespace)
    printed = " ".join(capsys.readouterr().out.split())
    for shown in re.findall(r"^```text\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        assert " ".join(shown.split()) in printed  # long lines are broken on the page


def test_the_runner_sees_a_broken_block(tmp_path):
    page = tmp_path / "page.md"
    page.write_text('Text\n\n=== "Tab"\n\n    ```python\n    1 / 0\n    ```\n')
    (code,) = blocks(page)
    with pytest.raises(ZeroDivisionError) as caught:
        exec(compile(code, str(page), "exec"), {})
    assert caught.traceback[-1].lineno + 1 == 6


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("nav:")[2]
    assert sorted(re.findall(r"[\w.]+\.md", navigation)) == [page.name for page in PAGES]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir"]
    done = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "figures" / "chain_thaw.png").exists()
