"""add_lora against torch's own parametrization, bit for bit where it says so, and with the rest."""

import copy
import io
import warnings
from fnmatch import fnmatch

import pytest
import torch
from _loops import LOOPS, on_loop
from _models import I, Tagger, bits, everything, moved, snapshot, trainable
from _oracle import GRADIENT_TOLERANCE, OUTPUT_TOLERANCE
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from lstm_freeze import (
    BiLSTM,
    FreezeSchedule,
    FrozenGuard,
    PrefixCache,
    add_lora,
    fingerprints,
    freeze,
    load_changes,
    param_groups,
    save_changes,
    select,
    status,
    unfreeze,
)
from lstm_freeze._recurrence import factors, operator

RANK = 3


class Update(nn.Module):
    """The oracle: W + s * B @ A by torch's parametrization."""

    def __init__(self, a, b, scale):
        super().__init__()
        self.a, self.b, self.scale = nn.Parameter(a.clone()), nn.Parameter(b.clone()), scale

    def forward(self, weight):
        return weight + self.scale * self.b @ self.a


def randomize(model):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("lora_B"):
                p.normal_(0, 0.1)


def oracle_of(model, lora, plain, alpha):
    """`plain`, a model from before add_lora, with the same factors as a parametrization."""
    named = dict(model.named_parameters())
    updates = {}
    for name in lora.parameters[::2]:
        weight = name.removesuffix("_lora_A")
        path, _, local = weight.rpartition(".")
        a, b = named[name].detach(), named[f"{weight}_lora_B"].detach()
        updates[weight] = Update(a, b, alpha / a.shape[0])
        owner = plain.get_submodule(path)
        owner.get_parameter(local).requires_grad_(False)
        parametrize.register_parametrization(owner, local, updates[weight])
    return updates


def inputs(form, dtype, proj):
    torch.manual_seed(2)
    x = torch.randn(5, 4, I, dtype=dtype, requires_grad=True)
    if form == "packed":
        return [x], lambda x: (pack_sequence([x[:3, 0], x[:5, 1], x[:1, 2]], False), None)
    if form == "hx":
        h = torch.randn(4, 4, proj or 4, dtype=dtype, requires_grad=True)
        c = torch.randn(4, 4, 4, dtype=dtype, requires_grad=True)
        return [x, h, c], lambda x, h, c: (x, (h, c))
    return [x], lambda x: (x, None)


@pytest.mark.parametrize(
    ("loop", "dtype"), [*((loop, torch.float32) for loop in LOOPS), ("torch", torch.float64)]
)
@pytest.mark.parametrize("proj", [0, 2])
@pytest.mark.parametrize(("form", "bias"), [("dense", True), ("packed", True), ("hx", False)])
def test_bilstm_against_the_parametrization(form, bias, proj, loop, dtype):
    torch.manual_seed(0)
    model = BiLSTM(I, 4, 2, bias=bias, proj_size=proj, dtype=dtype)
    plain = copy.deepcopy(model)
    lora = add_lora(model, rank=RANK, alpha=5.0)
    randomize(model)
    updates = oracle_of(model, lora, plain, 5.0)
    found, expected = [], []
    for net, into in ((model, found), (plain, expected)):
        leaves, call = inputs(form, dtype, proj)
        with on_loop(loop):
            output, (h, c) = net(*call(*leaves))
            output = getattr(output, "data", output)
            (output.square().sum() + (h * 2).sum() + c.square().sum()).backward()
        into += [output, h, c, *(leaf.grad for leaf in leaves)]
    named = dict(model.named_parameters())
    for weight, update in updates.items():
        found += [named[f"{weight}_lora_A"].grad, named[f"{weight}_lora_B"].grad]
        expected += [update.a.grad, update.b.grad]
    if bias:
        found += [p.grad for n, p in named.items() if "bias" in n]
        expected += [p.grad for n, p in plain.named_parameters() if "bias" in n]
    assert len(updates) == (12 if proj else 8)
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        tolerance = (OUTPUT_TOLERANCE if k < 3 else GRADIENT_TOLERANCE)[dtype]
        torch.testing.assert_close(a, b, atol=tolerance * max(1.0, b.abs().max().item()), rtol=0)
    assert all(p.grad is None for n, p in named.items() if n in updates)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_against_the_parametrization(bias, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 5, bias, dtype=dtype), nn.Tanh(), nn.Linear(5, 2, bias, dtype=dtype)
    )
    plain = copy.deepcopy(model)
    lora = add_lora(model, rank=2, alpha=3.0)
    randomize(model)
    updates = oracle_of(model, lora, plain, 3.0)
    x = torch.randn(7, 6, dtype=dtype)
    pair = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [model(pair[0]), plain(input=pair[1])]
    for output in outputs:
        output.square().sum().backward()
    tolerance = {"atol": GRADIENT_TOLERANCE[dtype], "rtol": 0}
    torch.testing.assert_close(*outputs, **tolerance)
    torch.testing.assert_close(pair[0].grad, pair[1].grad, **tolerance)
    named = dict(model.named_parameters())
    for weight, update in updates.items():
        torch.testing.assert_close(named[f"{weight}_lora_A"].grad, update.a.grad, **tolerance)
        torch.testing.assert_close(named[f"{weight}_lora_B"].grad, update.b.grad, **tolerance)


