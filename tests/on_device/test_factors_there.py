"""LoRA on another device: the base's bits, the CPU's gradients, nothing read back."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from lstm_freeze import BiLSTM, FrozenGuard, add_lora, param_groups

LENGTHS = (3, 5, 1)


def inputs(form, device):
    gen = torch.Generator().manual_seed(1)
    samples = [torch.randn(n, 4, generator=gen).to(device) for n in LENGTHS]
    if form == "packed":
        return pack_sequence(samples, enforce_sorted=False)
    return torch.randn(5, 3, 4, generator=gen).to(device)


@pytest.fixture
def here():
    torch.manual_seed(0)
    return nn.ModuleDict({"encoder": BiLSTM(4, 6, 2, proj_size=3), "head": nn.Linear(6, 2)})


@pytest.fixture
def there(here, device):
    return copy.deepcopy(here).to(device)


def adapt(model):
    torch.manual_seed(3)  # factors are drawn where the weight is
    return add_lora(model, rank=2)


def output(model, x):
    found = model["encoder"](x)[0]
    return model["head"](found if isinstance(found, torch.Tensor) else found.data)


def gradients(model, x):
    model.zero_grad()
    output(model, x).square().sum().backward()
    return {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("form", ["dense", "packed"])
def test_the_first_output_is_that_of_the_base_and_gradients_are_the_cpus(here, there, device, form):
    x = inputs(form, device)
    base = output(there, x).detach().cpu()
    lora, same = adapt(there), adapt(here)
    assert torch.equal(output(there, x).detach().cpu(), base)
    for handle in (lora, same):
        gen = torch.Generator().manual_seed(4)
        values = handle.state_dict().items()
        handle.load_state_dict({n: 0.2 * torch.randn(v.shape, generator=gen) for n, v in values})
    assert not torch.equal(output(there, x).detach().cpu(), base)
    found, expected = gradients(there, x), gradients(here, inputs(form, "cpu"))
    trains = {n for n, _ in there.named_parameters() if "bias" in n} | {*lora.parameters}
    assert found.keys() == expected.keys() == trains
    for name, gradient in found.items():
        scale = max(expected[name].abs().max().item(), 1)
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-5 * scale)
        assert gradient.any()


def test_factors_are_made_where_the_weight_is_and_end_there(there, device):
    before = {name: value.cpu() for name, value in there.state_dict().items()}
    x = inputs("dense", device)
    lora = adapt(there)
    assert all(p.device == device for p in there.parameters())
    with torch.no_grad():
        for value in lora.state_dict().values():
            value.fill_(0.25)
    adapted = output(there, x).detach().cpu()
    lora.remove()
    after = {name: value.cpu() for name, value in there.state_dict().items()}
    assert all(torch.equal(before[name], after[name]) for name in before | after)
    lora = adapt(there)
    with torch.no_grad():
        for value in lora.state_dict().values():
            value.fill_(0.25)
    lora.merge()
    merged = output(there, x).detach().cpu()
    assert there.state_dict().keys() == before.keys()
    assert not torch.equal(there["head"].weight.cpu(), before["head.weight"])
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["dense", "packed"])
def test_a_step_reads_nothing_back_and_a_check_of_the_base_one_value(there, device, reads, form):
    optimizer = torch.optim.AdamW(param_groups(there, 0.1), foreach=False)
    lora = add_lora(there, "encoder", rank=2, optimizer=optimizer)
    x = inputs(form, device)

    def step():
        optimizer.zero_grad()
        output(there, x).square().sum().backward()
        optimizer.step()

    step()
    before = {name: p.detach().cpu().clone() for name, p in there.named_parameters()}
    assert reads(step) == []
    moved = {n for n, p in there.named_parameters() if not torch.equal(p.detach().cpu(), before[n])}
    assert moved == {n for n in before if "weight" not in n or n in lora.parameters or "head" in n}
    with FrozenGuard(there).attach(optimizer):
        step()
        assert len(reads(step)) == 1
