"""Fingerprints, files of changes, interpolation and anchors across devices."""

import copy

import pytest
import torch
from torch import nn

from lstm_freeze import (
    BiLSTM,
    anchor,
    fingerprints,
    freeze,
    interpolate,
    load_changes,
    param_groups,
    save_changes,
)


@pytest.fixture
def here():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8)  # has buffers, one of them of integers
    return nn.ModuleDict({"encoder": BiLSTM(3, 4, 2), "norm": norm, "head": nn.Linear(8, 2)})


@pytest.fixture
def there(here, device):
    return copy.deepcopy(here).to(device)


def values(model):
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def changed(before, model):
    now = values(model)
    return {name for name in before if not torch.equal(before[name], now[name])}


def train(model, device, optimizer=None, steps=1):
    if optimizer is None:
        optimizer = torch.optim.SGD(model.parameters(), 0.1, foreach=False)
    x = torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(7)).to(device)
    for _ in range(steps):
        optimizer.zero_grad()
        model["head"](model["norm"](model["encoder"](x)[0][-1])).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fingerprints_are_the_cpus_and_are_read_at_once(here, there, reads, dtype):
    here.to(dtype), there.to(dtype)
    expected = fingerprints(here)
    assert fingerprints(there) == expected
    assert len(reads(lambda: fingerprints(there))) == 1
    with torch.no_grad():
        there["encoder"].weight_hh_l1[2, 1] += 1
    found = fingerprints(there)
    assert {n for n in found if found[n] != expected[n]} == {"encoder.weight_hh_l1"}


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("back", [False, True], ids=["written there", "written here"])
def test_a_file_of_one_device_loads_on_the_other(here, there, device, tmp_path, back, suffix):
    if suffix == "safetensors":
        pytest.importorskip("safetensors")
    path = tmp_path / f"changes.{suffix}"
    source, target = (here, there) if back else (there, here)
    base, before = fingerprints(source), values(source)
    freeze(source, "encoder[0]")
    train(source, "cpu" if back else device)
    moved = changed(before, source)
    assert {name for name in before if "_l0" in name}.isdisjoint(moved)
    assert "norm.num_batches_tracked" in moved
    save_changes(source, path, base)
    held = list(target.parameters())
    load_changes(target, path)
    assert changed(values(source), target) == set()
    assert fingerprints(target) == fingerprints(source)
    assert all(a is b for a, b in zip(target.parameters(), held, strict=True))
    if suffix == "pt":
        saved = torch.load(path, weights_only=True)["tensors"]
        assert set(saved) == moved
        assert {value.device.type for value in saved.values()} == {"cpu"}


def test_another_base_there_is_refused_and_stays(there, device, tmp_path):
    base = fingerprints(there)
    train(there, device)
    save_changes(there, tmp_path / "changes.pt", base)
    before = values(there)
    with pytest.raises(ValueError, match="the module holds another base"):
        load_changes(there, tmp_path / "changes.pt")
    assert changed(before, there) == set()


@pytest.mark.parametrize("start_there", [False, True])
@pytest.mark.parametrize("share", [0, 0.25, 1])
def test_interpolation_takes_a_start_from_either_device(here, there, device, share, start_there):
    start = copy.deepcopy((there if start_there else here).state_dict())
    freeze(there, "encoder[0]")
    train(there, device, steps=2)
    before = values(there)
    same = copy.deepcopy(here)
    same.load_state_dict(before)
    interpolate(same, {name: value.cpu() for name, value in start.items()}, share)
    interpolate(there, start, share)
    found, expected = values(there), values(same)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert all(t.device == device for t in there.state_dict().values())
    assert bool(changed(before, there)) == (share < 1)
    assert not {name for name in changed(before, there) if "_l0" in name}


@pytest.mark.parametrize("moves", [False, True], ids=["", "moved after"])
def test_an_anchor_draws_as_on_the_cpu(here, device, moves):
    found = []
    for place in ("cpu", device):
        model = copy.deepcopy(here)
        if not moves:
            model.to(place)
        freeze(model, "encoder[0]")
        optimizer = torch.optim.SGD(model.parameters(), 0.1, foreach=False)
        held = anchor(model, optimizer, "encoder", strength=2.0)
        if moves:
            model.to(place)
            optimizer = torch.optim.SGD(model.parameters(), 0.1, foreach=False)
            held.detach()
            state = held.state_dict()
            held = anchor(model, optimizer, "encoder", strength=2.0)
            held.load_state_dict(state)
        before = values(model)
        train(model, place, optimizer, steps=3)
        assert {n for n in changed(before, model) if "_l0" in n} == set()
        assert held.distance() > 0
        found.append([values(model), held.distance()])
    for name, value in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], value, rtol=1e-4, atol=1e-5)
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-4)


def test_a_step_with_an_anchor_reads_nothing_back(there, device, reads):
    optimizer = torch.optim.AdamW(param_groups(there, 0.1), foreach=False)
    with anchor(there, optimizer, "encoder", strength=0.5) as held:
        train(there, device, optimizer)
        assert reads(lambda: train(there, device, optimizer))[1:] == []
        assert held.distance() > 0