class Net(nn.Module):
    """A batch_first encoder, whose output is no contiguous tensor, and a head."""

    def __init__(self, **options):
        super().__init__()
        self.embedding = nn.Embedding(7, I)
        self.lstm = BiLSTM(I, 8, 2, batch_first=True, **options)
        self.head = nn.Linear(2 * (options.get("proj_size") or 8), 3)

    def forward(self, tokens):
        return self.head(self.lstm(self.embedding(tokens))[0])


TOKENS = torch.arange(30).reshape(5, 6) % 7


@pytest.mark.parametrize("before", [lambda m: None, freeze], ids=["trainable", "frozen"])
@pytest.mark.parametrize("options", [{}, {"proj_size": 2}, {"bias": False}])
def test_the_first_forward_and_what_remove_leaves_have_the_bits_of_the_base(options, before):
    torch.manual_seed(0)
    model = Net(**options)
    before(model)
    state, kept = everything(model), snapshot(model)
    output = model(TOKENS)
    with torch.no_grad():
        quiet = model(TOKENS)
    lora = add_lora(model, rank=2)
    assert bits([model(TOKENS)]) == bits([output])
    with torch.no_grad():
        assert bits([model(TOKENS)]) == bits([quiet])
    randomize(model)
    assert not torch.equal(model(TOKENS), output)
    lora.remove()
    assert bits([model(TOKENS)]) == bits([output])
    assert snapshot(model) == kept
    assert everything(model) == state
    assert type(model.head) is nn.Linear
    lora.remove()


@pytest.mark.parametrize("cast", ["autocast", "bfloat16", "half the weights are transposed"])
def test_the_first_forward_in_other_forms(cast):
    torch.manual_seed(0)
    lstm, x = BiLSTM(I, 8), torch.randn(5, 4, I)
    if cast == "bfloat16":
        lstm, x = lstm.bfloat16(), x.bfloat16()
    if cast.startswith("half"):
        lstm.weight_hh_l0 = nn.Parameter(lstm.weight_hh_l0.detach().t().contiguous().t())
    with torch.autocast("cpu", torch.bfloat16, enabled=cast == "autocast"):
        before = lstm(x)[0]
        add_lora(lstm)
        assert bits([lstm(x)[0]]) == bits([before])
        randomize(lstm)
        assert not torch.equal(lstm(x)[0], before)


