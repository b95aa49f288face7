"""How frozen weights move, and unfrozen ones fail to train: each case is shown to be real without
this library, then to be impossible, refused, or told by guard or status with its cause."""

import contextlib
import copy
import re
import warnings
from collections import OrderedDict

import pytest
import torch
from _models import C, H, I, Tagger, bits, frozen, moved, snapshot, trainable
from _wrappers import SAM, Lookahead
from torch import nn
from torch.nn.utils import parametrizations

from lstm_freeze import (
    BiLSTM,
    FreezeSchedule,
    FrozenGuard,
    FrozenWeightsChanged,
    Phase,
    freeze,
    param_groups,
    replace_lstm,
    select,
    status,
    unfreeze,
)

TOKENS = torch.randint(0, 7, (6, 4, 3), generator=torch.Generator().manual_seed(0))

SGD, ADAM, ADAMW, RMSPROP = (
    torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop,
)  # fmt: skip
MOVED_BY_A_STALE_GRADIENT = {
    "SGD": (SGD, {}),
    "momentum": (SGD, {"momentum": 0.9}),
    "Adam": (ADAM, {}),
    "AdamW": (ADAMW, {}),
    "RMSprop": (RMSPROP, {}),
}
MOVED_BY_A_ZERO_GRADIENT = {
    "momentum": (SGD, {"momentum": 0.9}),
    "weight decay": (SGD, {"weight_decay": 0.1}),
    "Adam": (ADAM, {}),
    "AdamW": (ADAMW, {}),
}
NOT_MOVED_BY_A_ZERO_GRADIENT = {"SGD": (SGD, {}), "RMSprop": (RMSPROP, {})}


def table(rows):
    return pytest.mark.parametrize(("build", "knobs"), rows.values(), ids=rows)


def by_hand(module, target):
    """Freezing as it is usually done."""
    for parameter in select(module, target).parameters:
        parameter.requires_grad_(False)


def fresh(build, knobs):
    torch.manual_seed(0)
    model = Tagger()
    return model, build(model.parameters(), lr=0.1, **knobs)


def backward(model, i=0):
    model(TOKENS[i]).sin().sum().backward()


def step(model, optimizer, i=0):
    optimizer.zero_grad()
    backward(model, i)
    optimizer.step()


@contextlib.contextmanager
def caught_by_guard(model, optimizer, cause, **how):
    """The guard stops what happens inside at an optimizer step, and names the cause."""
    with (
        pytest.raises(FrozenWeightsChanged, match=cause) as caught,
        FrozenGuard(model, **how).attach(optimizer),
    ):
        yield caught


ENCODER = set(select(Tagger(), "encoder"))


@table(MOVED_BY_A_STALE_GRADIENT)
class Test01FreezeAfterBackward:
    def test_by_hand_it_moves_and_the_guard_knows_why(self, build, knobs):
        model, optimizer = fresh(build, knobs)
        backward(model)
        by_hand(model, "encoder")
        before = snapshot(model)
        with caught_by_guard(model, optimizer, "a stale gradient from before it was frozen") as c:
            optimizer.step()
        assert set(c.value.names) == moved(model, before) & ENCODER != set()

    def test_with_freeze_it_does_not(self, build, knobs):
        model, optimizer = fresh(build, knobs)
        backward(model)
        freeze(model, "encoder")
        before = snapshot(model)
        optimizer.step()
        assert moved(model, before) == {"head.weight", "head.bias"}


class Test02ZeroGradToZeros:
    @table(MOVED_BY_A_ZERO_GRADIENT)
    def test_by_hand_it_moves_and_the_guard_knows_why(self, build, knobs):
        model, optimizer = fresh(build, knobs)
        step(model, optimizer)
        optimizer.zero_grad(set_to_none=False)
        by_hand(model, "encoder")
        with caught_by_guard(model, optimizer, "a stale gradient of zeros"):
            optimizer.step()

    @table(NOT_MOVED_BY_A_ZERO_GRADIENT)
    def test_by_hand_these_do_not_move_it(self, build, knobs):
        model, optimizer = fresh(build, knobs)
        step(model, optimizer)
        optimizer.zero_grad(set_to_none=False)
        by_hand(model, "encoder")
        before = snapshot(model)
        optimizer.step()
        assert moved(model, before) == set()

    @table(MOVED_BY_A_ZERO_GRADIENT)
    def test_with_freeze_it_does_not(self, build, knobs):
        model, optimizer = fresh(build, knobs)
        step(model, optimizer)
        optimizer.zero_grad(set_to_none=False)
        freeze(model, "encoder")
        before = snapshot(model)
        for _ in range(2):
            backward(model)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        assert moved(model, before) == {"head.weight", "head.bias"}


