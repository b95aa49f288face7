"""FrozenGuard: what it sees, what it follows, and what it says."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lstm_freeze import FrozenGuard, FrozenWeightsChanged, freeze, param_groups, unfreeze
from lstm_freeze._freezing import listeners

MODES = pytest.mark.parametrize("mode", ["exact", "fingerprint"])


def lstm(**options):
    torch.manual_seed(0)
    return nn.LSTM(3, 4, **options)


def train(model, optimizer, steps=1, size=3):
    for _ in range(steps):
        optimizer.zero_grad()
        output = model(torch.randn(5, 2, size))
        (output[0] if isinstance(output, tuple) else output).square().sum().backward()
        optimizer.step()


def assert_caught(guard, *names, match=None):
    with pytest.raises(FrozenWeightsChanged, match=match) as caught:
        guard.check()
    assert caught.value.names == names
    for name in names:
        assert name in str(caught.value)
    return str(caught.value)


# What is seen


def with_numpy(p):
    p.detach().numpy()[0, 1] = 5


def with_storage(p):
    p.untyped_storage()[0] = p.untyped_storage()[0] ^ 1


def with_no_grad(p):
    with torch.no_grad():
        p[2, 3] += 1


def with_swap(p):
    p.data[[0, 1]] = p.data[[1, 0]]


def with_cancelling(p):
    p.data[0, 0] += 0.5
    p.data[0, 1] -= 0.5


def with_negative_zero(p):
    p.data[0, 0] = -0.0


def with_nan_payload(p):
    p.data.view(torch.int32)[0, 1] += 1


WRITES = {
    "data": lambda p: p.data.add_(1),
    "numpy": with_numpy,
    "storage": with_storage,
    "no_grad": with_no_grad,
    "swap": with_swap,
    "cancelling": with_cancelling,
    "negative zero": with_negative_zero,
    "nan payload": with_nan_payload,
}


@MODES
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_every_write_is_seen(mode, write):
    model = lstm()
    weight = model.weight_hh_l0
    weight.data[0, :2] = torch.tensor([0.0, float("nan")])
    weight.data[1, 0] = 0.25
    freeze(model, kinds="weight_hh")
    guard = FrozenGuard(model, mode)
    guard.check()
    guard.check()
    write(weight)
    assert_caught(guard, "weight_hh_l0", match="in-place write")
    guard.remember()
    guard.check()


@MODES
def test_training_what_is_trainable_is_let_be(mode):
    model = lstm(num_layers=2)
    freeze(model, layers=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    with FrozenGuard(model, mode).attach(optimizer) as guard:
        train(model, optimizer, steps=3)
    assert (guard.step, guard.checks) == (3, 3)
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert moved == [False] * 4 + [True] * 4


@MODES
@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.complex128, torch.int8],
    ids=str,
)
@pytest.mark.parametrize("shape", [(), (7,), (3, 5)])
def test_all_dtypes_and_shapes(mode, dtype, shape):
    model = nn.ParameterList([nn.Parameter(torch.ones(shape, dtype=dtype), requires_grad=False)])
    guard = FrozenGuard(model, mode)
    guard.check()
    model[0].data.view(-1)[-1:] *= 2
    assert_caught(guard, "0")


@MODES
def test_empty_and_non_contiguous_parameters(mode):
    model = nn.ParameterList([torch.zeros(0, 3), torch.arange(12.0).view(3, 4).t()])
    freeze(model)
    assert not model[1].is_contiguous()
    guard = FrozenGuard(model, mode)
    guard.check()
    model[1].data[2, 1] += 1
    assert_caught(guard, "1")


@MODES
def test_parameters_without_values_are_remembered_once_they_have_some(mode):
    model = nn.Sequential(nn.LazyLinear(2, bias=False), nn.Linear(2, 2, device="meta"))
    model[0].weight = nn.UninitializedParameter(requires_grad=False)
    model[1].requires_grad_(False)
    guard = FrozenGuard(model, mode)
    guard.check()
    model[0](torch.ones(1, 3))
    model[1].to_empty(device="cpu")
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    guard.check()
    guard.check()
    model[0].weight.data += 1
    assert_caught(guard, "0.weight")
    guard.remember()
    model[1].weight.data += 1
    assert_caught(guard, "1.weight")


class LocalShard(torch.Tensor):
    """As a DTensor: only a part of it is stored here."""

    def to_local(self):
        return self.as_subclass(torch.Tensor)[:2]


def test_of_a_sharded_parameter_the_local_shard_counts():
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(4).as_subclass(LocalShard), requires_grad=False)
    assert isinstance(model.weight, LocalShard)
    guard = FrozenGuard(model)
    model.weight.data[3] = 1
    guard.check()
    model.weight.data[1] = 1
    assert_caught(guard, "weight", match="1 of 2 elements moved")


def test_a_sound_move_to_another_form_is_named_and_back_is_clean():
    model = lstm()
    freeze(model, kinds="bias")
    guard = FrozenGuard(model)
    model.double()
    text = assert_caught(guard, "bias_ih_l0", "bias_hh_l0", match="converted")
    assert r"bias_ih_l0: float32 (16,) became float64 (16,)" in text
    model.float()
    guard.check()
    model.to("meta")
    assert_caught(guard, "bias_ih_l0", "bias_hh_l0")


# Normalisation layers


@MODES
def test_statistics_of_a_layer_frozen_by_freeze_do_not_move(mode):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    freeze(model, "1")
    guard = FrozenGuard(model, mode)
    model.train()(torch.randn(8, 3))
    guard.check()
    model[1].running_var[1] += 1
    assert_caught(guard, "1.running_var", match="in-place write")


def test_statistics_of_a_layer_frozen_by_hand_are_caught():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[1].requires_grad_(False)
    guard = FrozenGuard(model)
    model(torch.randn(8, 3))
    assert_caught(
        guard,
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
        match="the running statistics of a normalisation layer that was frozen by requires_grad",
    )


def test_statistics_are_followed_with_their_layer():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    guard = FrozenGuard(model)
    model(torch.randn(8, 3))
    guard.check()
    handle = freeze(model, "1")
    model[1].running_mean[0] += 1
    assert_caught(guard, "1.running_mean")
    handle.undo()
    guard.check()
    freeze(model, "1.weight")
    model[1].running_mean[0] += 1
    guard.check()


def test_statistics_of_a_layer_without_parameters_belong_to_what_is_around():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False))
    freeze(model)
    guard = FrozenGuard(model)
    model[1].running_mean[0] += 1
    assert_caught(guard, "1.running_mean")


def test_vectors_of_spectral_norm_belong_to_the_weight():
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 4)), nn.Linear(4, 1))
    freeze(model, "0")
    guard = FrozenGuard(model)
    model.train()(torch.randn(2, 3))
    guard.check()
    model[0].parametrizations.weight[0]._u[0] += 1
    assert_caught(guard, "0.parametrizations.weight.0._u")


# What is followed


@MODES
def test_freeze_unfreeze_undo_and_context_exits_are_followed(mode):
    model = lstm(num_layers=2)
    guard = FrozenGuard(model, mode)
    model.weight_hh_l0.data += 1
    guard.check()
    handle = freeze(model, layers=0)
    model.weight_hh_l0.data += 1
    assert_caught(guard, "weight_hh_l0")
    handle.undo()
    guard.check()
    with freeze(model, layers=1):
        model.weight_hh_l1.data += 1
        assert_caught(guard, "weight_hh_l1")
    guard.check()
    freeze(model)
    unfreeze(model, kinds="bias")
    model.bias_hh_l0.data += 1
    guard.check()
    model.weight_hh_l0.data += 1
    assert_caught(guard, "weight_hh_l0")


def test_freezing_on_another_module_that_shares_the_parameters_is_followed():
    encoder = lstm()
    outer, other = nn.Sequential(encoder), nn.ModuleList([nn.Linear(1, 1), encoder])
    guard = FrozenGuard(outer)
    freeze(other, "1")
    encoder.bias_hh_l0.data += 1
    assert_caught(guard, "0.bias_hh_l0")
    unfreeze(other)
    guard.check()
    freeze(nn.Linear(1, 1))
    guard.check()


def test_freezing_again_does_not_forgive_a_change():
    model = lstm()
    freeze(model)
    guard = FrozenGuard(model)
    model.bias_hh_l0.data += 1
    freeze(model)
    assert_caught(guard, "bias_hh_l0")


def test_what_was_trained_while_unfrozen_is_remembered_anew():
    model = lstm()
    freeze(model, kinds="weight")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = FrozenGuard(model).attach(optimizer)
    before = model.weight_hh_l0.detach().clone()
    unfreeze(model)
    train(model, optimizer)
    assert not torch.equal(before, model.weight_hh_l0)
    freeze(model, kinds="weight")
    train(model, optimizer)
    assert (guard.step, guard.checks) == (2, 2)


def test_requires_grad_set_elsewhere_is_not_followed():
    model = lstm()
    freeze(model, kinds="weight")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = FrozenGuard(model).attach(optimizer)
    model.weight_hh_l0.requires_grad_(True)
    model.bias_hh_l0.requires_grad_(False)
    guard.check()
    model.bias_hh_l0.data += 1
    guard.check()
    with pytest.raises(FrozenWeightsChanged, match="requires_grad switched on elsewhere") as caught:
        train(model, optimizer)
    assert caught.value.names == ("weight_hh_l0",)
    unfreeze(model, kinds="weight_hh")
    guard.check()


def test_remember_takes_in_what_was_frozen_by_hand():
    model = lstm()
    guard = FrozenGuard(model)
    model.bias_hh_l0.requires_grad_(False)
    guard.remember()
    model.bias_hh_l0.data += 1
    assert_caught(guard, "bias_hh_l0")


# Structure


@MODES
def test_a_replaced_parameter_is_found_by_its_name(mode):
    model = nn.Sequential(lstm())
    freeze(model)
    guard = FrozenGuard(model, mode)
    model[0].weight_hh_l0 = nn.Parameter(model[0].weight_hh_l0.detach().clone())
    assert_caught(guard, "0.weight_hh_l0", match="replaced Parameter")


def test_a_replaced_parameter_with_other_values_tells_how_far():
    model = nn.Sequential(lstm())
    freeze(model)
    guard = FrozenGuard(model)
    same = model[0].weight_hh_l0.detach().clone()
    model[0].weight_hh_l0 = nn.Parameter(same)
    assert_caught(guard, "0.weight_hh_l0", match="another object with the same bits")
    same[0, 0] += 0.5
    assert_caught(guard, "0.weight_hh_l0", match="1 of 64 elements moved, largest change 0.5")
    del model[0].weight_hh_l0
    assert_caught(guard, "0.weight_hh_l0", match="0.weight_hh_l0: gone")


def test_a_replaced_module_is_found_by_the_names_of_its_parameters():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    freeze(model, "0")
    guard = FrozenGuard(model)
    model[0] = nn.Linear(1, 1)
    assert_caught(guard, "0.weight", "0.bias", match="replaced Parameter")
    guard.remember()
    guard.check()


def test_assigning_a_state_dict_replaces():
    model = lstm()
    freeze(model, kinds="bias_hh")
    guard = FrozenGuard(model)
    model.load_state_dict(lstm().state_dict(), assign=True)
    assert_caught(guard, "bias_hh_l0", match=r"load_state_dict\(assign=True\)")


def test_unfreezing_the_successor_lets_the_replaced_one_go_once_it_is_reported():
    model = lstm()
    freeze(model, kinds="bias_hh")
    guard = FrozenGuard(model)
    model.bias_hh_l0 = nn.Parameter(torch.ones(16))
    unfreeze(model)
    assert_caught(guard, "bias_hh_l0", match="as it was about to be unfrozen")
    guard.check()


def test_one_of_two_tied_names_replaced():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    freeze(model, "a.weight")
    guard = FrozenGuard(model)
    model["b"].weight = nn.Parameter(torch.zeros(2, 2))
    assert_caught(guard, "b.weight", match="replaced Parameter")


def test_moving_the_same_parameter_elsewhere_is_no_change():
    model = nn.Sequential(lstm())
    freeze(model)
    guard = FrozenGuard(model)
    inner = model[0]
    model[0] = nn.DataParallel(inner)
    guard.check()
    model[0] = nn.Sequential(inner)
    guard.check()
    inner.bias_hh_l0.data += 1
    assert_caught(guard, "0.bias_hh_l0")


def test_wrappers_are_looked_through_and_not_named():
    model = lstm()
    freeze(model, kinds="bias")
    guard = FrozenGuard(nn.DataParallel(model))
    model.bias_hh_l0.data += 1
    assert_caught(guard, "bias_hh_l0")


# Attaching


def test_steps_count_from_attach_and_checks_come_every_n():
    model = lstm()
    freeze(model, kinds="bias")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer)
    guard = FrozenGuard(model)
    assert guard.attach(optimizer, every_n_steps=3) is guard
    train(model, optimizer, steps=2)
    model.bias_hh_l0.data += 1
    with pytest.raises(FrozenWeightsChanged, match=r"seen after step 3 \(unchanged up to step 0\)"):
        train(model, optimizer, steps=5)
    assert guard.step == 3
    guard.remember()
    model.bias_hh_l0.data += 1
    with pytest.raises(
        FrozenWeightsChanged, match=r"after step 6 \(unchanged up to step 3"
    ) as caught:
        train(model, optimizer, steps=5)
    assert caught.value.step == 6
    guard.attach(optimizer, every_n_steps=1)
    with pytest.raises(FrozenWeightsChanged, match="seen after step 1 "):
        train(model, optimizer)
    assert guard.step == 1


def test_the_count_can_go_on_from_elsewhere():
    model = lstm()
    freeze(model, kinds="bias")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = FrozenGuard(model).attach(optimizer, every_n_steps=10)
    guard.step = 107
    train(model, optimizer)
    model.bias_hh_l0.data += 1
    with pytest.raises(
        FrozenWeightsChanged, match=r"seen after step 110 \(unchanged up to step 107\)"
    ):
        train(model, optimizer, steps=5)


def test_a_given_step_is_named_and_without_optimizer_none():
    model = lstm()
    freeze(model)
    guard = FrozenGuard(model)
    model.bias_hh_l0.data += 1
    with pytest.raises(FrozenWeightsChanged, match=r"^1 frozen tensor changed\n") as caught:
        guard.check()
    assert caught.value.step is None
    model.bias_ih_l0.data += 1
    with pytest.raises(
        FrozenWeightsChanged, match=r"^2 frozen tensors changed, seen after step 7\n"
    ):
        guard.check(step=7)


def test_steps_of_several_optimizers_count_together():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    freeze(model, "1")
    optimizers = [torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 2)]
    with FrozenGuard(model).attach(optimizers) as guard:
        for optimizer in optimizers:
            train(model, optimizer)
    assert (guard.step, guard.checks) == (2, 2)


class Wrapper:
    """As Lightning's and Fabric's wrappers: the real one is in `.optimizer`."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