@pytest.mark.parametrize("options", [{}, {"proj_size": 2}])
def test_merge_computes_the_same_and_gives_back_what_trained(options):
    torch.manual_seed(0)
    model = Net(**options)
    freeze(model, "lstm[0]")
    state, before = everything(model), snapshot(model)
    lora = add_lora(model, exclude="lstm[1].reverse", rank=2, alpha=1.0)
    randomize(model)
    output, encoded = model(TOKENS), model.lstm(model.embedding(TOKENS))[0]
    named = {n: p.detach().clone() for n, p in model.named_parameters()}
    lora.merge()
    assert bits([model.lstm(model.embedding(TOKENS))[0]]) == bits([encoded])
    torch.testing.assert_close(model(TOKENS), output)
    assert everything(model) == state
    changed = {n.removesuffix("_lora_A") for n in named if n.endswith("_lora_A")}
    assert moved(model, before) == changed
    for name in changed:
        expected = named[name] + 0.5 * named[f"{name}_lora_B"] @ named[f"{name}_lora_A"]
        torch.testing.assert_close(model.get_parameter(name).detach(), expected)
    merged = snapshot(model)
    lora.merge()
    assert snapshot(model) == merged


def test_no_gradient_of_the_size_of_a_weight_is_formed(monkeypatch):
    shapes, real = [], operator.backward

    def spy(*arguments):
        *others, made = real(*arguments)
        shapes.extend(tuple(g.shape) for side in made for g in side if g is not None)
        return *others, made

    monkeypatch.setattr(operator, "backward", spy)
    lstm = BiLSTM(I, 8, proj_size=2, bias=False)
    add_lora(lstm, rank=1)
    lstm(torch.randn(5, 4, I))[0].sum().backward()
    assert set(shapes) == {(1, I), (32, 1), (1, 2), (1, 8), (2, 1)}
    shapes.clear()
    unfreeze(lstm)
    lstm(torch.randn(5, 4, I))[0].sum().backward()
    assert {(32, I), (32, 2), (2, 8)} < set(shapes)