@table(MOVED_BY_A_STALE_GRADIENT)
class Test03FreezeWithinAccumulation:
    @pytest.mark.parametrize("call", [by_hand, freeze])
    def test_only_by_hand_it_moves(self, build, knobs, call):
        model, optimizer = fresh(build, knobs)
        backward(model, 0)
        call(model, "encoder")
        before = snapshot(model)
        backward(model, 1)
        optimizer.step()
        assert bool(moved(model, before) & ENCODER) == (call is by_hand)
        assert "head.weight" in moved(model, before)


class Test04LBFGS:
    def closure(self, model, optimizer):
        def run():
            optimizer.zero_grad()
            loss = model(TOKENS[0]).sin().sum()
            loss.backward()
            return loss

        return run

    def test_it_moves_what_has_no_gradient_and_the_guard_says_so(self):
        torch.manual_seed(0)
        model = Tagger()
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1)
        optimizer.step(self.closure(model, optimizer))
        freeze(model, "encoder")
        with caught_by_guard(model, optimizer, "LBFGS moves all it holds by its flat history"):
            optimizer.step(self.closure(model, optimizer))

    def test_it_is_refused(self):
        model = Tagger()
        optimizer = torch.optim.LBFGS(model.parameters())
        with pytest.raises(ValueError, match="LBFGS"):
            freeze(model, "encoder", optimizer=optimizer)
        with pytest.raises(ValueError, match="LBFGS"):
            FreezeSchedule({0: "head", 1: "*"}).apply(model, 0, optimizer)


