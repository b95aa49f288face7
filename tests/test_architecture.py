"""docs/architecture.md: its map is the tree of the core as it is, and who imports whom."""

import ast
from pathlib import Path

import pytest
from test_public_api import CORE, ROOMS, imports, sources_in, target_of

PAGE = Path(__file__).parent.parent / "docs" / "architecture.md"


def first_line(source):
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def rooms_used_by(room, sources):
    """The rooms that a room imports, in the order of the map."""
    found = {
        target_of(name, imported)[0]
        for name, source in sources.items()
        if name.split("/")[0] == room
        for imported in imports(source)
        if imported.startswith(".")
    }
    return [other for other in ROOMS if other in found - {room}]


def map_of(sources):
    """The map as Markdown: each room, what it imports, and its files with their first lines."""
    lines = []
    for room in ROOMS[:-1]:
        own = {name: text for name, text in sources.items() if name.split("/")[0] == room}
        used = ", ".join(f"`{other}`" for other in rooms_used_by(room, sources)) or "nothing here"
        if list(own) == [room]:
            lines += [f"**`{room}.py`**: {first_line(own[room])} Imports {used}.", ""]
            continue
        lines += [f"**`{room}/`**: {first_line(own[f'{room}/__init__'])} Imports {used}.", ""]
        lines += ["| File | What it holds |", "| --- | --- |"]
        for name, text in own.items():
            if name != f"{room}/__init__":
                lines.append(f"| `{name.partition('/')[2]}.py` | {first_line(text)} |")
        lines.append("")
    return "\n".join(lines)


def test_the_map_is_the_tree():
    _, _, rest = PAGE.read_text().partition("<!-- map -->\n")
    shown = rest.partition("<!-- /map -->")[0].strip()
    expected = map_of(sources_in(CORE)).strip()
    assert shown == expected, f"put this between the map's markers:\n{expected}"


def test_every_room_has_about_a_dozen_files_at_most():
    sources = sources_in(CORE)
    for room in ROOMS:
        files = {name.split("/")[1] for name in sources if name.startswith(f"{room}/")}
        assert len(files - {"__init__"}) <= 15, room


def test_every_file_says_what_it_holds():
    for name, source in sources_in(CORE).items():
        assert first_line(source).endswith((".", ":")) or "\n" in source, name
        assert first_line(source), f"{name} has no docstring"


@pytest.mark.parametrize("word", ["`_names.py`", "`_model/targets.py`", "`_guard/causes.py`"])
def test_the_page_names_files_that_exist(word):
    assert word in PAGE.read_text()
    assert (CORE / word.strip("`")).exists()


def test_no_two_classes_have_one_name():
    """One word, one meaning: over both packages."""
    found = {}
    for package in (CORE, CORE.parent / "callbacks"):
        for name, source in sources_in(package).items():
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.ClassDef):
                    found.setdefault(node.name, []).append(f"{package.name}/{name}")
    assert len(found) > 80
    assert {name: files for name, files in found.items() if len(files) > 1} == {}
