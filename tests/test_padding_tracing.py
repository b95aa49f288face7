"""Tracers, compilers and exporters keep `lengths`: one program for all of them."""

import io
import warnings

import pytest
import torch
from _oracle import B, H, I, P, T, assert_close, assert_same_bits, pair, results
from test_drop_in_tracing import WIDE, Counting, fresh_dynamo, jit, noisy, records_onnx, run_onnx
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from lstm_freeze import BiLSTM, PrefixCache, freeze

__all__ = ["fresh_dynamo"]  # a fixture

X = torch.linspace(-1, 1, T * B * I).sin().reshape(B, T, I)
WIDER = torch.linspace(-2, 1, 6 * T * B * I).sin().reshape(2 * B, 3 * T, I)
SOME = [(3, 6, 1, 4), (6, 6, 6, 6), (1, 1, 1, 1), (2, 3, 5, 5)]
MORE = (18, 1, 2, 3, 9, 9, 5, 17)
LENGTHS = torch.tensor(SOME[0])


class Encoder(nn.Module):
    """What users trace, compile and export: a padded batch and its lengths."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.before = nn.Linear(I, I)
        self.lstm = pair(**{**WIDE, "batch_first": True, **options})[1]

    def forward(self, x, lengths):
        x = self.before(x).tanh()
        output, (h_n, c_n) = self.lstm(x, lengths=lengths)
        return output, h_n, c_n


def named(returned):
    return {k: v.detach() for k, v in zip(("output", "h_n", "c_n"), returned, strict=True)}


def assert_same(program, model, x, lengths, tolerance=1e-6):
    lengths = torch.tensor(lengths)
    assert_close(named(program(x, lengths)), named(model(x, lengths)), tolerance)


def step(model, x, lengths):
    model.zero_grad()
    x = x.clone().requires_grad_()
    found = model(x, torch.tensor(lengths))
    sum(tensor.cos().sum() for tensor in found).backward()
    grads = {n.replace("_orig_mod.", ""): p.grad for n, p in model.named_parameters()}
    return {**named(found), "x": x.grad, **grads}


# --- without numbers, and recorded


@pytest.mark.parametrize(
    "lengths", [LENGTHS, SOME[0], LENGTHS.to("meta")], ids=["tensor", "list", "meta"]
)
@pytest.mark.parametrize("proj_size", [0, P])
def test_meta_tensors(proj_size, lengths):
    bilstm = BiLSTM(I, H, 2, batch_first=True, proj_size=proj_size, device="meta")
    x = torch.empty(B, T, I, device="meta", requires_grad=True)
    output, (h_n, c_n) = bilstm(x, lengths=lengths)
    assert output.is_meta
    assert output.shape == (B, T, 2 * (proj_size or H))
    assert h_n.shape == (4, B, proj_size or H)
    assert c_n.shape == (4, B, H)
    output.sum().backward()
    assert x.grad.shape == x.shape
    assert all(p.grad.shape == p.shape for p in bilstm.parameters())


def test_symbolic_tracing_takes_it_as_a_leaf():
    model = Encoder()
    traced = torch.fx.symbolic_trace(model)
    (call,) = (node for node in traced.graph.nodes if node.target == "lstm")
    assert list(call.kwargs) == ["lengths"]
    for lengths in SOME:
        assert_same(traced, model, X, lengths)


def test_make_fx_records_what_runs():
    model = Encoder()
    recorded = make_fx(lambda x, n: model(x, n))(X, LENGTHS)
    for lengths in SOME:
        assert_same(recorded, model, X, lengths)


@jit
def test_jit_trace_holds_for_other_lengths_and_shapes():
    model = Encoder()
    traced = torch.jit.trace(model, (X, LENGTHS))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    for program in (traced, torch.jit.load(file)):
        for lengths in SOME:
            assert_same(program, model, X, lengths)
        assert_same(program, model, WIDER, MORE)
    expected = step(model, X, SOME[3])
    found = step(traced, X, SOME[3])
    assert expected["x"].any()
    assert_close({"x": found["x"]}, {"x": expected["x"]}, 1e-6)


@jit
def test_jit_trace_without_lengths_is_as_ever():
    _, bilstm = pair(**WIDE)
    traced = torch.jit.trace(bilstm, (X,))
    assert_close(results(traced(X + 1)), results(bilstm(X + 1)), 1e-6)


# --- torch.compile


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("options", [{}, {"proj_size": P, "batch_first": False}, {"dropout": 0.0}])
def test_one_compilation_serves_all_lengths_in_training(options):
    model, counting = Encoder(**options), Counting()
    compiled = torch.compile(model, backend=counting.backend, fullgraph=True)
    x = X if model.lstm.batch_first else X.transpose(0, 1)
    for lengths in SOME:
        assert_close(step(compiled, x, lengths), step(model, x, lengths), 1e-6)
    assert len(counting.nodes) == 2  # one graph forward, one backward


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_for_any_shape_with_a_frozen_prefix_and_its_cache():
    model, counting = Encoder(), Counting()
    freeze(model.lstm, layers=0)
    model.lstm.prefix_cache = PrefixCache()
    compiled = torch.compile(model, backend=counting.backend, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for lengths in SOME:
            assert_close(
                named(compiled(X, torch.tensor(lengths))), by_hand(model, X, lengths), 1e-6
            )
        more = torch.tensor(MORE)
        assert_close(named(compiled(WIDER, more)), by_hand(model, WIDER, MORE), 1e-6)
    assert len(counting.nodes) == 1


def by_hand(model, x, lengths):
    cache, model.lstm.prefix_cache = model.lstm.prefix_cache, None
    found = named(model(x, torch.tensor(lengths)))
    model.lstm.prefix_cache = cache
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@jit
def test_inductor_has_the_same_numbers():
    model = Encoder()
    compiled = torch.compile(model, fullgraph=True)
    for lengths in SOME:
        assert_close(step(compiled, X, lengths), step(model, X, lengths), 1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_a_compiled_program_refuses_wrong_lengths():
    model = Encoder()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(X, LENGTHS)
    with pytest.raises(ValueError, match=r"`lengths` must be between 1 .* got lengths\[2\] = 7"):
        compiled(X, torch.tensor([1, 2, 7, 0]))


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_lengths_may_be_a_list_and_graphs_may_break():
    model = Encoder()
    compiled = torch.compile(lambda x, n: model(x, n), backend="aot_eager", fullgraph=True)
    split = torch.compile(model, backend="aot_eager")
    for lengths in SOME:
        expected = named(model(X, lengths))
        assert_close(named(compiled(X, list(lengths))), expected, 1e-6)
        assert_close(named(split(X, torch.tensor(lengths))), expected, 1e-6)


# --- torch.export, ONNX


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    model = Encoder().eval()
    fixed = torch.export.export(model, (X, LENGTHS), strict=strict)
    for lengths in SOME:
        assert_same(fixed.module(), model, X, lengths)
    with pytest.raises(ValueError, match=r"`lengths` must be .* got lengths\[1\] = 0"):
        fixed.module()(X, torch.tensor([1, 0, 1, 1]))
    batch, time = torch.export.Dim("batch", max=64), torch.export.Dim("time", max=64)
    shapes = ({0: batch, 1: time}, {0: batch})
    program = torch.export.export(model, (X, LENGTHS), dynamic_shapes=shapes, strict=strict)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its internals
        torch.export.save(program, file)
        file.seek(0)
        programs = [program, torch.export.load(file), program.run_decompositions()]
    for other in programs:
        assert_same(other.module(), model, X, SOME[3])
        assert_same(other.module(), model, WIDER, MORE)


def with_nan_in_the_padding(x, lengths):
    steps = torch.arange(x.shape[1])
    return x.masked_fill((steps >= torch.tensor(lengths)[:, None])[..., None], float("nan"))


@pytest.mark.slow
@noisy
@records_onnx
@pytest.mark.parametrize(
    ("options", "dtype", "is_one_operator"),
    [
        ({}, torch.float32, True),
        ({"bidirectional": False, "bias": False}, torch.float32, True),
        ({"batch_first": False}, torch.float32, True),
        ({"proj_size": P}, torch.float32, False),
        ({}, torch.float64, False),
    ],
    ids=["both directions", "one direction", "time first", "proj_size", "float64"],
)
def test_onnx_runtimes_rows_are_torchs(options, dtype, is_one_operator, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = Encoder(**options).to(dtype).eval()
    batch_axis = 0 if model.lstm.batch_first else 1
    path = str(tmp_path / "model.onnx")
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    shapes = ({batch_axis: batch, 1 - batch_axis: time}, {0: batch}) if is_one_operator else None
    x = (X if batch_axis == 0 else X.transpose(0, 1)).to(dtype)
    torch.onnx.export(model, (x, LENGTHS), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    calls = [(X.to(dtype), lengths) for lengths in SOME]
    calls += [(WIDER.to(dtype), MORE)] if is_one_operator else []
    for x, lengths in calls:
        for content in (x, with_nan_in_the_padding(x, lengths)):
            content = content if batch_axis == 0 else content.transpose(0, 1)
            found = run_onnx(path, content.contiguous(), torch.tensor(lengths))
            expected = named(model(content, torch.tensor(lengths)))
            assert_close(dict(zip(expected, found, strict=True)), expected, 1e-5)
    graph = onnx.load(path).graph
    layers = [node for node in graph.node if node.op_type == "LSTM"]
    assert len(layers) == (2 if is_one_operator else 0)
    casts = {node.output[0]: node.attribute[0].i for node in graph.node if node.op_type == "Cast"}
    for node in layers:
        assert casts[node.input[4]] == onnx.TensorProto.INT32


@pytest.mark.slow
@noisy
def test_onnx_by_torchscript_is_written_for_one_shape_and_all_lengths(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, path = Encoder().eval(), str(tmp_path / "model.onnx")
    names = {"input_names": ["x", "lengths"]}
    torch.onnx.export(model, (X, LENGTHS), path, dynamo=False, verbose=False, **names)
    for lengths in SOME:
        found = run_onnx(path, with_nan_in_the_padding(X, lengths), torch.tensor(lengths))
        expected = named(model(X, torch.tensor(lengths)))
        assert_close(dict(zip(expected, found, strict=True)), expected, 1e-5)


def test_plain_input_of_a_program_is_as_ever():
    _, bilstm = pair(**WIDE)
    program = torch.export.export(bilstm.eval(), (X,))
    assert_same_bits(results(program.module()(X)), results(bilstm(X)))