class Heedless(torch.optim.Optimizer):
    """Decays every weight, gradient or not, as some third-party optimizers do."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1 - group["lr"])
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=group["lr"])


@pytest.mark.parametrize("mode", ["exact", "fingerprint"])
def test_05_optimizers_that_ignore_that_grad_is_none(mode):
    model = Tagger()
    freeze(model, "encoder")
    optimizer = Heedless(model.parameters(), 0.1)
    causes = {
        "exact": "all elements shrank by one factor",
        "fingerprint": "which is not of torch.optim",
    }
    with caught_by_guard(model, optimizer, causes[mode], mode=mode):
        step(model, optimizer)


def test_06_averaged_weights_from_before_the_freeze():
    torch.manual_seed(0)
    model = Tagger()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for i in range(2):
        step(model, optimizer, i)
        averaged.update_parameters(model)
    freeze(model, "encoder")
    guard = FrozenGuard(model)
    step(model, optimizer)
    averaged.update_parameters(model)
    guard.check()
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), averaged.module.parameters(), strict=True):
            mine.copy_(theirs)
    with pytest.raises(FrozenWeightsChanged, match=r"averaged weights \(SWA, EMA\)"):
        guard.check()


class Test07BatchNormStatistics:
    def model(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(C, C), nn.BatchNorm1d(C), nn.Linear(C, C))

    def test_by_hand_they_move_and_guard_and_status_say_so(self):
        model = self.model()
        by_hand(model, ["0", "1"])
        guard = FrozenGuard(model)
        assert "its statistics move in train()" in str(status(model))
        model(torch.randn(5, C))
        with pytest.raises(FrozenWeightsChanged, match=r"running statistics .* move in train"):
            guard.check()

    def test_with_freeze_train_and_eval_agree(self):
        model = self.model()
        model(torch.randn(50, C) * 3 + 1)
        freeze(model, "0", "1")
        guard = FrozenGuard(model)
        x = torch.randn(5, C)
        out = model.train()(x)
        assert torch.equal(out, model.eval()(x))
        guard.check()
        assert "statistics move" not in str(status(model.train()))


class Test08Parametrizations:
    def test_names_change_and_still_choose(self):
        lstm = parametrizations.weight_norm(BiLSTM(I, H), "weight_hh_l0")
        assert "weight_hh_l0" not in dict(lstm.named_parameters())
        freeze(lstm, "weight_hh_l0")
        assert frozen(lstm) == {
            "parametrizations.weight_hh_l0.original0", "parametrizations.weight_hh_l0.original1",
        }  # fmt: skip

    @pytest.mark.parametrize("call", [by_hand, freeze])
    def test_spectral_norm_s_vectors_move_by_hand_only(self, call):
        torch.manual_seed(0)
        model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(9, 9)), nn.Linear(9, 1))
        call(model, "0")
        before = snapshot(model)
        out = model(torch.ones(1, 9))
        assert bool(moved(model, before)) == (call is by_hand)
        if call is freeze:
            assert torch.equal(out, model.eval()(torch.ones(1, 9)))


def test_09_max_norm_rewrites_a_frozen_embedding_in_the_forward_pass():
    model = nn.Sequential(nn.Embedding(5, 3, max_norm=0.1), nn.Linear(3, 1))
    freeze(model, "0")
    guard = FrozenGuard(model)
    assert "max_norm rewrites its rows in the forward pass" in str(status(model))
    model(torch.arange(5))
    with pytest.raises(FrozenWeightsChanged, match="max_norm of the embedding rewrites its rows"):
        guard.check()


def test_10_tied_weights():
    model = nn.ModuleDict({"embedding": nn.Embedding(7, I), "decoder": nn.Linear(I, 7, bias=False)})
    model["decoder"].weight = model["embedding"].weight
    assert "decoder.weight" not in dict(model.named_parameters())
    assert list(select(model, "decoder")) == ["embedding.weight", "decoder.weight"]
    assert "tied: also decoder.weight" in str(status(model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handle = freeze(model, "decoder.weight")
    assert handle.changed == ("embedding.weight",)
    assert frozen(model) == {"embedding.weight", "decoder.weight"}


OVERWRITES = {
    "load_state_dict": lambda m, w: m.load_state_dict(Tagger().state_dict()),
    "assign": lambda m, w: m.load_state_dict(copy.deepcopy(m.state_dict()), assign=True),
    "in place": lambda m, w: nn.init.zeros_(w),
    "one element": lambda m, w: w.detach()[0, 0].add_(1),
    "data": lambda m, w: w.data.add_(1),
    "numpy": lambda m, w: w.detach().numpy().__setitem__((0, 0), 9.0),
    "minus zero": lambda m, w: w.data.neg_(),
}


@pytest.mark.parametrize("mode", ["exact", "fingerprint"])
@pytest.mark.parametrize("write", OVERWRITES.values(), ids=OVERWRITES)
def test_11_overwrites(write, mode):
    model = Tagger()
    weight = model.encoder.lstm.weight_hh_l0
    nn.init.zeros_(weight)
    freeze(model, "encoder")
    guard = FrozenGuard(model, mode=mode)
    guard.check()
    write(model, weight) if write is not OVERWRITES["in place"] else nn.init.ones_(weight)
    causes = "load_state_dict|in-place write|replaced Parameter"
    with pytest.raises(FrozenWeightsChanged, match=causes) as caught:
        guard.check()
    assert "encoder.lstm.weight_hh_l0" in caught.value.names
    guard.remember()
    guard.check()


@contextlib.contextmanager
def process_group(tmp_path):
    dist = pytest.importorskip("torch.distributed")
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this torch was built without gloo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    yield nn.parallel.DistributedDataParallel
    dist.destroy_process_group()


def test_12_unfrozen_after_the_ddp_wrap(tmp_path):
    with process_group(tmp_path) as ddp:
        model = Tagger()
        freeze(model, "encoder")
        wrapped = ddp(model, find_unused_parameters=True)
        with pytest.raises(ValueError, match="the ranks would drift apart"):
            unfreeze(wrapped, "encoder")


def test_13_frozen_after_the_ddp_wrap(tmp_path):
    with process_group(tmp_path) as ddp:
        model = ddp(Tagger())
        with pytest.warns(UserWarning, match="find_unused_parameters=True"):
            freeze(model, "encoder.embedding")
        backward(model)
        with pytest.raises(RuntimeError, match="Expected to have finished reduction"):
            backward(model)
        model = ddp(Tagger(), find_unused_parameters=True)
        freeze(model, "encoder.embedding")
        backward(model)
        backward(model)


class Test14OptimizerBuiltFromWhatTrains:
    def build(self):
        model = Tagger()
        with torch.no_grad():
            for bias in select(model, kinds="bias").parameters:
                bias.zero_()  # equal in value, and not the same
        freeze(model, "encoder.lstm[0]")
        optimizer = ADAM([p for p in model.parameters() if p.requires_grad], 0.1)
        return model, optimizer

    def test_it_never_trains_and_status_says_so(self):
        model, optimizer = self.build()
        unfreeze(model)
        before = snapshot(model)
        step(model, optimizer)
        assert not moved(model, before) & set(select(model, "encoder.lstm[0]"))
        assert "trainable but in no optimizer" in str(status(model, optimizer))

    def test_with_optimizer_it_is_an_error(self):
        model, optimizer = self.build()
        with pytest.raises(ValueError, match="would never train"):
            unfreeze(model, "encoder.lstm[0].bias", optimizer=optimizer)


def test_15_resuming_past_the_epoch_of_an_unfreeze():
    schedule = FreezeSchedule({0: "head", 2: ["head", "encoder.lstm[-1]"], 5: "*"})
    stepwise = Tagger()
    for epoch in range(10):
        schedule.apply(stepwise, epoch)
        resumed = Tagger()
        schedule.apply(resumed, epoch)
        assert trainable(resumed) == trainable(stepwise)
        assert trainable(resumed) == set(select(resumed, list(schedule.trainable_at(epoch))))
    assert frozen(resumed) == set()


class Test16StaleMomentumAfterAnUnfreeze:
    @pytest.mark.parametrize("tell", [False, True])
    def test_it_moves_with_a_zero_gradient_unless_the_optimizer_was_told(self, tell):
        model, optimizer = fresh(SGD, {"momentum": 0.9})
        step(model, optimizer)
        freeze(model, "encoder", optimizer=optimizer if tell else None)
        step(model, optimizer)
        unfreeze(model, "encoder", optimizer=optimizer)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        before = snapshot(model)
        optimizer.step()
        assert bool(moved(model, before) & ENCODER) is not tell


def test_17_clipping_with_stale_gradients():
    norms = {}
    for call in (by_hand, freeze):
        torch.manual_seed(0)
        model = Tagger()
        backward(model)
        alone = torch.stack([p.grad.norm() for p in model.head.parameters()]).norm()
        call(model, "encoder")
        norms[call] = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0) / alone
    assert norms[by_hand] > 1.01
    assert norms[freeze] == pytest.approx(1)


def test_18_grad_scaler_and_an_optimizer_with_only_frozen_parameters():
    model = Tagger()
    optimizers = [ADAM(model.encoder.parameters()), ADAM(model.head.parameters())]
    freeze(model, "encoder", optimizer=optimizers)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(TOKENS[0]).sum()).backward()
    with pytest.raises(AssertionError, match="No inf checks"):
        scaler.step(optimizers[0])
    text = str(status(model, optimizers))
    assert "optimizer 0 holds only frozen parameters" in text
    assert "optimizer 1 holds" not in text


LR_SCHEDULERS = {
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda i: 0.5**i),
    "WarmRestarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=9),
    "LinearLR": lambda o: torch.optim.lr_scheduler.LinearLR(o),
}


@pytest.mark.parametrize("build", LR_SCHEDULERS.values(), ids=LR_SCHEDULERS)
def test_19_lr_schedulers_and_a_group_added_late(build):
    model = Tagger()
    optimizer = SGD(model.head.parameters(), 0.1)
    scheduler = build(optimizer)
    optimizer.add_param_group({"params": list(model.encoder.parameters()), "lr": 0.1})
    optimizer.step()
    if build is LR_SCHEDULERS["LinearLR"]:  # silently wrong: the newcomers' rate is three times it
        for _ in range(5):
            scheduler.step()
        assert [g["lr"] for g in optimizer.param_groups] == [pytest.approx(0.1), pytest.approx(0.3)]
    elif build is LR_SCHEDULERS["OneCycleLR"]:
        with pytest.raises(KeyError, match="initial_lr"):
            scheduler.step()
    else:
        with contextlib.suppress(ValueError):  # the newest refuse
            scheduler.step()
            rates = [g["lr"] for g in optimizer.param_groups]
            assert rates[0] < 0.1
            assert rates[1] == 0.1  # torch 2.6 leaves the newcomers out, silently

    freeze(model, "encoder")
    optimizer = SGD(param_groups(model, 0.1), 0.1)
    scheduler = build(optimizer)
    for i in range(4):
        if i == 2:
            unfreeze(model, optimizer=optimizer)
        step(model, optimizer)
        scheduler.step()
        assert len({group["lr"] for group in optimizer.param_groups}) == 1
    assert status(model, optimizer).trainable == status(model).total


class Test20ParametersInAnotherOrder:
    def names(self, model, optimizer):
        named = {id(p): n for n, p in model.named_parameters()}
        return [named[id(p)] for group in optimizer.param_groups for p in group["params"]]

    def test_torch_swaps_their_state_without_an_error(self):
        model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        optimizer = ADAM([model[0].weight, model[1].weight])
        (model[0](torch.ones(1, 2)) + 9 * model[1](torch.ones(1, 2))).sum().backward()
        optimizer.step()
        other = ADAM([model[1].weight, model[0].weight])
        other.load_state_dict(optimizer.state_dict())
        ours, theirs = optimizer.state[model[0].weight], other.state[model[1].weight]
        assert torch.equal(ours["exp_avg"], theirs["exp_avg"])

    def test_the_order_of_param_groups_does_not_depend_on_what_is_frozen(self):
        model, again = Tagger(), Tagger()
        freeze(again, "encoder.lstm[0]", "head")
        orders = [self.names(m, ADAM(param_groups(m, 0.1))) for m in (model, again)]
        assert orders[0] == orders[1]
        unfreeze(again, "head", only=True)
        assert self.names(again, ADAM(param_groups(again, 0.1))) == orders[0]


def test_21_untoggling_an_optimizer_undoes_a_freeze_made_in_between():
    """As Lightning's toggle_optimizer and untoggle_optimizer do; the guard tells."""
    torch.manual_seed(0)
    model = Tagger()
    optimizer = SGD(model.parameters(), 0.5)
    toggled = {p: p.requires_grad for p in model.parameters()}
    freeze(model, "encoder")
    guard = FrozenGuard(model).attach(optimizer)
    for parameter, value in toggled.items():
        parameter.requires_grad = value
    assert frozen(model) == set()
    with pytest.raises(FrozenWeightsChanged, match="requires_grad switched on elsewhere"), guard:
        step(model, optimizer)
    freeze(model, "encoder")  # level-triggered: the next call puts it right
    assert frozen(model) == ENCODER


