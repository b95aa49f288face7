"""Every code block of the README runs; those of a section share one namespace, in order."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def sections():
    """Title -> the code blocks of the section, each as (language, code)."""
    found = {}
    for text in re.split(r"^## ", README, flags=re.MULTILINE)[1:]:
        title = text.partition("\n")[0]
        found[title] = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return found


PYTHON = {
    title: [code for language, code in blocks if language == "python"]
    for title, blocks in sections().items()
    if any(language == "python" for language, _ in blocks)
}
SHELL = [
    line.partition("#")[0].strip()
    for blocks in sections().values()
    for language, code in blocks
    if language == "sh"
    for line in code.splitlines()
]


@pytest.fixture
def printed(request, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "readme"}
    for number, code in enumerate(PYTHON[request.param]):
        exec(compile(code, f"README.md, {request.param}, block {number}", "exec"), namespace)
    return capsys.readouterr().out


# What a reader who runs the section sees.
EXPECTED = {
    "In a notebook": ["encoder.weight_ih_l0_reverse", "trainable params"],
    "In Lightning": ["24 steps, 25 checks passed"],
    "In a plain loop": ["6 steps checked", "encoder[1]"],
}


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize(("printed", "expected"), EXPECTED.items(), indirect=["printed"])
def test_section_runs_and_prints(printed, expected):
    for part in expected:
        assert part in printed


def test_every_block_is_of_a_kind_that_is_checked():
    assert {language for blocks in sections().values() for language, _ in blocks} == {
        "python",
        "sh",
    }
    assert set(PYTHON) == set(EXPECTED)


@pytest.mark.parametrize("line", SHELL)
def test_shell_line_names_what_exists(line):
    words = line.split()
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif "pip" in words:
        (extra,) = re.findall(r"\.\[(\w+)\]", line)
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    else:
        assert "venv" in line
    for name in re.findall(r"[\w/]+\.(?:py|txt)\b", line):
        assert (ROOT / name).exists()


def test_paths_in_the_table_exist():
    paths = re.findall(r"^\| `([^`]+)` \|", README, re.MULTILINE)
    assert len(paths) >= 5
    assert all((ROOT / path).exists() for path in paths)


def test_pip_lines_are_those_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for line in SHELL:
        if " pip install " in line:
            assert line.partition(" pip install ")[2] in makefile.replace("--quiet ", "")


def test_it_can_be_read_in_one_go():
    assert README.count("\n") <= 200
