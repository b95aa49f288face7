"""Tracers, compilers and exporters take BiLSTM at least as well as nn.LSTM."""

import io
import time
import warnings
from collections.abc import Callable

import pytest
import torch
from _oracle import B, Case, H, I, P, T, assert_close, assert_same_bits, example, pair, results
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lstm_freeze import BiLSTM, freeze

WIDE = {"num_layers": 2, "bidirectional": True}
X = torch.linspace(-1, 1, T * B * I).sin().reshape(T, B, I)
LONGER = torch.linspace(-2, 1, 3 * T * B * I).sin().reshape(3 * T, B, I)
HX = torch.full((4, B, H), 0.1), torch.full((4, B, H), -0.2)


class Tagger(nn.Module):
    """A model around an LSTM: what users trace, compile and export."""

    def __init__(self, lstm: nn.Module) -> None:
        super().__init__()
        self.before = nn.Linear(I, I)
        self.lstm = lstm
        self.after = nn.Linear(lstm.hidden_size * 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output, (h_n, _) = self.lstm(self.before(x).tanh())
        return self.after(output) + h_n.mean()


class Packing(nn.Module):
    def __init__(self, lstm: nn.Module) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return pad_packed_sequence(self.lstm(packed)[0])[0]


def taggers(**options: object) -> tuple[Tagger, Tagger]:
    found = []
    for lstm in pair(**WIDE, **options):
        torch.manual_seed(0)
        found.append(Tagger(lstm))
    return tuple(found)


# --- shapes without numbers


@pytest.mark.parametrize("form", ["dense", "unbatched", "packed", "packed_unsorted"])
@pytest.mark.parametrize("proj_size", [0, P])
@pytest.mark.parametrize("hx", [False, True])
def test_meta_tensors(hx: bool, proj_size: int, form: str):
    case = Case(2, True, True, True, proj_size, torch.float32, form, hx)
    _, bilstm = pair(**case.options)
    call = example(case)
    expected = results(bilstm(*call.args))
    on_meta = BiLSTM(I, H, device="meta", **{k: v for k, v in case.options.items()})
    found = results(on_meta(*(to_meta(argument) for argument in call.args)))
    for name, tensor in found.items():
        assert tensor.is_meta
        assert (tensor.shape, tensor.dtype) == (expected[name].shape, expected[name].dtype)


def to_meta(argument: object) -> object:
    if isinstance(argument, PackedSequence):
        return argument._replace(data=argument.data.to("meta"))
    if isinstance(argument, tuple):
        return tuple(to_meta(item) for item in argument)
    return argument.to("meta")


def test_meta_backward_gives_gradients_their_shapes():
    bilstm = BiLSTM(I, H, 2, device="meta")
    bilstm(X.to("meta"))[0].sum().backward()
    for parameter in bilstm.parameters():
        assert parameter.grad.shape == parameter.shape


def test_fake_tensors():
    for cls in (nn.LSTM, BiLSTM):
        with FakeTensorMode():
            module = cls(I, H, 2, bidirectional=True)
            output, (h_n, c_n) = module(torch.randn(T, B, I))
            (output.sum() + h_n.sum()).backward()
            assert output.shape == (T, B, 2 * H)
            assert h_n.shape == c_n.shape == (4, B, H)
            assert module.weight_hh_l0.grad.shape == (4 * H, H)


# --- recorded programs


def test_symbolic_tracing_takes_it_as_a_leaf():
    for model in taggers():
        traced = torch.fx.symbolic_trace(model)
        calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
        assert calls == ["before", "lstm", "after"]
        assert_same_bits({"y": traced(X)}, {"y": model(X)})


def test_symbolic_tracing_with_hx():
    class Stateful(nn.Module):
        def __init__(self, lstm: nn.Module) -> None:
            super().__init__()
            self.lstm = lstm

        def forward(self, x, h, c):
            return self.lstm(x, (h, c))

    _, bilstm = pair(**WIDE)
    traced = torch.fx.symbolic_trace(Stateful(bilstm))
    assert_same_bits(results(traced(X, *HX)), results(bilstm(X, HX)))


def test_make_fx_records_what_runs():
    _, bilstm = pair(**WIDE)
    recorded = make_fx(lambda x: bilstm(x)[0])(X)
    assert_close({"y": recorded(LONGER[:T])}, {"y": bilstm(LONGER[:T])[0]}, 1e-6)


# torch.jit is deprecated, and every Python number that nn.LSTM checks too draws a TracerWarning
jit = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.* is deprecated:DeprecationWarning", "ignore::torch.jit.TracerWarning"
)