def gradients_of_factors(lstm, x):
    lstm.zero_grad()
    output = lstm(x)[0]
    (output if isinstance(output, torch.Tensor) else output.data).square().sum().backward()
    return {n: p.grad for n, p in lstm.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("proj", [0, 24])
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_freezing_factors_changes_no_bit_of_the_other_gradients(packed, proj):
    torch.manual_seed(0)
    lstm = BiLSTM(40, 48, num_layers=2, proj_size=proj)
    add_lora(lstm, rank=1)  # a product with one column takes another path than one with two
    randomize(lstm)
    x = torch.randn(60, 16, 40)  # more rows than one block has
    if packed:
        x = pack_padded_sequence(x, torch.arange(60, 44, -1))
    everything = gradients_of_factors(lstm, x)
    for targets in (
        ["*_lora_A"],
        ["*_lora_B"],
        ["*_ih_*_lora_*"],
        ["*_hh_*_lora_*"],
        ["*_reverse_lora_*"],
        ["*_ih_*_lora_A", "*_reverse_lora_B"],
        ["*_l1*_lora_*"],
    ):
        names = [n for n in everything if any(fnmatch(n, target) for target in targets)]
        with freeze(lstm, names):
            left = gradients_of_factors(lstm, x)
        assert left.keys() == everything.keys() - names
        assert bits(left.values()) == bits(everything[name] for name in left), targets


def test_blocks_of_rows_give_the_gradients_of_all_rows(monkeypatch):
    torch.manual_seed(0)
    lstm = BiLSTM(I, 8, num_layers=2, proj_size=3, dtype=torch.float64)
    add_lora(lstm, rank=2)
    randomize(lstm)
    x = torch.randn(7, 4, I, dtype=torch.float64)
    whole = gradients_of_factors(lstm, x)
    monkeypatch.setattr(factors, "_BLOCK_BYTES", 5 * 32 * 8)  # five rows of 32 gates
    in_blocks = gradients_of_factors(lstm, x)
    assert len(whole) == 24 + 8  # and the biases
    torch.testing.assert_close(in_blocks, whole, rtol=1e-12, atol=1e-12)


def test_factors_that_are_frozen_get_no_gradient_and_the_base_may_train_beside_them():
    torch.manual_seed(0)
    lstm = BiLSTM(I, 4)
    add_lora(lstm, rank=2)
    randomize(lstm)
    freeze(lstm, "*_lora_A")
    unfreeze(lstm, "weight_hh_l0")
    lstm(torch.randn(5, 4, I))[0].sum().backward()
    have = {n for n, p in lstm.named_parameters() if p.grad is not None}
    assert have == {n for n, p in lstm.named_parameters() if "lora_B" in n or "bias" in n} | {
        "weight_hh_l0"
    }


@pytest.mark.parametrize("proj", [0, 1])
def test_second_derivatives(proj):
    torch.manual_seed(0)
    lstm = BiLSTM(2, 2, proj_size=proj, dtype=torch.float64)
    add_lora(lstm, rank=1)
    randomize(lstm)
    names = [n for n in dict(lstm.named_parameters()) if "lora" in n]
    x = torch.randn(3, 2, 2, dtype=torch.float64)

    def run(*factors):
        return functional_call(lstm, dict(zip(names, factors, strict=True)), (x,))[0]

    factors = [lstm.get_parameter(n).detach().requires_grad_() for n in names]
    assert torch.autograd.gradcheck(run, factors)
    assert torch.autograd.gradgradcheck(run, factors)
    one = torch.func.grad(lambda *f: run(*f).square().sum(), argnums=0)(*factors)
    (two,) = torch.autograd.grad(run(*factors).square().sum(), factors[0])
    torch.testing.assert_close(one, two)


def train(model, optimizer, steps=3, first=0):
    for k in range(first, first + steps):
        torch.manual_seed(k)
        optimizer.zero_grad()
        model(torch.randint(0, 7, (5, 6))).square().mean().backward()
        optimizer.step()


def test_training_moves_the_factors_and_not_a_bit_of_the_base():
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    train(model, optimizer, 1)  # momentum that a frozen base must not be moved by
    guard = FrozenGuard(model).attach(optimizer)
    lora = add_lora(model, "lstm", "head", rank=2, optimizer=optimizer)
    before = snapshot(model)
    with guard:
        train(model, optimizer, 4)
        assert guard.checks == 4
    assert len([n for n in before if n not in trainable(model)]) == 9
    changed = moved(model, before)
    assert changed == trainable(model)
    assert set(lora.parameters) < changed
    (group,) = [g for g in optimizer.param_groups if g.get("name") == "lora"]
    assert [id(p) for p in group["params"]] == [id(model.get_parameter(n)) for n in lora.parameters]
    assert group["lr"] == 0.05


def test_the_guard_is_told_of_frozen_factors_that_leave():
    model = Net()
    lora = add_lora(model, "lstm", rank=2)
    freeze(model)
    guard = FrozenGuard(model)
    lora.remove()
    guard.check()
    with torch.no_grad():
        model.embedding.weight[0] += 1
    with pytest.raises(RuntimeError, match=r"embedding\.weight"):
        guard.check()


def test_the_optimizer_lets_go_and_its_schedulers_go_on():
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    lora = add_lora(model, "lstm", rank=2, optimizer=optimizer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5**t)
    train(model, optimizer)
    factors = [model.get_parameter(n) for n in lora.parameters]
    assert all(p in optimizer.state for p in factors)
    lora.merge()
    assert not any(p in optimizer.state for p in factors)
    scheduler.step()
    before = snapshot(model)
    train(model, optimizer)
    assert moved(model, before) == set(before)
    add_lora(model, "lstm", rank=2, optimizer=optimizer)
    assert len(optimizer.param_groups) == 2  # the empty group is used again


def test_names_of_factors():
    model = nn.ModuleDict({"lstm": BiLSTM(I, 4, 2, proj_size=2), "head": nn.Linear(4, 2)})
    lora = add_lora(model, "lstm[0]", "head", rank=2)
    assert len(lora.parameters) == 14
    assert set(select(model, "lora")) == set(lora.parameters)
    assert set(select(model, kinds="lora")) == {n for n in lora.parameters if "lstm" in n}
    assert list(select(model, "head.lora")) == ["head.weight_lora_A", "head.weight_lora_B"]
    hh = "lstm.weight_hh_l0_reverse"
    assert set(select(model, "lstm[0].reverse.weight_hh")) == {hh, f"{hh}_lora_A", f"{hh}_lora_B"}
    assert set(select(model, "lstm[0].reverse.weight_hh", exclude="lora")) == {hh}
    assert set(select(model, hh)) == {hh}  # its own path
    assert set(select(model, "lstm[0].lora", kinds="weight_hr")) == {
        f"lstm.weight_hr_l0{r}_lora_{f}" for r in ("", "_reverse") for f in "AB"
    }
    assert {n for n in select(model, "lstm[0:2].lora")} == set(select(model, kinds="lora"))
    with pytest.raises(ValueError, match='this LSTM has no "lora"'):
        select(BiLSTM(2, 2), kinds="lora")
    with pytest.raises(ValueError, match='"lora": no such module'):
        select(BiLSTM(2, 2), "lora")


def test_status_groups_and_fingerprints_know_the_factors():
    model = Net()
    base = fingerprints(model)
    lora = add_lora(model, "lstm[1]", rank=2)
    rows = {row.name: row for row in status(model).rows}
    assert rows["lstm[1].forward"].total > rows["lstm[0].forward"].total
    groups = {g["name"]: {id(p) for p in g["params"]} for g in param_groups(model, 0.1)}
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    name = "weight_hh_l1_reverse_lora_A"
    assert id(model.lstm.get_parameter(name)) in groups["lstm[1].reverse"]
    assert name in model.lstm.groups[3].names
    assert fingerprints(model).items() >= base.items()
    assert fingerprints(model).keys() - base.keys() == set(lora.parameters)


def test_a_schedule_may_train_the_factors_alone():
    model = Net()
    add_lora(model, "lstm", rank=2)
    optimizer = torch.optim.AdamW(param_groups(model, 0.05))
    schedule = FreezeSchedule({0: ["head"], 1: ["lora"], 2: ["head", "lstm[1].lora"]})
    held = []
    for epoch in range(3):
        held.append(schedule.apply(model, epoch, optimizer=optimizer))
        before = snapshot(model)
        train(model, optimizer, 2)
        assert moved(model, before) == trainable(model)
        expected = {0: "head", 1: "lstm"}.get(epoch)
        names = {n for n in before if "lora" in n} if epoch == 1 else {"head.weight", "head.bias"}
        if epoch == 2:
            names |= {n for n in before if "_l1" in n and "lora" in n}
        assert trainable(model) == names, expected


def test_a_run_resumes_with_the_same_bits():
    def build():
        torch.manual_seed(0)
        model = Net()
        lora = add_lora(model, "lstm", rank=2)
        return model, lora, torch.optim.AdamW(model.parameters(), lr=0.05)

    whole, _, optimizer = build()
    file = io.BytesIO()
    train(whole, optimizer, 3)
    torch.save([whole.state_dict(), optimizer.state_dict()], file)
    train(whole, optimizer, 3, first=3)
    resumed, _, optimizer = build()
    randomize(resumed)
    file.seek(0)
    state, of_optimizer = torch.load(file, weights_only=True)
    resumed.load_state_dict(state, strict=True)
    optimizer.load_state_dict(of_optimizer)
    train(resumed, optimizer, 3, first=3)
    assert snapshot(resumed) == snapshot(whole)
    assert Net().state_dict().keys() < state.keys()  # the base's own keys are kept


def test_its_own_state_dict_and_files_of_changes(tmp_path):
    torch.manual_seed(0)
    model = Net()
    pretrained = copy.deepcopy(model)
    base = fingerprints(model)
    lora = add_lora(model, "lstm", rank=2)
    freeze(model, exclude="lora")
    train(model, torch.optim.AdamW(model.parameters(), lr=0.05))
    assert lora.state_dict().keys() == set(lora.parameters)
    save_changes(model, tmp_path / "lora.safetensors", base)
    others = [copy.deepcopy(pretrained) for _ in range(2)]
    handles = [add_lora(other, "lstm", rank=2) for other in others]
    handles[0].load_state_dict(lora.state_dict())
    load_changes(others[1], tmp_path / "lora.safetensors")
    for other in others:
        assert snapshot(other) == snapshot(model)
    before = snapshot(others[0])
    wrong = {**lora.state_dict(), "more": torch.ones(1)}
    wrong["lstm.weight_hh_l0_lora_A"] = torch.ones(9, 8)
    with pytest.raises(ValueError, match=r"more, lstm\.weight_hh_l0_lora_A"):
        handles[0].load_state_dict(wrong)
    assert snapshot(others[0]) == before


def test_copies_and_pickles_compute_and_end_on_their_own():
    torch.manual_seed(0)
    model = Net()
    base = model(TOKENS)
    lora = add_lora(model, rank=2)
    randomize(model)
    output = model(TOKENS)
    file = io.BytesIO()
    torch.save((model, lora), file)
    file.seek(0)
    copies = [copy.deepcopy((model, lora)), torch.load(file, weights_only=False)]
    for other, _ in copies:
        assert bits([other(TOKENS)]) == bits([output])
        other(TOKENS).sum().backward()
        assert other.lstm.weight_hh_l0_lora_B.grad is not None
    copies[0][1].remove()
    assert bits([copies[0][0](TOKENS)]) == bits([base])
    copies[1][1].merge()
    torch.testing.assert_close(copies[1][0](TOKENS), output)
    for other, _ in copies:
        assert trainable(other) == {n for n, _ in other.named_parameters()}
    assert bits([model(TOKENS)]) == bits([output])
    assert bits([copy.deepcopy(model)(TOKENS)]) == bits([output])


def test_the_context_manager_removes():
    model = Net()
    with add_lora(model, rank=2) as lora:
        assert repr(lora) == "LoRA(9 weights, 690 numbers in their factors)"
    assert not any("lora" in n for n, _ in model.named_parameters())
    assert repr(lora) == "LoRA(ended)"


def test_the_prefix_cache_only_misses():
    torch.manual_seed(0)
    model = Net()
    add_lora(model, "lstm", rank=2)
    freeze(model, "embedding", "lstm[0]")
    model.lstm.prefix_cache = cache = PrefixCache()
    first = model(TOKENS)
    again = model(TOKENS)
    assert cache.stats()["hits"] == 5
    assert torch.equal(first, again)
    with torch.no_grad():
        model.lstm.weight_hh_l0_lora_B += 0.1
    changed = model(TOKENS)
    assert cache.stats()["hits"] == 5
    model.lstm.prefix_cache = None
    torch.testing.assert_close(model(TOKENS), changed)
    assert not torch.equal(changed, first)
    model.lstm.prefix_cache = cache
    model.lstm.lora_scales = {n: 2 * s for n, s in model.lstm.lora_scales.items()}
    model(TOKENS)
    assert cache.stats()["hits"] == 5
    unfreeze(model, "lstm[0].lora")
    misses = cache.stats()["misses"]
    model(TOKENS)
    assert cache.stats()["misses"] == misses  # a trained factor: nothing below is served


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_and_exported_it_computes_the_same():
    torch.manual_seed(0)
    model = Net()
    add_lora(model, rank=2)
    randomize(model)
    output = model(TOKENS)
    output.sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager")
    found = compiled(TOKENS)
    found.sum().backward()
    torch.testing.assert_close(found, output)
    for name, grad in grads.items():
        torch.testing.assert_close(model.get_parameter(name).grad, grad)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (TOKENS,))
    torch.testing.assert_close(program.module()(TOKENS), output)