class Test22AReplacedParameter:
    def test_frozen_the_guard_tells(self):
        model = Tagger()
        freeze(model, "encoder")
        guard = FrozenGuard(model)
        weight = model.encoder.lstm.weight_hh_l0
        model.encoder.lstm.weight_hh_l0 = nn.Parameter(weight.detach().clone(), False)
        with pytest.raises(FrozenWeightsChanged, match="replaced Parameter"):
            guard.check()

    def test_trainable_status_and_unfreeze_tell(self):
        model = Tagger()
        optimizer = ADAM(model.parameters())
        model.encoder.lstm.weight_hh_l0 = nn.Parameter(torch.zeros(4 * H, H))
        text = " ".join(str(status(model, optimizer)).split())
        assert "trainable but in no optimizer: weight_hh" in text
        assert "was a Parameter replaced after it was built?" in text
        with pytest.raises(ValueError, match=r"holds no encoder\.lstm\.weight_hh_l0: "):
            unfreeze(model, optimizer=optimizer)


def test_23_torch_compile_follows_what_is_frozen_between_calls():
    model = nn.Sequential(OrderedDict(first=nn.Linear(2, 2), second=nn.Linear(2, 2)))
    compiled = torch.compile(model, backend="aot_eager")
    for part in ("first", "second", "first.bias"):
        for frozen_ in (True, False):
            handle = freeze(compiled, part) if frozen_ else None
            model.zero_grad()
            compiled(torch.ones(1, 2)).sum().backward()
            without = {n for n, p in model.named_parameters() if p.grad is None}
            assert without == (set(select(model, part)) if frozen_ else set())
            if handle is not None:
                handle.undo()


