"""fingerprints: the same values everywhere, other ones for any other bit."""

import copy

import pytest
import torch
from _models import Tagger
from torch import nn

from lstm_freeze import BiLSTM, fingerprints
from lstm_freeze._recurrence.native import extension

# A promise to files that exist: a change here makes them unreadable.
PROMISED = {
    "of_float32": "ec51e313c3ad8f02",
    "of_float64": "c341d08105950d53",
    "of_float16": "02f8c13dc99f713c",
    "of_bfloat16": "f890b141f33d5ecd",
    "of_complex64": "8866a9e8129d4d70",
    "of_int64": "34f7003279897545",
    "of_int32": "2b7a28c2f5b90a6f",
    "of_int8": "676fd5eb22f1a4bb",
    "of_uint8": "b1ba1d55c139381a",
    "of_bool": "70cadeae35073755",
    "of_float8_e4m3fn": "7c510d325454f6a1",
    "matrix": "cc8f9a7bedf39ffb",
    "scalar": "866b1f5f4f228abb",
    "empty": "3aee30f450986f8b",
    "transposed": "0402d75061899ffb",
}


def everything():
    """A module with a tensor of every kind, from integers alone: the same on every machine."""
    n = torch.arange(4099)
    steps = (n.float() - 2000) / 64
    table = (n[:4096].float() / 64).view(64, 64)
    module = nn.Module()
    for name, tensor in {
        "of_float32": steps,
        "of_float64": steps.double(),
        "of_float16": steps.half(),
        "of_bfloat16": steps.bfloat16(),
        "of_complex64": torch.complex(steps, n.float()),
        "of_int64": n * 2**40 - 7,
        "of_int32": n.int(),
        "of_int8": (n % 251 - 125).to(torch.int8),
        "of_uint8": (n % 251).to(torch.uint8),
        "of_bool": n % 3 == 0,
        "of_float8_e4m3fn": (n % 100).float().to(torch.float8_e4m3fn),
        "matrix": table,
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "transposed": table.clone().t(),
    }.items():
        module.register_buffer(name, tensor)
    return module


def test_values_are_those_that_files_hold():
    assert fingerprints(everything()) == PROMISED


def test_values_do_not_depend_on_defaults():
    module = everything()
    torch.set_default_dtype(torch.float64)
    try:
        assert fingerprints(module) == PROMISED
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(7)
        assert fingerprints(module) == PROMISED


def test_every_bit_counts():
    module = everything()
    for name, tensor in module.named_buffers():
        if not tensor.numel():
            continue
        changed = copy.deepcopy(module)
        flat = getattr(changed, name).contiguous().view(-1)
        flat = flat.view(torch.uint8)
        flat[-1] ^= 1
        setattr(changed, name, flat.view(tensor.dtype).view(tensor.shape))
        found = fingerprints(changed)
        assert {n for n in found if found[n] != PROMISED[n]} == {name}


def test_names_are_those_of_the_state_dict_without_wrappers():
    model = Tagger()
    model.register_buffer("passing", torch.ones(1), persistent=False)
    model.head.weight_again = model.head.weight
    found = fingerprints(model)
    assert list(sorted(found)) == sorted(model.state_dict())
    assert found["head.weight"] == found["head.weight_again"]
    assert fingerprints(nn.DataParallel(model)) == found
    assert fingerprints(torch.compile(model, backend="eager")) == found
    assert all(len(value) == 16 and int(value, 16) >= 0 for value in found.values())


@pytest.mark.parametrize("native", [True, False])
def test_what_computes_does_not_matter(native):
    lstm = BiLSTM(4, 8)
    before = fingerprints(lstm)
    if native and extension.built is None:
        pytest.skip("no extension")
    with extension.switched(native):
        assert fingerprints(lstm) == before


def test_what_cannot_be_read_is_named():
    with pytest.raises(ValueError, match=r"'0\.weight', '0\.bias': no values yet"):
        fingerprints(nn.Sequential(nn.LazyLinear(2)))
    with pytest.raises(ValueError, match="'weight', 'bias': no values yet"):
        fingerprints(nn.Linear(2, 2, device="meta"))
    module = nn.Module()
    module.register_buffer("adjacency", torch.eye(2).to_sparse())
    with pytest.raises(ValueError, match="'adjacency': sparse; make it dense"):
        fingerprints(module)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got dict"):
        fingerprints({})