def test_an_optimizer_in_a_wrapper_is_found():
    model = lstm()
    freeze(model, kinds="bias")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = FrozenGuard(model).attach(Wrapper(optimizer))
    train(model, optimizer)
    assert guard.step == 1


def test_detach_is_idempotent_and_leaves_other_hooks():
    model = lstm()
    freeze(model, kinds="bias")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    guard = FrozenGuard(model).attach(optimizer).attach(optimizer)
    train(model, optimizer)
    guard.detach()
    guard.detach()
    train(model, optimizer)
    assert (guard.step, len(calls)) == (1, 2)
    model.bias_hh_l0.data += 1
    assert_caught(guard, "bias_hh_l0")


def test_the_exit_compares_steps_not_yet_compared_and_detaches():
    model = lstm()
    freeze(model, kinds="bias")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with FrozenGuard(model).attach(optimizer, every_n_steps=2) as guard:
        train(model, optimizer, steps=3)
    assert (guard.step, guard.checks) == (3, 2)

    def write_after_a_step(error=None):
        with guard.attach(optimizer, every_n_steps=2):
            train(model, optimizer)
            model.bias_hh_l0.data += 1
            if error:
                raise error

    with pytest.raises(FrozenWeightsChanged, match="bias_hh_l0"):
        write_after_a_step()
    guard.remember()
    with pytest.raises(KeyError):
        write_after_a_step(KeyError())
    train(model, optimizer)
    assert guard.step == 1


