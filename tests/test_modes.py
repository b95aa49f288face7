"""Normalisation and dropout layers keep their mode while frozen, and no longer."""

import copy
import gc
import io
import itertools
import pickle
import warnings

import pytest
import torch
from _models import C, H, I, everything, moved, snapshot
from torch import nn
from torch.nn.utils import parametrizations

from lstm_freeze import BiLSTM, freeze, freeze_up_to, unfreeze
from lstm_freeze._freezing import fixed_mode_of

B, T = 5, 6


def linear_with(norm):
    return nn.Sequential(nn.Linear(C, C), norm)


def old_spectral_norm(module, name="weight"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.spectral_norm(module, name)


NORMS = {
    "BatchNorm1d": (lambda: linear_with(nn.BatchNorm1d(C)), (B, C)),
    "BatchNorm1d without affine": (lambda: linear_with(nn.BatchNorm1d(C, affine=False)), (B, C)),
    "BatchNorm1d cumulative": (lambda: linear_with(nn.BatchNorm1d(C, momentum=None)), (B, C)),
    "BatchNorm2d": (lambda: nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)), (B, C, 3, 3)),
    "BatchNorm3d": (lambda: nn.Sequential(nn.Conv3d(C, C, 1), nn.BatchNorm3d(C)), (B, C, 2, 2, 2)),
    "InstanceNorm1d": (
        lambda: nn.Sequential(
            nn.Conv1d(C, C, 1), nn.InstanceNorm1d(C, affine=True, track_running_stats=True)
        ),
        (B, C, T),
    ),
    "InstanceNorm2d without affine": (
        lambda: nn.Sequential(nn.Conv2d(C, C, 1), nn.InstanceNorm2d(C, track_running_stats=True)),
        (B, C, 3, 3),
    ),
    "SyncBatchNorm": (lambda: linear_with(nn.SyncBatchNorm(C)), (B, C)),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(C, C)), (B, C)),
    "old spectral_norm": (lambda: old_spectral_norm(nn.Linear(C, C)), (B, C)),
    "nested": (
        lambda: nn.Sequential(linear_with(nn.Sequential(nn.BatchNorm1d(C, affine=False)))),
        (B, C),
    ),
}
norms = pytest.mark.parametrize(("build", "shape"), NORMS.values(), ids=NORMS)


class Classifier(nn.Module):
    """A normalised body and a head that always trains."""

    def __init__(self, body):
        super().__init__()
        self.body = body
        self.head = nn.Linear(C, C)

    def forward(self, x):
        return self.head(self.body(x).flatten(2).mean(2) if x.ndim > 2 else self.body(x))


def frozen_classifier(build, shape):
    """After some steps of training, so that the statistics are not their first ones."""
    torch.manual_seed(0)
    model = Classifier(build())
    for _ in range(3):
        model(torch.randn(shape) * 3 + 1)
    with torch.no_grad():  # so that spectral norms have not converged
        for parameter in model.body.parameters():
            parameter.normal_()
    return model


@norms
def test_without_this_library_statistics_of_frozen_layers_move(build, shape):
    model = frozen_classifier(build, shape)
    model.body.requires_grad_(False)
    before = snapshot(model)
    model(torch.randn(shape))
    assert any(name.startswith("body") for name in moved(model, before))


@norms
def test_frozen_statistics_do_not_move_and_are_used(build, shape):
    model = frozen_classifier(build, shape)
    handle = freeze(model, "body")
    before = snapshot(model)
    x = torch.randn(shape)
    for mode in (True, False, True):
        model.train(mode)
        out = model(x)
        assert all(m.training is mode for m in model.modules())
        model.eval()
        assert torch.equal(out, model(x))
        model.train()
    out.sum().backward()
    assert moved(model, before) == set()
    assert model.head.weight.grad is not None
    handle.undo()
    model(x)
    assert moved(model, before) != set()
    assert not any(m._forward_hooks for m in model.modules())


@norms
def test_unfreezing_lets_go(build, shape):
    model = frozen_classifier(build, shape)
    freeze(model, "body")
    unfreeze(model, "body")
    before = snapshot(model)
    model(torch.randn(shape))
    assert any(name.startswith("body") for name in moved(model, before))
    freeze(model, "body")
    before = snapshot(model)
    model(torch.randn(shape))
    assert moved(model, before) == set()