def test_24_an_rnn_in_eval_mode_under_trainable_layers():
    """cuDNN refuses the backward pass of an RNN in eval(), so freezing leaves train() alone."""
    model = Tagger(nn.LSTM(I, H, 2, dropout=0.5))
    freeze(model, "encoder", dropout="off")
    assert all(module.training for module in model.modules())
    seen = []
    model.encoder.lstm.register_forward_pre_hook(lambda m, _: seen.append(m.training))
    backward(model)
    assert seen == [True]


class Test25DropoutInAFrozenEncoder:
    def test_a_frozen_lstm_is_still_random_and_status_says_so(self):
        model = Tagger(nn.LSTM(I, H, 2, dropout=0.5))
        freeze(model, "encoder")
        assert not torch.equal(model(TOKENS[0]), model(TOKENS[0]))
        assert "dropout between frozen layers is random in train()" in str(status(model))

    @pytest.mark.parametrize("build", [nn.LSTM, BiLSTM])
    def test_dropout_off(self, build):
        model = Tagger(build(I, H, 2, dropout=0.5))
        freeze(model, "encoder", dropout="off")
        assert torch.equal(model(TOKENS[0]), model(TOKENS[0]))
        assert "random in train()" not in str(status(model))

    def test_in_part_after_replace_lstm(self):
        model = Tagger(nn.LSTM(I, H, 3, dropout=0.5))
        with pytest.raises(ValueError, match=r"replace_lstm\(model\)"):
            freeze(model, "encoder.lstm[0:2]", dropout="off")
        assert list(replace_lstm(model)) == ["encoder.lstm"]
        freeze(model, "encoder.lstm[0:2]", dropout="off")
        assert model.encoder.lstm.dropout_off_layers == {0, 1}


class Test26EverythingFrozen:
    def test_torch_s_errors_explain_nothing(self):
        model = Tagger()
        model.requires_grad_(False)
        with pytest.raises(RuntimeError, match="element 0 of tensors does not require grad"):
            backward(model)
        with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
            SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        assert "nothing here is trainable" in str(status(model))

    def test_freeze_warns_with_the_remedy(self):
        model = Tagger()
        with pytest.warns(UserWarning, match=r"nothing .* is trainable any more.*unfreeze\(module"):
            freeze(model, "encoder", "head")


class Test27Typos:
    """Accepted by Python, and nothing can refuse them: pinned here, and status tells."""

    def test_require_grad(self):
        model = Tagger()
        model.require_grad = False
        model.head.weight.require_grad = False
        assert frozen(model) == set()
        text = " ".join(str(status(model)).split())
        assert "require_grad = False freezes nothing" in text
        assert "head.weight.require_grad means nothing to torch" in text

    def test_requires_grad_of_a_module(self):
        model = Tagger()
        model.encoder.requires_grad = False
        assert frozen(model) == set()
        text = " ".join(str(status(model)).split())
        assert "encoder.requires_grad = False freezes nothing" in text

    def test_requires_grad_of_an_element(self):
        model = Tagger()
        model.head.weight.data[0].requires_grad = False
        assert model.head.weight.requires_grad
        assert status(model).trainable == status(model).total


