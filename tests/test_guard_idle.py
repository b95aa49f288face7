"""idle_after: which trainable parameters do not train, and how a guard and status say so."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lstm_freeze import BiLSTM, FrozenGuard, freeze, status, unfreeze


class Model(nn.Module):
    def __init__(self, used=True):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = BiLSTM(4, 3)
        self.head = nn.Linear(6, 2)
        self.used = used

    def forward(self):
        features = self.encoder(torch.ones(5, 3, 4))[0]
        return self.head(features if self.used else features.detach()).square().sum()


def step(model, optimizer, set_to_none=True):
    optimizer.zero_grad(set_to_none=set_to_none)
    model().backward()
    optimizer.step()


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def encoder_names(model):
    return [name for name, _ in model.named_parameters() if name.startswith("encoder")]


def test_what_trains_and_what_is_frozen_is_not_idle(recwarn):
    model = Model()
    freeze(model, "encoder")
    optimizer = adam(model)
    with FrozenGuard(model, idle_after=2).attach(optimizer) as guard:
        for _ in range(5):
            step(model, optimizer)
    assert not recwarn.list
    assert guard.idle_steps() == {}
    assert "idle" not in str(status(model))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_parameters_outside_the_graph_are_named_once(set_to_none):
    model = Model()
    optimizer = adam(model)
    with FrozenGuard(model, idle_after=3).attach(optimizer) as guard:
        step(model, optimizer)
        model.used = False
        step(model, optimizer, set_to_none)
        step(model, optimizer, set_to_none)
        with pytest.warns(UserWarning, match="3 optimizer steps in a row") as caught:
            step(model, optimizer, set_to_none)
        step(model, optimizer, set_to_none)
        (warning,) = caught
        text = str(warning.message)
        assert all(name in text for name in encoder_names(model))
        assert text.startswith("8 trainable parameters are idle")
        assert "got no gradient" in text
        assert "head" not in text
        assert warning.filename == __file__
        assert "trainable but idle in the last 4 optimizer steps" in str(status(model))
        assert set(guard.idle_steps()) == {id(p) for p in model.encoder.parameters()}
        model.used = True
        step(model, optimizer, set_to_none)
    assert "idle" not in str(status(model))


def test_features_cached_while_the_encoder_was_frozen():
    model = Model()
    freeze(model, "encoder")
    features = model.encoder(torch.ones(5, 3, 4))[0].detach()
    optimizer = adam(model)
    guard = FrozenGuard(model, idle_after=2).attach(optimizer)

    def step_on_cache():
        optimizer.zero_grad()
        model.head(features).square().sum().backward()
        optimizer.step()

    for _ in range(4):
        step_on_cache()
    unfreeze(model, "encoder", optimizer=optimizer)
    step_on_cache()
    with pytest.warns(UserWarning, match=r"encoder\.weight_ih_l0, .* got no gradient"):
        step_on_cache()
    assert "idle" in str(status(model, by="parameter"))
    freeze(model, "encoder")
    assert "idle" not in str(status(model))
    guard.detach()


def test_an_optimizer_rebuilt_without_what_is_unfrozen():
    model = Model()
    freeze(model, "encoder")
    optimizer = adam(model)
    guard = FrozenGuard(model, idle_after=2).attach(optimizer)
    step(model, optimizer)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    unfreeze(model, "encoder")
    step(model, optimizer)
    with pytest.warns(UserWarning, match="no optimizer that stepped holds them"):
        step(model, optimizer)
    guard.detach()


def test_gradients_that_autograd_brought_count_even_where_they_are_zero(recwarn):
    model = Model()
    optimizer = adam(model)
    with FrozenGuard(model, idle_after=2).attach(optimizer):
        for _ in range(5):
            optimizer.zero_grad()
            (model() * 0).backward()
            optimizer.step()
    assert not recwarn.list


def test_gradients_set_by_hand_and_accumulated_ones_count(recwarn):
    model = Model(used=False)
    optimizer = adam(model)
    with FrozenGuard(model, idle_after=2).attach(optimizer):
        for i in range(6):
            for p in model.encoder.parameters():
                p.grad = torch.ones_like(p)
            model().backward()
            if i % 2:
                optimizer.step()
                optimizer.zero_grad()
    assert not recwarn.list


def test_optimizers_by_turns_serve_their_own(recwarn):
    model = Model()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (model.encoder, model.head)]
    with FrozenGuard(model, idle_after=2).attach(optimizers):
        for _ in range(4):
            model().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    assert not recwarn.list


def test_steps_of_another_model_say_nothing(recwarn):
    model, other = Model(), nn.Linear(2, 2)
    strange = torch.optim.SGD(other.parameters(), lr=0.01)
    with FrozenGuard(model, idle_after=2).attach() as guard:
        for _ in range(4):
            strange.step()
    assert guard.step == 4
    assert not recwarn.list


def test_a_replaced_parameter_is_looked_at_in_place_of_the_old_one():
    model = Model()
    optimizer = adam(model)
    guard = FrozenGuard(model, idle_after=2).attach(optimizer)
    step(model, optimizer)
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    step(model, optimizer)
    with pytest.warns(UserWarning, match=r"head\.weight got gradients, but no .* holds it"):
        step(model, optimizer)
    guard.detach()


def test_no_hook_stays_on_a_parameter_and_copies_have_none():
    model = Model()
    with FrozenGuard(model, idle_after=2).attach(optimizer := adam(model)):
        assert model.head.weight._post_accumulate_grad_hooks
        pickle.dumps(model)
        assert not copy.deepcopy(model).head.weight._post_accumulate_grad_hooks
        step(model, optimizer)
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