@norms
def test_a_held_layer_survives_deepcopy_pickle_and_torch_save(build, shape):
    model = frozen_classifier(build, shape)
    freeze(model, "body")
    twins = []
    if build is not NORMS["old spectral_norm"][0]:  # torch copies no weight that has a history
        twins.append(copy.deepcopy(model))
    if build is not NORMS["spectral_norm"][0]:  # torch pickles no parametrized module
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        twins += [pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)]
    unfreeze(model)
    gc.collect()
    for twin in twins:
        before = snapshot(twin)
        twin.train()(torch.randn(shape))
        assert moved(twin, before) == set()
        assert all(module.training for module in twin.modules())
        unfreeze(twin, "body")
        twin(torch.randn(shape))
        assert moved(twin, before) != set()


COMPILED = ["BatchNorm1d", "BatchNorm1d without affine", "spectral_norm"]


@pytest.mark.parametrize("name", COMPILED)
def test_a_layer_frozen_before_its_compilation_is_held(name):
    build, shape = NORMS[name]
    model = frozen_classifier(build, shape)
    freeze(model, "body")
    compiled = torch.compile(model, backend="eager")
    before = snapshot(model)
    compiled(torch.randn(shape)).sum().backward()
    assert moved(model, before) == set()


@pytest.mark.parametrize("name", COMPILED)
def test_a_held_layer_survives_torch_compile(name):
    build, shape = NORMS[name]
    model = frozen_classifier(build, shape)
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(shape)
    compiled(x)
    handle = freeze(compiled, "body")
    before = snapshot(model)
    out = compiled(x)
    out.sum().backward()
    assert moved(model, before) == set()
    assert torch.equal(out, model(x))
    handle.undo()
    compiled(x)
    assert moved(model, before) != set()


def test_partly_frozen_layers_are_left_alone():
    model = frozen_classifier(*NORMS["BatchNorm1d"])
    freeze(model, "body.1.weight")
    before = snapshot(model)
    model(torch.randn(B, C))
    assert "body.1.running_mean" in moved(model, before)
    freeze(model, "body.1.bias")
    before = snapshot(model)
    model(torch.randn(B, C))
    assert moved(model, before) == set()


def test_a_layer_without_parameters_follows_its_nearest_ancestor_with_some():
    model = frozen_classifier(*NORMS["BatchNorm1d without affine"])
    freeze(model, "body.0.weight")
    before = snapshot(model)
    model(torch.randn(B, C))
    assert "body.1.running_mean" in moved(model, before)
    freeze(model, "body.0.bias")
    before = snapshot(model)
    model(torch.randn(B, C))
    assert moved(model, before) == set()
    unfreeze(model, "body.0.bias")
    model(torch.randn(B, C))
    assert "body.1.running_mean" in moved(model, before)


def test_the_mode_of_everything_else_is_left_alone():
    model = nn.ModuleDict({"lstm": nn.LSTM(I, H), "norm": nn.LayerNorm(H), "drop": nn.Dropout()})
    freeze(model)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    model.eval()
    unfreeze(model)
    assert not any(module.training for module in model.modules())


def test_a_norm_without_running_statistics_is_left_alone():
    model = linear_with(nn.BatchNorm1d(C, track_running_stats=False))
    x = torch.randn(B, C)
    expected = model(x)
    freeze(model)
    assert torch.equal(model(x), expected)
    assert not model[1]._forward_pre_hooks


def test_a_lazy_norm_is_held_from_its_first_forward_on():
    model = nn.Sequential(nn.LazyLinear(C), nn.LazyBatchNorm1d())
    freeze(model)
    model(torch.randn(B, I) * 9)
    assert type(model[1]) is nn.BatchNorm1d
    assert model[1].running_mean.count_nonzero() == 0
    assert int(model[1].num_batches_tracked) == 0
    assert not any(p.requires_grad for p in model.parameters())


def test_an_exception_in_the_forward_pass_leaves_the_mode_as_it_was():
    model = frozen_classifier(*NORMS["BatchNorm1d"])
    freeze(model, "body")
    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        model.body[1](torch.randn(1, C, 1, 1))
    assert model.body[1].training
    model.body[1].eval()
    model(torch.randn(B, C))
    assert not model.body[1].training
    assert model.body[0].training


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_overlapping_handles_release_in_any_order(order):
    model = frozen_classifier(*NORMS["BatchNorm1d"])
    before = everything(model)
    handles = [freeze(model, "body"), freeze(model, "body.1.bias"), freeze(model)]
    assert fixed_mode_of(model.body[1]) is not None
    for i in order:
        handles[i].undo()
    assert everything(model) == before
    assert fixed_mode_of(model.body[1]) is None


def test_a_held_layer_stays_held_by_the_other_handle():
    model = frozen_classifier(*NORMS["BatchNorm1d"])
    first, second = freeze(model, "body.1"), freeze(model, "body")
    second.undo()
    before = snapshot(model)
    model(torch.randn(B, C))
    assert moved(model, before) == set()
    first.undo()
    model(torch.randn(B, C))
    assert "body.1.running_mean" in moved(model, before)


