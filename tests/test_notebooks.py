"""The notebooks run from top to bottom, and what they show is small and from anywhere."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))

# What a cell of the notebook must show, in what is stored and when it is run again.
SHOWN = {
    "freezing": ["trainable params: 81 || all params: 58,961", "3 of 6,400 elements moved"],
    "gradual_unfreezing": ["41 comparisons, every bit", "epoch 7:  58,961 parameters train"],
}


def text_of(notebook):
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    return "\n".join(o.get("text") or o["data"].get("text/plain", "") for o in outputs)


def test_every_notebook_is_checked():
    assert [path.stem for path in NOTEBOOKS] == sorted(SHOWN)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs(path):
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(EXAMPLES)}})
    client.execute()
    for part in SHOWN[path.stem]:
        assert part in text_of(notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_what_is_stored_is_small_and_names_no_machine(path):
    assert path.stat().st_size < 100_000
    shown = text_of(nbformat.read(path, as_version=4))
    for part in SHOWN[path.stem]:
        assert part in shown
    assert not re.search(r"/(home|root|work|usr|tmp)/|site-packages", path.read_text())