def test_an_attached_guard_lives_by_its_module_and_goes_with_it():
    model = lstm()
    freeze(model, kinds="bias")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = weakref.ref(FrozenGuard(model).attach(optimizer))
    gc.collect()
    assert guard() in listeners
    unfreeze(model)
    freeze(model, kinds="weight")
    model.weight_hh_l0.data += 1
    with pytest.raises(FrozenWeightsChanged, match="weight_hh_l0"):
        train(model, optimizer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gc.collect()
    with pytest.raises(FrozenWeightsChanged, match="weight_hh_l0"):
        train(model, optimizer)
    del model, optimizer
    gc.collect()
    assert guard() is None


def test_copies_and_pickles_of_model_and_optimizer_leave_the_guard_behind():
    model = nn.Linear(3, 3)
    freeze(model, "bias")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    guard = FrozenGuard(model).attach(optimizer)
    train(model, optimizer)
    buffer = io.BytesIO()
    torch.save((model, optimizer), buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy((model, optimizer)),
        pickle.loads(pickle.dumps((model, optimizer))),
        torch.load(buffer, weights_only=False),
    ]
    for other, its_optimizer in copies:
        assert torch.equal(other.weight, model.weight)
        other.bias.data += 1
        train(other, its_optimizer)
    assert guard.step == 1
    train(model, optimizer)
    assert (guard.step, guard.checks) == (2, 2)


def test_the_error_survives_pickling():
    error = FrozenWeightsChanged("text", ("a", "b"), 3)
    other = pickle.loads(pickle.dumps(error))
    assert (str(other), other.names, other.step) == ("text", ("a", "b"), 3)
    assert isinstance(error, RuntimeError)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m, o: FrozenGuard([m]), TypeError, "`module` must be a torch.nn.Module, got list"),
        (
            lambda m, o: FrozenGuard(m, "crc"),
            ValueError,
            '`mode` must be "exact" or "fingerprint", got \'crc\'',
        ),
        (
            lambda m, o: FrozenGuard(m).attach(o, 0),
            ValueError,
            "`every_n_steps` must be at least 1, got 0",
        ),
        (
            lambda m, o: FrozenGuard(m).attach(o, 1.5),
            TypeError,
            "`every_n_steps` must be an integer, got 1.5",
        ),
        (
            lambda m, o: FrozenGuard(m).attach(o, True),
            TypeError,
            "`every_n_steps` must be an integer, got True",
        ),
        (
            lambda m, o: FrozenGuard(m).attach([]),
            ValueError,
            r"`optimizer` must be at least one optimizer, got \[\]",
        ),
        (
            lambda m, o: FrozenGuard(m, idle_after=0),
            ValueError,
            "`idle_after` must be at least 1, got 0",
        ),
        (
            lambda m, o: FrozenGuard(m, idle_after=True),
            TypeError,
            "`idle_after` must be an integer, got True",
        ),
        (lambda m, o: FrozenGuard(m).attach(m), TypeError, "`optimizer` must be a torch.optim"),
    ],
)
def test_wrong_arguments(call, error, match):
    model = nn.Linear(1, 1)
    with pytest.raises(error, match=match):
        call(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_the_repr_tells_what_is_watched():
    model = lstm()
    freeze(model, kinds="bias")
    guard = FrozenGuard(model, mode="fingerprint")
    guard.check()
    assert repr(guard) == (
        "FrozenGuard(mode='fingerprint': 2 frozen tensors, attached to nothing, 1 checks passed)"
    )
    optimizer = torch.optim.Adam(param_groups(model, 0.1))
    guard.attach(optimizer)
    assert "attached to Adam" in repr(guard)
    guard.attach()
    assert "attached to all optimizers" in repr(guard)


def test_exact_mode_keeps_one_copy_and_fingerprint_mode_none():
    model = nn.Linear(100, 100)
    freeze(model)

    def kept(mode):
        remembered = FrozenGuard(model, mode)._tensors._remembered.values()
        contents = [one.snapshot.content for one in remembered]
        return sum(8 if isinstance(c, int) else 8 * len(c.words) + len(c.rest) for c in contents)

    assert kept("exact") == 4 * 10100
    assert kept("fingerprint") == 16