def test_28_layer_1_and_layer_10():
    lstm = BiLSTM(I, H, 12)
    names = [name for name, _ in lstm.named_parameters()]
    by_regex = [name for name in names if re.match(r".*_l1", name)]
    assert {"weight_ih_l10", "weight_ih_l11_reverse"} <= set(by_regex)
    freeze(lstm, layers=1)
    assert frozen(lstm) == {n for n in names if re.fullmatch(r".*_l1(_reverse)?", n)}
    unfreeze(lstm)
    freeze(lstm, "[1]")
    assert frozen(lstm) == {n for n in names if re.fullmatch(r".*_l1(_reverse)?", n)}


# Rows 15, 21, 29 and 30 in a Lightning fit


def lightning_parts():
    pl = pytest.importorskip("lightning.pytorch")
    callbacks = pytest.importorskip("lstm_freeze.callbacks")
    return pl, callbacks


def lit(pl, *, late=False, seen=None):
    """A LightningModule around a Tagger, which `late` makes in configure_model only."""

    class Lit(pl.LightningModule):
        def __init__(self):
            super().__init__()
            if not late:
                self.net = Tagger()

        def configure_model(self):
            if late and not hasattr(self, "net"):
                self.net = Tagger()

        def training_step(self, batch, batch_idx):
            if seen is not None:
                seen.append((self.current_epoch, frozenset(frozen(self))))
            return self.net(batch[0]).sin().sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    return Lit()


def trainer_for(pl, callback, tmp_path, epochs):
    return pl.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, callbacks=[callback],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=tmp_path,
    )  # fmt: skip


@pytest.fixture
def batches():
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(TOKENS), batch_size=None)


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("late", [False, True])
def test_15_and_29_a_fit_is_resumed_past_the_unfreeze_also_of_a_late_module(
    late, tmp_path, batches
):
    pl, callbacks = lightning_parts()
    schedule = {0: ["net.head"], 1: ["net.head", "net.encoder.lstm[-1]"], 3: ["*"]}
    seen, resumed = [], []
    module = lit(pl, late=late, seen=seen)
    trainer = trainer_for(pl, callbacks.FreezeScheduler(schedule), tmp_path, 2)
    trainer.fit(module, batches)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = lit(pl, late=late, seen=resumed)
    trainer = trainer_for(pl, callbacks.FreezeScheduler(schedule), tmp_path, 5)
    trainer.fit(again, batches, ckpt_path=tmp_path / "last.ckpt")
    net = Tagger()
    for epoch, now in seen + resumed:
        parts = [t.removeprefix("net.") for t in FreezeSchedule(schedule).trainable_at(epoch)]
        assert now == {f"net.{name}" for name, _ in net.named_parameters()} - {
            f"net.{name}" for name in select(net, parts)
        }
    assert {epoch for epoch, _ in seen} == {0, 1}
    assert {epoch for epoch, _ in resumed} == {2, 3, 4}


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_21_lightning_s_untoggle(tmp_path, batches):
    pl, _ = lightning_parts()

    class Manual(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.net = Tagger()

        def training_step(self, batch, batch_idx):
            head, encoder = self.optimizers()
            self.toggle_optimizer(head)
            freeze(self.net, "encoder")
            guard = FrozenGuard(self.net)
            self.untoggle_optimizer(head)
            assert frozen(self.net) == set()
            self.manual_backward(self.net(batch[0]).sin().sum())
            guard.attach(encoder)
            with pytest.raises(FrozenWeightsChanged, match="switched on elsewhere") as caught:
                encoder.step()
            guard.detach()
            assert {f"encoder.{name}" for name, _ in self.net.encoder.named_parameters()} == set(
                caught.value.names
            )
            self.trainer.should_stop = True

        def configure_optimizers(self):
            return SGD(self.net.head.parameters(), 0.5), SGD(self.net.encoder.parameters(), 0.5)

    module = Manual()
    trainer_for(pl, pl.Callback(), tmp_path, 1).fit(module, batches)
    assert module.trainer.should_stop


def test_30_what_is_outside_the_scope_stays_as_the_user_set_it():
    model = nn.ModuleDict({"generator": Tagger(), "critic": Tagger()})
    model["critic"].encoder.embedding.requires_grad_(False)
    optimizers = [ADAM(model["generator"].parameters()), ADAM(model["critic"].parameters())]
    for optimizer in optimizers:
        model["generator"](TOKENS[0]).sum().backward()
        model["critic"](TOKENS[0]).sum().backward()
        optimizer.step()
    before = trainable(model["critic"]), bits(
        s["exp_avg"] for s in optimizers[1].state.values()
    ), [id(p.grad) for p in model["critic"].parameters()]  # fmt: skip
    schedule = FreezeSchedule({0: "generator.head", 1: "generator"}, scope="generator")
    for epoch in range(3):
        schedule.apply(model, epoch, optimizers)
        assert (
            trainable(model["critic"]),
            bits(s["exp_avg"] for s in optimizers[1].state.values()),
            [id(p.grad) for p in model["critic"].parameters()],
        ) == before
    assert frozen(model["generator"]) == set()


# ---- rates; all forms of these: test_warmup.py, test_lr_schedulers.py


def two_parts(lr=1e-2):
    model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    return model, torch.optim.SGD(param_groups(model, lr))


def step_with_ones(model, optimizer):
    """A step whose gradients are 1; gives the rate that moved the head."""
    before = model["head"].weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return float((before - model["head"].weight.detach()).mean())


def test_41_a_warm_up_through_steps_at_rate_0():
    """It is a part of the rate without it, whatever that is in a step; see test_warmup.py."""
    model, optimizer = two_parts()
    FreezeSchedule([Phase(0, "*", lr=1e-2, warmup=4)]).apply(model, 0, optimizer)
    used = []
    for rate in (0.0, 0.02, 0.0, 0.04, 0.04):
        for group in optimizer.param_groups:
            group["lr"] = rate
        used.append(step_with_ones(model, optimizer))
    assert used == pytest.approx([0, 0.01, 0, 0.04, 0.04], abs=1e-7)


def test_42_an_lr_scheduler_that_overwrites_phase_rates_in_a_plain_loop():
    """It is refused where it exists; see test_lr_schedulers.py."""
    alone = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(alone, lambda epoch: 0.8)
    alone.param_groups[0]["lr"] = 1e-4
    alone.step()
    scheduler.step()
    assert alone.param_groups[0]["lr"] == pytest.approx(8e-3)  # the phase's rate is gone
    model, optimizer = two_parts()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.8)
    with pytest.raises(ValueError, match="LambdaLR may overwrite them"):
        FreezeSchedule([Phase(0, "*", lr=1e-4)]).apply(model, 0, optimizer)
    del scheduler