@jit
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_jit_trace(dtype: torch.dtype):
    for model in taggers(dtype=dtype):
        model.to(dtype)
        traced = torch.jit.trace(model, (X.to(dtype),))
        assert_close({"y": traced(X.to(dtype))}, {"y": model(X.to(dtype))}, 1e-6)
        other = LONGER[:T].to(dtype)
        assert_close({"y": traced(other)}, {"y": model(other)}, 1e-6)
        traced(other).sum().backward()
        assert model.lstm.weight_hh_l0.grad.any()


@jit
def test_jit_trace_holds_for_other_lengths_and_batches():
    for model in taggers():
        traced = torch.jit.trace(model, (X,))
        for x in (LONGER, LONGER[:, :1], LONGER.repeat(1, 3, 1), LONGER[:1]):
            assert_close({"y": traced(x)}, {"y": model(x)}, 1e-6)


@jit
def test_jit_trace_with_hx_and_packing():
    for lstm in pair(**WIDE):
        traced = torch.jit.trace(lstm, (X, HX))
        assert_close(results(traced(X, HX)), results(lstm(X, HX)), 1e-6)
        model, lengths = Packing(lstm), torch.tensor([2, T, 1, 3])
        traced = torch.jit.trace(model, (X, lengths))
        assert_close({"y": traced(X, lengths)}, {"y": model(X, lengths)}, 1e-6)