def test_compiled_code_follows_when_factors_come_and_go():
    torch.manual_seed(0)
    model = Net()
    compiled = torch.compile(model, backend="eager")
    base = compiled(TOKENS)
    lora = add_lora(compiled, rank=2)
    randomize(model)
    torch.testing.assert_close(compiled(TOKENS), model(TOKENS))
    assert not torch.allclose(compiled(TOKENS), base)
    lora.remove()
    torch.testing.assert_close(compiled(TOKENS), base)


def test_lengths_and_an_onnx_like_trace_use_the_update():
    torch.manual_seed(0)
    lstm = BiLSTM(I, 8)
    x, lengths = torch.randn(6, 3, I), [4, 6, 2]
    lora = add_lora(lstm, rank=2)
    randomize(lstm)
    output = lstm(x, lengths=lengths)[0]
    masked = torch.func.vmap(lambda x: lstm(x, lengths=torch.tensor(lengths))[0])(x[None])[0]
    torch.testing.assert_close(masked, output)
    lora.merge()
    torch.testing.assert_close(lstm(x, lengths=lengths)[0], output)


def test_what_an_nn_lstm_cannot_hold():
    lstm = BiLSTM(I, 4)
    weights = [[id(w) for w in ws] for ws in lstm.all_weights]
    lora = add_lora(lstm)
    assert [[id(w) for w in ws] for ws in lstm.all_weights] == weights
    with pytest.raises(ValueError, match=r"LoRA factors \(weight_ih_l0, .*merge\(\) or remove\(\)"):
        lstm.to_lstm()
    lora.merge()
    assert lstm.to_lstm()(torch.zeros(2, 1, I))[0].shape == (2, 1, 8)


