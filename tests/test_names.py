"""Parameter names of RNNs are spelled and parsed as nn.RNNBase does."""

import itertools
import subprocess
import sys

import pytest
from _models import build_rnn, case_id, rnn_cases

from lstm_freeze._names import (
    DIRECTIONS,
    KINDS,
    Place,
    base_name,
    kinds_of,
    name_of,
    place_of,
    rnn_names,
)


@pytest.mark.parametrize("case", rnn_cases(), ids=case_id)
def test_names_are_those_of_the_rnn_in_registration_order(case):
    rnn = build_rnn(**case)
    expected = [name for name, _ in rnn.named_parameters()]
    names = rnn_names(
        case["num_layers"], case["bidirectional"], case["bias"], bool(case.get("proj_size"))
    )
    assert list(names) == expected
    assert [name_of(*place_of(name)) for name in names] == expected


@pytest.mark.parametrize(
    "form", ["{}", "parametrizations.{}.original", "parametrizations.{}.original1", "{}_g", "{}_v"]
)
def test_a_place_survives_spelling_and_parsing(form):
    for place in map(Place._make, itertools.product((0, 1, 9, 10, 11, 110), DIRECTIONS, KINDS)):
        assert place_of(form.format(name_of(*place))) == place


@pytest.mark.parametrize(
    "name",
    [
        "",
        "weight",
        "weight_ih",
        "weight_ih_l",
        "weight_ih_l01",
        "weight_ih_l-1",
        "weight_ih_l1_backward",
        "weight_ih_l1_reverse_reverse",
        "xweight_ih_l1",
        "inner.weight_ih_l0",
        "inner.parametrizations.weight_ih_l0.original",
        "weight_ih_l0_gv",
        "weight_ih_l0_mask",
        "weight_xx_l0",
        "weight_ih_l0\n",
    ],
)
def test_other_names_have_no_place(name):
    assert place_of(name) is None


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("weight", "weight"),
        ("a.b.weight", "a.b.weight"),
        ("parametrizations.weight.original", "weight"),
        ("a.parametrizations.weight.original1", "a.weight"),
        ("a.parametrizations.weight.0.scale", "a.weight"),
        ("a.weight_g", "a.weight"),
        ("weight_orig", "weight"),
    ],
)
def test_the_base_of_a_name(name, base):
    assert base_name(name) == base


def test_kinds_in_registration_order():
    assert kinds_of(bias=True, proj=True) == (
        "weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr",
    )  # fmt: skip
    assert kinds_of(bias=False, proj=False) == ("weight_ih", "weight_hh")


def test_the_layout_needs_no_torch():
    code = (
        "import importlib.util, sys\n"
        "from pathlib import Path\n"
        "path = Path(sys.argv[1])\n"
        "spec = importlib.util.spec_from_file_location('layout', path)\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "assert 'torch' not in sys.modules\n"
    )
    path = sys.modules["lstm_freeze._names"].__file__
    subprocess.run([sys.executable, "-c", code, path], check=True, timeout=60)