def test_many_calls_add_one_pair_of_hooks():
    model = frozen_classifier(*NORMS["BatchNorm1d"])
    for _ in range(20):
        freeze(model, "body")
        unfreeze(model, "body")
    assert len(model.body[1]._forward_pre_hooks) <= 1
    assert len(model.body[1]._forward_hooks) <= 1


def test_a_by_hand_unfreeze_lets_go_too():
    model = frozen_classifier(*NORMS["BatchNorm1d"])
    freeze(model, "body")
    model.body.requires_grad_(True)
    before = snapshot(model)
    model(torch.randn(B, C))
    assert "body.1.running_mean" in moved(model, before)


def test_a_by_hand_freeze_after_an_unfreeze_is_not_ours_to_hold():
    model = frozen_classifier(*NORMS["BatchNorm1d"])
    freeze(model, "body")
    unfreeze(model, "body")
    model.body.requires_grad_(False)
    before = snapshot(model)
    model(torch.randn(B, C))
    assert "body.1.running_mean" in moved(model, before)


def test_freeze_up_to_and_only_hold_too():
    model = frozen_classifier(*NORMS["BatchNorm1d"])
    before = snapshot(model)
    with freeze_up_to(model, "body"):
        model(torch.randn(B, C))
    with unfreeze(model, "head", only=True):
        model(torch.randn(B, C))
    assert moved(model, before) == set()
    model(torch.randn(B, C))
    assert "body.1.running_mean" in moved(model, before)


def test_data_parallel_replicas_are_held():
    model = frozen_classifier(*NORMS["BatchNorm1d"])
    freeze(model, "body")
    before = snapshot(model)
    nn.DataParallel(model)(torch.randn(B, C))
    assert moved(model, before) == set()


# Dropout


def draws(module, *args, n=3):
    """Whether the outputs of some calls differ."""
    outs = [module(*args) for _ in range(n)]
    outs = [out[0] if isinstance(out, tuple) else out for out in outs]
    return not all(torch.equal(out, outs[0]) for out in outs)


def gaps(lstm, x):
    """For each gap of a BiLSTM, whether dropout acts in it.

    Layer i + 1 gets zeros in train() mode, and never in eval() mode, which only dropout makes.
    """
    import lstm_freeze._rnn.stack as stack

    seen = []
    original = stack.F.dropout

    def spy(input, p=0.5, training=True, inplace=False):
        seen.append(True)
        return original(input, p, training, inplace)

    stack.F.dropout = spy
    try:
        lstm(x)
    finally:
        stack.F.dropout = original
    return len(seen)


X = torch.randn(T, B, I, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("layers", "acting"),
    [
        ([0], 3),
        ([0, 1], 2),
        ([0, 2], 3),
        ([1, 2], 2),
        ([0, 1, 2], 1),
        ([2, 3], 2),
        ([0, 1, 2, 3], 0),
    ],
)
def test_dropout_off_stops_the_gaps_between_frozen_layers(layers, acting):
    model = nn.ModuleDict({"lstm": BiLSTM(I, H, 4, dropout=0.5), "head": nn.Linear(H, C)})
    lstm = model["lstm"]
    assert gaps(lstm, X) == 3
    handle = freeze(model, layers=layers, dropout="off")
    assert gaps(lstm, X) == acting
    assert draws(lstm, X) is (acting > 0)
    assert lstm.dropout == 0.5
    handle.undo()
    assert gaps(lstm, X) == 3
    assert lstm.dropout_off_layers == set()


@pytest.mark.filterwarnings("ignore:nothing in this module is trainable")
def test_dropout_comes_back_with_an_unfreeze_and_goes_with_the_next_freeze():
    lstm = BiLSTM(I, H, 3, dropout=0.5)
    freeze(lstm, dropout="off")
    assert gaps(lstm, X) == 0
    unfreeze(lstm, "[2].forward.bias")
    assert gaps(lstm, X) == 1
    unfreeze(lstm, layers=1)
    assert gaps(lstm, X) == 2
    freeze(lstm)
    assert gaps(lstm, X) == 0


def test_dropout_keep_keeps():
    lstm = BiLSTM(I, H, 3, dropout=0.5)
    freeze(lstm)
    assert gaps(lstm, X) == 2
    lstm_torch = nn.LSTM(I, H, 3, dropout=0.5)
    freeze(lstm_torch)
    assert draws(lstm_torch, X)


@pytest.mark.filterwarnings("ignore:nothing in this module is trainable")
def test_a_layer_frozen_only_in_part_keeps_its_dropout():
    lstm = BiLSTM(I, H, 2, dropout=0.5)
    freeze(lstm, directions="forward", dropout="off")
    assert gaps(lstm, X) == 1
    freeze(lstm, directions="reverse", dropout="off")
    assert gaps(lstm, X) == 0


