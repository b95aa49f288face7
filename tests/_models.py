"""Models and small checks that the tests of choosing and freezing share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lstm_freeze import BiLSTM

I, H, P, C = 3, 4, 2, 2  # C: classes


class Encoder(nn.Module):
    """An embedding, a projection and an RNN."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, I)
        self.lstm = rnn

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lstm(self.embedding(tokens))[0]


class Tagger(nn.Module):
    """An encoder with an RNN, and a head."""

    def __init__(self, rnn: nn.Module | None = None) -> None:
        super().__init__()
        rnn = BiLSTM(I, H, 2) if rnn is None else rnn
        self.encoder = Encoder(rnn)
        width = (rnn.proj_size or rnn.hidden_size) * (1 + rnn.bidirectional)
        self.head = nn.Linear(width, C)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(tokens))


RNN_TYPES: dict[str, Callable[..., nn.Module]] = {
    "BiLSTM": BiLSTM,
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
    "RNN_TANH": nn.RNN,
    "RNN_RELU": lambda *args, **kwargs: nn.RNN(*args, nonlinearity="relu", **kwargs),
}


def rnn_cases() -> list[dict[str, Any]]:
    """Every kind of RNN in every form, up to 12 layers."""
    cases = []
    for kind, layers, bidirectional, bias, proj in itertools.product(
        RNN_TYPES, (1, 2, 12), (False, True), (False, True), (0, P)
    ):
        if proj and "LSTM" not in kind:
            continue
        options = {"num_layers": layers, "bidirectional": bidirectional, "bias": bias}
        cases.append({"kind": kind, **options, **({"proj_size": proj} if proj else {})})
    return cases


def build_rnn(kind: str, **options: Any) -> nn.Module:
    """An RNN of a case."""
    return RNN_TYPES[kind](I, H, **options)


def case_id(case: Mapping[str, Any]) -> str:
    """A case as a test's name."""
    flags = [name for name in ("bidirectional", "bias", "proj_size") if case.get(name)]
    return "-".join([case["kind"], str(case["num_layers"]), *flags])


def trainable(module: nn.Module) -> set[str]:
    """Names of the trainable parameters, ties under all names."""
    named = module.named_parameters(remove_duplicate=False)
    return {name for name, p in named if p.requires_grad}


def frozen(module: nn.Module) -> set[str]:
    """Names of the frozen parameters, ties under all names."""
    return {n for n, _ in module.named_parameters(remove_duplicate=False)} - trainable(module)


def bits(tensors: Iterable[Tensor]) -> list[bytes]:
    """The bytes of tensors: equal when no bit differs."""
    return [t.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() for t in tensors]


def snapshot(module: nn.Module) -> dict[str, bytes]:
    """Name -> bytes of every parameter and buffer."""
    tensors = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    return dict(zip(tensors, bits(tensors.values()), strict=True))


def moved(module: nn.Module, before: Mapping[str, bytes]) -> set[str]:
    """Names of the parameters and buffers that are no longer bit for bit what they were."""
    after = snapshot(module)
    return {name for name in before if after[name] != before[name]}


def everything(module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> object:
    """All that a refused call must leave as it was, in a form that compares with ==."""
    return (
        [(n, id(p), p.requires_grad, id(p.grad)) for n, p in module.named_parameters()],
        [
            (
                name,
                m.training,
                getattr(m, "dropout", None),
                sorted(getattr(m, "dropout_off_layers", ())),
                list(m._forward_hooks),
                list(m._forward_pre_hooks),
            )
            for name, m in module.named_modules()
        ],
        None if optimizer is None else [(id(p), sorted(s)) for p, s in optimizer.state.items()],
    )