# --- torch.compile


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counting:
    """A torch.compile backend that counts the nodes of every forward and backward graph."""

    def __init__(self) -> None:
        from torch._dynamo.backends.common import aot_autograd  # seconds to import

        self.nodes = []
        self.backend = aot_autograd(fw_compiler=self.count, bw_compiler=self.count)

    def count(self, graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        from torch._functorch.aot_autograd import make_boxed_func

        self.nodes.append(len(graph.graph.nodes))
        return make_boxed_func(graph)


def steps(module: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor | None]:
    """The output and all gradients of one training step."""
    module.zero_grad()
    output = module(x)
    output.cos().sum().backward()
    grads = {name.replace("_orig_mod.", ""): p.grad for name, p in module.named_parameters()}
    return {"output": output.detach(), **grads}


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("options", [{}, {"proj_size": 0, "batch_first": True}, {"bias": False}])
def test_compile_has_no_graph_break_and_the_same_numbers(options):
    lstm, model = taggers(**options)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected = steps(model, X)
    assert_close(steps(compiled, X), expected, 1e-6)
    assert_close(expected, steps(lstm, X), 1e-5)
    with torch.no_grad():
        assert_close({"y": compiled(X)}, {"y": model(X)}, 1e-6)
    torch._dynamo.reset()
    explained = torch._dynamo.explain(model)(X)
    assert explained.graph_break_count == 0
    assert explained.graph_count == 1


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("training", [True, False])
def test_compiled_graphs_do_not_grow_with_time(training: bool):
    sizes = {}
    for time_steps in (2, 20, 200):
        torch._dynamo.reset()
        _, model = taggers()
        counting = Counting()
        compiled = torch.compile(model, backend=counting.backend, fullgraph=True, dynamic=False)
        x = torch.randn(time_steps, B, I)
        if training:
            steps(compiled, x)
        else:
            with torch.no_grad():
                compiled(x)
        sizes[time_steps] = counting.nodes
    assert len(sizes[2]) == 1 + training
    assert sizes[2] == sizes[20] == sizes[200]


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_one_compilation_serves_all_lengths():
    _, model = taggers()
    counting = Counting()
    compiled = torch.compile(model, backend=counting.backend, fullgraph=True, dynamic=True)
    for length in (5, 7, 12, 17):
        x = LONGER[:length]
        with torch.no_grad():
            assert_close({"y": compiled(x)}, {"y": model(x)}, 1e-6)
    assert len(counting.nodes) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_freezing_between_compiled_steps_is_followed():
    _, model = taggers()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    full = steps(compiled, X)
    handle = freeze(model.lstm, layers=[0])
    found = steps(compiled, X)
    for name, gradient in found.items():
        if "_l0" in name:
            assert gradient is None, name
    assert_close(found, {n: None if "_l0" in n else g for n, g in full.items()}, 1e-6)
    handle.undo()
    assert_close(steps(compiled, X), full, 1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_hx_packed_and_dropout():
    _, bilstm = pair(dropout=0.5, **WIDE)
    compiled = torch.compile(bilstm.eval(), backend="aot_eager", fullgraph=True)
    assert_close(results(compiled(X, HX)), results(bilstm(X, HX)), 1e-6)
    assert_close(results(compiled(X[:, 0])), results(bilstm(X[:, 0])), 1e-6)
    compiled = torch.compile(bilstm.train(), backend="aot_eager", fullgraph=True)
    torch.manual_seed(0)
    first = compiled(X)[0]
    torch.manual_seed(0)
    assert torch.equal(compiled(X)[0], first)
    assert not torch.equal(compiled(X)[0], first)


def torch_compiles_pad_packed_sequence() -> bool:
    """Whether this version's compiler takes a packed input apart, with no LSTM around."""
    packed = pack_padded_sequence(X, torch.tensor([2, T, 1, 3]), enforce_sorted=False)
    try:
        torch.compile(pad_packed_sequence, backend="aot_eager")(packed)
    except torch._dynamo.exc.TorchRuntimeError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_packed():
    if not torch_compiles_pad_packed_sequence():
        pytest.skip("this torch.compile cannot compile pad_packed_sequence")
    _, bilstm = pair(**WIDE)
    packed = torch.compile(Packing(bilstm.eval()), backend="aot_eager")
    lengths = torch.tensor([2, T, 1, 3])
    assert_close({"y": packed(X, lengths)}, {"y": Packing(bilstm)(X, lengths)}, 1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@jit
def test_inductor_has_the_same_numbers():
    _, model = taggers()
    expected = steps(model, X)
    assert_close(steps(torch.compile(model, fullgraph=True), X), expected, 1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@jit
@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
def test_inductor_does_not_take_longer_for_longer_sequences():
    seconds = {}
    for length in (3, 4, 400):  # the first pays for imports and for looking for a C++ compiler
        torch._dynamo.reset()
        _, bilstm = pair(**WIDE)
        x = LONGER[:1].repeat(length, 1, 1)
        compiled = torch.compile(bilstm, fullgraph=True, dynamic=False)
        began = time.perf_counter()
        with torch._inductor.config.patch(force_disable_caches=True), torch.no_grad():
            found = results(compiled(x))
        seconds[length] = time.perf_counter() - began
        assert_close(found, results(bilstm(x)), 1e-6)
    assert seconds[400] < 4 * seconds[4] + 2  # unrolled: a hundred times as many nodes


# --- torch.export, ONNX


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool):
    lstm, model = taggers()
    exported = torch.export.export(model.eval(), (X,), strict=strict)
    assert_close({"y": exported.module()(X)}, {"y": lstm(X)}, 2e-6)
    assert set(exported.state_dict) == set(model.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1], ids=["time", "batch"])
def test_export_with_a_dynamic_axis(axis: int):
    lstm, model = taggers()
    name = torch.export.Dim("n", min=1, max=64)
    exported = torch.export.export(model.eval(), (X,), dynamic_shapes=({axis: name},))
    for x in (X, LONGER) if axis == 0 else (X, X.repeat(1, 3, 1)):
        assert_close({"y": exported.module()(x)}, {"y": lstm(x)}, 2e-6)


@pytest.mark.slow
def test_exported_programs_are_saved_and_loaded():
    _, model = taggers()
    exported = torch.export.export(model.eval(), (X,))
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about reading a zip file
        loaded = torch.export.load(file)
    assert_close({"y": loaded.module()(X)}, {"y": model(X)}, 1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")
def test_export_runs_after_decomposition():
    _, model = taggers()
    exported = torch.export.export(model.eval(), (X,)).run_decompositions()
    assert_close({"y": exported.module()(X)}, {"y": model(X)}, 1e-6)


records_onnx = pytest.mark.skipif(
    not hasattr(torch.onnx, "ops"), reason="this torch cannot record ONNX's own operators"
)
noisy = pytest.mark.filterwarnings("ignore")  # the exporters' own, many and changing
DYNAMIC = {0: torch.export.Dim("time"), 1: torch.export.Dim("batch")}


def run_onnx(path: str, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """What another runtime makes of an exported model."""
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    named = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(y) for y in session.run(None, named)]


def operators(path: str) -> list[str]:
    return [node.op_type for node in pytest.importorskip("onnx").load(path).graph.node]


@pytest.mark.slow
@noisy
@pytest.mark.parametrize(
    ("back", "options", "shapes"),
    [
        pytest.param(False, {"dynamo": True}, [(T, B)], marks=records_onnx),
        pytest.param(
            False,
            {"dynamo": True, "dynamic_shapes": (DYNAMIC,)},
            [(T, B), (3 * T, B), (1, B), (T, 1), (2, 3)],
            marks=records_onnx,
        ),
        (True, {"dynamo": False, "dynamic_axes": {"x": {0: "time"}}}, [(T, B), (3 * T, B), (1, B)]),
        (False, {"dynamo": False}, [(T, B)]),
    ],
    ids=["one length", "any length", "TorchScript, to_lstm, any length", "TorchScript, one length"],
)
def test_onnx_export(
    back: bool, options: dict[str, object], shapes: list[tuple[int, int]], tmp_path
):
    """What docs/wrapping.md says of exporting gives, in another runtime, what nn.LSTM gives."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    lstm, model = taggers()
    if back:
        model.lstm = model.lstm.to_lstm()
    path = str(tmp_path / "model.onnx")
    torch.onnx.export(model.eval(), (X,), path, input_names=["x"], verbose=False, **options)
    for time_steps, batch in shapes:
        other = LONGER[:time_steps, :batch]
        (found,) = run_onnx(path, other.contiguous())
        assert_close({"y": found}, {"y": lstm(other).detach()}, 1e-5)
    if options["dynamo"]:
        assert operators(path).count("LSTM") == 2


@pytest.mark.slow
@noisy
@records_onnx
@pytest.mark.parametrize(
    ("case", "steps"),
    [
        (Case(1, False, False, False, 0, torch.float32, "dense", False), False),
        (Case(2, True, True, True, 0, torch.float32, "dense", True), False),
        (Case(1, True, True, False, 0, torch.float32, "unbatched", True), False),
        (Case(2, True, True, False, P, torch.float32, "dense", True), True),
        (Case(1, True, False, False, 0, torch.float64, "dense", False), True),
    ],
    ids=["one direction, no bias", "hx", "unbatched", "proj_size", "float64"],
)
def test_onnx_export_of_every_form(case: Case, steps: bool, tmp_path):
    """Also where nn.LSTM is exported to a model that does not run: proj_size and float64."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    lstm, bilstm = pair(**case.options)
    args = example(case).args
    path = str(tmp_path / "model.onnx")
    torch.onnx.export(bilstm.eval(), args, path, dynamo=True, verbose=False)
    flat = [x for x in torch.utils._pytree.tree_leaves(args) if x is not None]
    output, h_n, c_n = run_onnx(path, *(x.detach().contiguous() for x in flat))
    expected = {k: v.detach() for k, v in results(lstm(*args)).items()}
    assert_close(results((output, (h_n, c_n))), expected, 1e-5)
    assert operators(path).count("LSTM") == (0 if steps else case.num_layers)


@pytest.mark.slow
@noisy
@records_onnx
def test_onnx_export_of_an_exported_program_is_refused_and_not_wrong(tmp_path):
    pytest.importorskip("onnxscript")
    _, model = taggers()
    program = torch.export.export(model.eval(), (X,))
    with pytest.raises(torch.onnx.OnnxExporterError, match=r"lstm_freeze\.layer"):
        torch.onnx.export(program, (), tmp_path / "model.onnx", dynamo=True, verbose=False)


def exported_targets(model: nn.Module) -> set[str]:
    graph = torch.export.export(model.eval(), (X,), strict=False).graph
    return {str(node.target) for node in graph.nodes}


@records_onnx
def test_only_an_onnx_export_records_onnx_operators(monkeypatch: pytest.MonkeyPatch):
    _, model = taggers()
    own, onnx = "lstm_freeze.layer.default", "onnx_symbolic._symbolic_multi_out.default"
    found = exported_targets(model)
    assert own in found
    assert onnx not in found
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    found = exported_targets(model)
    assert onnx in found
    assert own not in found


@records_onnx
def test_numbers_stay_numbers_while_another_thread_exports_to_onnx(
    monkeypatch: pytest.MonkeyPatch,
):
    lstm, bilstm = pair(**WIDE)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert_close(results(bilstm(X)), results(lstm(X)), 1e-6)
