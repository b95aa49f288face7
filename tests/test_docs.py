"""Every Python block of the guides runs and prints what the page shows, and the site builds."""

import copy
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import matplotlib
import pytest
import torch
from torch import nn

import lstm_freeze
from lstm_freeze import callbacks

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


def one_liners(text):
    """The second column of the table of one-liners: one call each."""
    table = text.partition("| you want | one line |")[2].partition("\n\n")[0]
    return re.findall(r"^\|[^|]+\| `([^|]+)` \|", table, re.MULTILINE)


@pytest.mark.parametrize("line", one_liners((ROOT / "docs" / "index.md").read_text()))
def test_the_one_liners_run(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = nn.ModuleDict({"encoder": lstm_freeze.BiLSTM(3, 4), "head": nn.Linear(8, 2)})
    given = {name: getattr(lstm_freeze, name) for name in lstm_freeze.__all__} | {
        "model": model,
        "encoder": model["encoder"],
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "x": torch.randn(5, 2, 3),
        "lengths": [5, 3],
        "groups": ["encoder", "head"],
        "start": copy.deepcopy(model.state_dict()),
        "base": lstm_freeze.fingerprints(model),
        "labels": [0, 1] * 5,
        "methods": {"one": {"value": 1.0}, "other": {"value": 2.0}},
        "score": lambda train, test, seed, value: value + seed,
    }
    exec(compile(line, "index.md", "exec"), given)


def test_the_one_liners_are_found():
    text = (ROOT / "docs" / "index.md").read_text()
    assert len(one_liners(text)) == text.partition("## The guides")[0].count("\n| ") - 1 > 9


def test_every_hazard_has_a_row_and_every_number_a_test():
    tests = (ROOT / "tests" / "test_hazards.py").read_text()
    names = re.findall(r"^(?:class T|def t)est_?(\d\d(?:_and_\d\d)*)", tests, re.MULTILINE)
    tested = {number for name in names for number in name.split("_and_")}
    page = (ROOT / "docs" / "pitfalls.md").read_text()
    assert set(re.findall(r"^\| (\d\d) \|", page, re.MULTILINE)) == tested
    assert len(tested) > 40


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("nav:")[2]
    assert sorted(re.findall(r"[\w.]+\.md", navigation)) == [page.name for page in PAGES]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir"]
    done = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "figures" / "chain_thaw.png").exists()
    reference = (tmp_path / "api" / "index.html").read_text()
    shown = re.findall(r'<h3 id="[\w.]*?(\w+)"', reference)
    recipes = ["gradual_unfreezing", "chain_thaw", "linear_probing", "progressive_freezing"]
    assert sorted(shown) == sorted([*lstm_freeze.__all__, *callbacks.__all__, *recipes])
    assert "doc-module" not in reference  # a function whose file has its name, taken for the file