def test_a_factor_that_does_not_fit_is_named():
    lstm = BiLSTM(I, 4)
    add_lora(lstm, rank=2)
    lstm.weight_hh_l0_lora_A = nn.Parameter(torch.zeros(3, 4))
    with pytest.raises(
        RuntimeError, match=r"LoRA factors of weight_hh_l0 .* B \(16, 2\) .* A \(3, 4\)"
    ):
        lstm(torch.zeros(2, 1, I))


def two():
    return nn.ModuleDict({"a": BiLSTM(2, 2), "b": BiLSTM(2, 2), "head": nn.Linear(4, 2)})


def test_several_rnns_and_kinds():
    model = two()
    lora = add_lora(model, rank=1)
    assert len(lora.parameters) == 2 * 9
    lora.remove()
    lora = add_lora(model["a"], kinds="weight_hh", directions="reverse")
    assert lora.parameters == ("weight_hh_l0_reverse_lora_A", "weight_hh_l0_reverse_lora_B")
    lora = add_lora(model, "b[0].weight_ih", "head", rank=1)
    assert {n.split(".")[0] for n in lora.parameters} == {"b", "head"}


def tied():
    model = nn.ModuleDict({"head": nn.Linear(4, 2), "other": nn.Linear(4, 2)})
    model["other"].weight = model["head"].weight
    return model