@pytest.mark.filterwarnings("ignore:nothing in this module is trainable")
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_overlapping_dropout_handles(order):
    lstm = BiLSTM(I, H, 3, dropout=0.5)
    handles = [
        freeze(lstm, layers=[0, 1], dropout="off"),
        freeze(lstm, layers=[1, 2], dropout="off"),
    ]
    assert gaps(lstm, X) == 0
    handles[order[0]].undo()
    assert gaps(lstm, X) == 1
    handles[order[1]].undo()
    assert gaps(lstm, X) == 2


@pytest.mark.parametrize("build", [nn.LSTM, nn.GRU, nn.RNN])
def test_dropout_off_on_a_whole_torch_rnn(build):
    model = nn.ModuleDict({"rnn": build(I, H, 2, dropout=0.5), "head": nn.Linear(H, C)})
    assert draws(model["rnn"], X)
    handle = freeze(model, "rnn", dropout="off")
    assert not draws(model["rnn"], X)
    assert model["rnn"].dropout == 0.5
    assert model["rnn"].training
    unfreeze(model, "rnn[0].forward.bias_hh")
    assert draws(model["rnn"], X)
    handle.undo()
    assert draws(model["rnn"], X)


@pytest.mark.parametrize("build", [nn.LSTM, nn.GRU, nn.RNN])
def test_dropout_off_on_a_part_of_a_torch_rnn_is_refused_with_the_remedy(build):
    model = nn.Sequential(build(I, H, 2, dropout=0.5), nn.BatchNorm1d(H))
    before = everything(model)
    remedy = r"replace_lstm\(model\)" if build is nn.LSTM else r"set its \.dropout = 0\.0"
    name = build.__name__
    with pytest.raises(
        ValueError, match=rf'dropout="off": {name} \'0\' .*in part.*{remedy}.*or freeze all'
    ):
        freeze(model, "0[0]", "1", dropout="off")
    assert everything(model) == before


def test_what_is_already_frozen_counts_towards_all_of_it():
    lstm = nn.LSTM(I, H, 2, dropout=0.5)
    freeze(lstm, layers=[0])
    with pytest.warns(UserWarning, match="nothing in this module is trainable"):
        freeze(lstm, layers=[1], dropout="off")
    assert not draws(lstm, X)


@pytest.mark.parametrize("options", [{"num_layers": 1}, {"num_layers": 2, "dropout": 0.0}])
def test_a_torch_rnn_without_dropout_can_be_frozen_in_part(options):
    lstm = nn.LSTM(I, H, **options)
    handle = freeze(lstm, kinds="bias", dropout="off")
    assert not draws(lstm, X)
    assert handle.changed


DROPOUTS = [nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Dropout1d]


@pytest.mark.parametrize("build", DROPOUTS)
def test_dropout_modules_in_the_selected_subtree(build):
    model = nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.Linear(C, 9), build(), nn.Sequential(nn.Tanh(), build())),
            "head": nn.Sequential(nn.Linear(C, 9), build()),
        }
    )
    x = torch.ones(4, 8, C)
    freeze(model, "encoder")
    assert draws(model["encoder"], x, n=5)
    handle = freeze(model, "encoder", dropout="off")
    assert not draws(model["encoder"], x, n=5)
    model.train()
    assert not draws(model["encoder"], x, n=5)
    assert draws(model["head"], x, n=5)
    handle.undo()
    assert draws(model["encoder"], x, n=5)


def test_a_dropout_whose_surroundings_train_in_part_stays():
    model = nn.Sequential(nn.Linear(C, C), nn.Dropout(), nn.Linear(C, C))
    freeze(model, "0", dropout="off")
    assert draws(model, torch.ones(8, C))


def test_dropout_off_survives_copies():
    model = nn.Sequential(nn.Linear(C, C), nn.Dropout())
    lstm = BiLSTM(I, H, 2, dropout=0.5)
    freeze(model, dropout="off")
    freeze(lstm, dropout="off")
    for make in (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))):
        assert not draws(make(model), torch.ones(8, C))
        twin = make(lstm)
        assert not draws(twin, X)
        twin.dropout_off_layers.clear()
        assert draws(twin, X)
    assert not draws(lstm, X)


def test_dropout_takes_two_words():
    lstm = BiLSTM(I, H, 2)
    before = everything(lstm)
    with pytest.raises(ValueError, match=r'`dropout` must be "keep" or "off", got \'of\''):
        freeze(lstm, dropout="of")
    assert everything(lstm) == before