def test_43_rates_are_set_for_each_schedule_and_each_run():
    model, optimizer = two_parts()
    for lr in (0.5, 0.25):
        for _ in range(2):
            for epoch in range(3):
                FreezeSchedule([Phase(0, "*", lr=lr)]).apply(model, epoch, optimizer)
                assert optimizer.param_groups[0]["lr"] == lr * 0.5**epoch
                for group in optimizer.param_groups:
                    group["lr"] *= 0.5


class InnerSteps(torch.optim.Optimizer):
    """A wrapper whose second half steps an inner optimizer, as SAM's does."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=0.1)

    def second_step(self):
        self.base_optimizer.step()

    def step(self, closure=None):
        raise NotImplementedError("its halves are called by hand")


@pytest.mark.parametrize("given", [True, False])
def test_31_steps_of_an_inner_optimizer(given):
    model = Tagger()
    freeze(model, "encoder")
    wrapper = InnerSteps(model.parameters())
    before = snapshot(model)
    with FrozenGuard(model).attach(wrapper if given else None) as guard:
        backward(model)
        wrapper.second_step()
    assert (guard.step, guard.checks) == (1, 1)
    assert moved(model, before) == {"head.weight", "head.bias"}
    guard = FrozenGuard(model).attach(wrapper if given else None)
    model.encoder.lstm.weight_hh_l0.data[0, 0] += 1
    with pytest.raises(FrozenWeightsChanged, match="weight_hh_l0"):
        wrapper.second_step()
    guard.remember()
    guard.detach()


def test_31_steps_that_nobody_sees_are_compared_at_the_end_and_warned_of():
    model = Tagger()
    freeze(model, "encoder")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def train_by_hand(moves):
        with FrozenGuard(model).attach(optimizer):
            model.head.bias.data += 1
            model.encoder.lstm.weight_hh_l0.data[0, 0] += moves

    with pytest.warns(UserWarning, match="saw no optimizer step"):
        train_by_hand(0)
    with pytest.raises(FrozenWeightsChanged, match="seen at the end"):
        train_by_hand(1)


@pytest.mark.parametrize("how", ["unfreeze", "undo", "with"])
def test_32_what_leaves_is_compared_first(how):
    model = Tagger()
    guard = FrozenGuard(model).attach()

    def leave(handle):
        if how == "unfreeze":
            unfreeze(model, "encoder")
        elif how == "undo":
            handle.undo()
        else:
            with handle:
                pass

    handle = freeze(model, "encoder")
    model.encoder.lstm.weight_hh_l0.data[0, 0] += 1
    with pytest.raises(FrozenWeightsChanged, match="as it was about to be unfrozen"):
        leave(handle)
    leave(handle)
    assert model.encoder.lstm.weight_hh_l0.requires_grad
    with contextlib.suppress(UserWarning):
        guard.detach()


def test_33_a_guard_of_an_earlier_notebook_cell():
    model = Tagger()
    freeze(model, "encoder")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    earlier = FrozenGuard(model).attach(optimizer)
    model.encoder.lstm.weight_hh_l0.data[0, 0] += 1
    with pytest.raises(FrozenWeightsChanged):
        step(model, optimizer)
    guard = FrozenGuard(model).attach(optimizer)
    step(model, optimizer)
    assert (earlier.step, guard.step, guard.checks) == (1, 1, 1)
    guard.detach()


def test_34_unfrozen_and_never_trained():
    model = Tagger()
    freeze(model, "encoder")
    with torch.no_grad():
        features = model.encoder(TOKENS[0])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    guard = FrozenGuard(model, idle_after=3).attach(optimizer)
    unfreeze(model, "encoder", optimizer=optimizer)
    before = snapshot(model)

    def step_on_cached_features():
        optimizer.zero_grad()
        model.head(features).sin().sum().backward()
        optimizer.step()

    for _ in range(2):
        step_on_cached_features()
    with pytest.warns(UserWarning, match=r"encoder\.embedding\.weight, .* got no gradient"):
        step_on_cached_features()
    assert moved(model, before) == {"head.weight", "head.bias"}
    assert "trainable but idle in the last 3 optimizer steps" in str(status(model))
    guard.detach()


# ---- names, constants, inner optimizers; all forms of these: test_handle.py, test_forgetting.py,
# test_constants.py, test_fixed_modes.py


def test_35_a_parameter_is_not_taken_for_its_name():
    model = Tagger()
    handle = freeze(model, "encoder")
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    assert frozen(model) == ENCODER
    handle.undo()
    assert frozen(model) == set()
    with freeze(model, "encoder"):
        model.to_empty(device="cpu")
        assert frozen(model) == ENCODER
    assert frozen(model) == set()


def test_36_a_handle_in_a_copy():
    model = Tagger()
    model.first, model.second = freeze(model, "encoder"), freeze(model, "encoder")
    other = copy.deepcopy(model)
    other.first.undo()
    assert frozen(other) == ENCODER
    other.second.undo()
    assert frozen(other) == set()
    assert frozen(model) == ENCODER


def test_37_swapped_tensors():
    model = Tagger()
    guard = FrozenGuard(model)
    with freeze(model, "encoder"):
        guard.check()
    handle = freeze(model, "encoder")
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.double()
        model.load_state_dict(Tagger().double().state_dict())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert frozen(model) == ENCODER
    handle.undo()
    assert frozen(model) == set()


@pytest.mark.parametrize("tell", [False, True])
def test_38_momentum_in_an_inner_optimizer_and_slow_weights(tell):
    model, optimizer = fresh(lambda parameters, lr: Lookahead(SAM(parameters, ADAM, lr=lr)), {})
    for i in range(4):
        if i == 3:
            freeze(model, "encoder", optimizer=optimizer if tell else None)
        model.zero_grad()
        backward(model, i)
        optimizer.step()
    unfreeze(model, "encoder", optimizer=optimizer if tell else None)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = snapshot(model)
    optimizer.step()
    optimizer.step()
    assert bool(moved(model, before) & ENCODER) is not tell
    assert "head.weight" in moved(model, before)


def test_39_constants_of_the_author():
    model = Tagger()
    model.levels = nn.Parameter(torch.tensor([0.1, 0.9]), requires_grad=False)
    schedule = FreezeSchedule({0: ["head"], 5: ["*"]})
    assert "levels: requires_grad was False before lstm_freeze first saw it" in schedule.preview(
        model, 6
    )
    schedule.apply(model, 0)
    schedule.apply(model, 5)
    assert frozen(model) == {"levels"}
    unfreeze(model)
    assert frozen(model) == {"levels"}
    assert "levels: requires_grad was False" in str(status(model))
    unfreeze(model, "levels")
    assert frozen(model) == set()


def test_40_a_held_batch_norm_and_update_bn():
    torch.manual_seed(0)
    held = nn.Sequential(nn.Linear(C, C), nn.BatchNorm1d(C), nn.Linear(C, C))
    plain = copy.deepcopy(held)
    freeze(held, "1")
    guard = FrozenGuard(held)
    batches = [torch.randn(5, C) + 2 for _ in range(3)]
    for model in (held, plain):
        torch.optim.swa_utils.update_bn(batches, model)
    assert torch.equal(held[1].running_mean, plain[1].running_mean)
    assert held[1].running_mean.abs().sum() > 0
    guard.check()
    held(batches[0])
    guard.check()