def twice():
    model = two()
    add_lora(model, "head")
    return model


def normed():
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2)))


LBFGS = lambda m: torch.optim.LBFGS(m.parameters())  # noqa: E731
BAD = [
    (two, {"rank": 0}, ValueError, "`rank` must be at least 1, got 0"),
    (two, {"rank": 1.5}, TypeError, "`rank` must be an integer, got 1.5"),
    (two, {"rank": True}, TypeError, "`rank` must be an integer, got True"),
    (two, {"alpha": 0}, ValueError, "`alpha` must be above 0, got 0"),
    (two, {"alpha": float("inf")}, ValueError, "`alpha` must be finite"),
    (two, {"alpha": "1"}, TypeError, "`alpha` must be a number"),
    (two, {"kinds": "weight_hh"}, ValueError, "RNN"),
    (two, {"targets": ["hed"]}, ValueError, 'did you mean "head"'),
    (two, {"targets": []}, ValueError, "`targets` got an empty list"),
    (two, {"targets": ["a", "head.bias"]}, ValueError, '"head.bias": names no weight of a BiLSTM'),
    (two, {"targets": ["a"], "exclude": "*"}, ValueError, "leaves nothing selected"),
    (two, {"targets": ["a"], "exclude": "*weight*"}, ValueError, "nothing chosen is a weight"),
    (lambda: nn.Embedding(3, 2), {}, ValueError, "nothing chosen is a weight"),
    (
        lambda: nn.LSTM(2, 2),
        {},
        ValueError,
        r"an nn\.LSTM, .* replace_lstm\(model\) or BiLSTM\.from",
    ),
    (lambda: nn.Sequential(nn.LSTM(2, 2), nn.Linear(2, 2)), {}, ValueError, r'"0" is an nn\.LSTM'),
    (lambda: nn.Sequential(nn.GRU(2, 2), nn.Linear(2, 2)), {}, ValueError, r'GRU.*exclude="0"'),
    (lambda: nn.MultiheadAttention(4, 2), {}, ValueError, "NonDynamicallyQuantizableLinear"),
    (twice, {}, ValueError, r"'head\.weight' has LoRA factors already; merge\(\) or remove\(\)"),
    (tied, {}, ValueError, r"'head\.weight' is tied to 'other\.weight'"),
    (normed, {}, ValueError, r"'0\.weight' is parametrised"),
    (lambda: nn.LazyLinear(2), {}, ValueError, "'weight' has no shape yet"),
    (two, {"optimizer": "sgd"}, TypeError, "`optimizer` must be a torch.optim.Optimizer"),
    (two, {"optimizer": LBFGS}, ValueError, "`optimizer` is an LBFGS"),
    (
        two,
        {"optimizer": lambda m: [torch.optim.SGD(c.parameters(), 0.1) for c in m.children()]},
        ValueError,
        "`optimizer` must be the one",
    ),
    (lambda: "module", {}, TypeError, "`module` must be a torch.nn.Module"),
]


@pytest.mark.parametrize(("build", "call", "kind", "message"), BAD)
def test_bad_arguments_change_nothing(build, call, kind, message):
    model, call = build(), dict(call)
    is_module = isinstance(model, nn.Module)
    if callable(call.get("optimizer")):
        call["optimizer"] = call["optimizer"](model)
    targets = call.pop("targets", None)
    before = everything(model) if is_module else None
    with pytest.raises(kind, match=message):
        add_lora(model, *([] if targets is None else [targets]), **call)
    if is_module:
        assert everything(model) == before


def test_an_error_in_the_middle_leaves_no_factor(monkeypatch):
    model = two()
    before = everything(model)
    with torch.no_grad():
        model["b"].weight_hh_l0.grad = None
    monkeypatch.setattr("lstm_freeze._between.lora.freeze", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        add_lora(model)
    assert everything(model) == before
    assert type(model["head"]) is nn.Linear
    assert "lora_scales" not in vars(model["a"])


def test_tagger_trains_like_any_other():
    """The helper model of the other tests: time-major, and read by layers."""
    torch.manual_seed(0)
    model = Tagger()
    add_lora(model, "encoder.lstm", layers=-1, rank=1)
    assert {n for n in trainable(model) if "weight_hh_l1" in n} == {
        f"encoder.lstm.weight_hh_l1{r}_lora_{f}" for r in ("", "_reverse") for f in "AB"
    }


@pytest.mark.parametrize(
    ("base", "factors"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)]
)
@pytest.mark.parametrize("kind", [BiLSTM, nn.Linear])
def test_factors_may_have_another_dtype_than_their_weights(kind, base, factors):
    """Factors in float32 beside frozen weights in 16 bits are common."""
    model = kind(I, 4, dtype=base)
    lora = add_lora(model, rank=RANK)
    randomize(model)
    trained = [p for name, p in model.named_parameters() if "lora" in name]
    for parameter in trained:
        parameter.data = parameter.data.to(factors)
    x = torch.randn(5, 2, I, dtype=base)

    def run():
        return model(x) if kind is nn.Linear else model(x)[0]

    output = run()
    output.float().square().sum().backward()
    assert output.dtype == base
    assert all(p.grad.dtype == factors and p.grad.any() for p in trained)
    lora.merge()
    torch.testing.assert_close(run(), output, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("factor", ["A", "B"])
def test_a_factor_without_memory_is_named(factor):
    model = BiLSTM(I, 4)
    add_lora(model, rank=RANK)
    name = f"weight_hh_l0_reverse_lora_{factor}"
    getattr(model, name).untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=f"{name} has lost its memory"):
        model(torch.randn(5, 2, I))
