"""nn.LSTM as the oracle of the drop-in suite: one table of cases, one way to compare.

The test files import this module as a sibling: pytest's default import mode puts their folder
on the path.
"""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from lstm_freeze import BiLSTM

T, B, I, H, P = 6, 4, 3, 5, 2
LENGTHS = (3, 6, 1, 4)  # unsorted; the packed forms of an example

OUTPUT_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


class Case(NamedTuple):
    """One way to build and to call an LSTM."""

    num_layers: int
    bidirectional: bool
    bias: bool
    batch_first: bool
    proj_size: int
    dtype: torch.dtype
    form: str
    hx: bool

    @property
    def options(self) -> dict[str, object]:
        """The constructor's keywords."""
        return {name: getattr(self, name) for name in self._fields[:6]}

    def __str__(self) -> str:
        flags = [
            name for name in ("bidirectional", "bias", "batch_first", "hx") if self[FIELD[name]]
        ]
        dtype = str(self.dtype).removeprefix("torch.")
        return "-".join([f"{self.num_layers}x", self.form, dtype, f"P{self.proj_size}", *flags])


FIELD = {name: i for i, name in enumerate(Case._fields)}
FORMS = ("dense", "unbatched", "packed", "packed_unsorted")
AXES = (
    (1, 2, 3),
    (False, True),
    (False, True),
    (False, True),
    (0, P),
    (torch.float32, torch.float64),
    FORMS,
    (False, True),
)
ALL_CASES = tuple(Case(*values) for values in itertools.product(*AXES))


def combinations_of(case: Case, strength: int) -> set[tuple[tuple[int, object], ...]]:
    """Every choice of `strength` axes with the case's values on them."""
    return set(itertools.combinations(enumerate(case), strength))


def covering_cases(strength: int, seed: int = 0) -> list[Case]:
    """Few cases in which every `strength` axes together take all their values (greedy)."""
    missing = set().union(*(combinations_of(case, strength) for case in ALL_CASES))
    draw = random.Random(seed)
    chosen = []
    while missing:
        candidates = [combinations_of(case, strength) for case in draw.sample(ALL_CASES, 40)]
        best = max(candidates, key=lambda found: len(found & missing))
        if best & missing:
            missing -= best
            chosen.append(Case(*(value for _, value in sorted(set().union(*best), key=_axis))))
    return chosen


def _axis(item: tuple[int, object]) -> int:
    return item[0]


@dataclass(frozen=True)
class Example:
    """What an LSTM is called with: leaves that require grad, and the form they are given in."""

    leaves: Mapping[str, Tensor]
    form: str

    @property
    def input(self) -> Tensor | PackedSequence:
        """The input; packed anew at each access, so that each call has its own graph."""
        if "input" in self.leaves:
            return self.leaves["input"]
        sequences = [leaf for name, leaf in self.leaves.items() if name.startswith("input[")]
        return pack_sequence(sequences, enforce_sorted=self.form == "packed")

    @property
    def hx(self) -> tuple[Tensor, Tensor] | None:
        """The given initial states."""
        return (self.leaves["h_0"], self.leaves["c_0"]) if "h_0" in self.leaves else None

    @property
    def args(self) -> tuple[object, ...]:
        """The positional arguments of forward; hx is left out where it is not given."""
        return (self.input,) if self.hx is None else (self.input, self.hx)


def example(case: Case, seed: int = 1, batch: int = B) -> Example:
    """Random input and hx in the form and dtype of a case; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values.to(case.dtype).requires_grad_()

    leaves = {}
    if case.form == "dense":
        leaves["input"] = leaf(batch, T, I) if case.batch_first else leaf(T, batch, I)
    elif case.form == "unbatched":
        leaves["input"] = leaf(T, I)
    else:
        lengths = sorted(LENGTHS, reverse=True) if case.form == "packed" else LENGTHS
        leaves |= {f"input[{i}]": leaf(length, I) for i, length in enumerate(lengths)}
    if case.hx:
        rows = case.num_layers * (1 + case.bidirectional)
        batch_shape = () if case.form == "unbatched" else (batch,)
        leaves["h_0"] = leaf(rows, *batch_shape, case.proj_size or H)
        leaves["c_0"] = leaf(rows, *batch_shape, H)
    return Example(leaves, case.form)


def pair(
    input_size: int = I, hidden_size: int = H, *, seed: int = 0, **options: object
) -> tuple[nn.LSTM, BiLSTM]:
    """An nn.LSTM and a BiLSTM with the same options (one direction unless asked) and weights."""
    options = {"bidirectional": False, **options}
    torch.manual_seed(seed)
    lstm = nn.LSTM(input_size, hidden_size, **options)
    bilstm = BiLSTM(input_size, hidden_size, **options)
    bilstm.load_state_dict(lstm.state_dict())
    return lstm, bilstm


def results(returned: tuple[object, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """What an LSTM returned, by name; of a PackedSequence its data."""
    output, (h_n, c_n) = returned
    return {
        "output": output.data if isinstance(output, PackedSequence) else output,
        "h_n": h_n,
        "c_n": c_n,
    }


def weighted_sum(tensors: Mapping[str, Tensor], seed: int = 2) -> Tensor:
    """A scalar with another, fixed weight for each element: no two errors cancel."""
    generator = torch.Generator().manual_seed(seed)
    return sum(
        (
            tensor * torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
        ).sum()
        for tensor in tensors.values()
    )


def gradients(
    module: nn.Module,
    call: Example,
    uses: tuple[str, ...] = ("output", "h_n", "c_n"),
    **options: bool,
) -> dict[str, Tensor | None]:
    """The gradient of a weighted sum of what is used, for every parameter, the input and hx."""
    returned = results(module(*call.args))
    loss = weighted_sum({name: returned[name] for name in uses})
    wanted = {**dict(module.named_parameters()), **call.leaves}
    wanted = {name: tensor for name, tensor in wanted.items() if tensor.requires_grad}
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, **options)
    return dict(zip(wanted, found, strict=True))


def assert_close(
    actual: Mapping[str, Tensor | None],
    expected: Mapping[str, Tensor | None],
    tolerance: float,
) -> None:
    """Per tensor: same shape and dtype, largest difference within tolerance x largest value."""
    assert list(actual) == list(expected)
    for name, truth in expected.items():
        found = actual[name]
        if truth is None or found is None:
            assert truth is found, name
            continue
        assert found.shape == truth.shape, name
        assert found.dtype == truth.dtype, name
        if truth.numel() == 0:
            continue
        error, scale = (found - truth).abs().max().item(), truth.abs().max().item()
        assert error <= tolerance * scale, f"{name}: off by {error:.2e}, largest value {scale:.2e}"


def assert_same_bits(
    actual: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None]
) -> None:
    """Per tensor: same shape, dtype and bytes; +0.0 is not -0.0, a NaN equals itself."""
    assert list(actual) == list(expected)
    for name, truth in expected.items():
        found = actual[name]
        if truth is None or found is None:
            assert truth is found, name
            continue
        assert (found.shape, found.dtype) == (truth.shape, truth.dtype), name
        assert torch.equal(_bytes(found), _bytes(truth)), name


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def assert_agree(
    lstm: nn.Module, bilstm: nn.Module, call: Example, uses: tuple[str, ...] | None = None
) -> None:
    """BiLSTM's results and gradients for this call are nn.LSTM's to rounding."""
    dtype = next(iter(call.leaves.values())).dtype
    actual, expected = results(bilstm(*call.args)), results(lstm(*call.args))
    assert_close(actual, expected, OUTPUT_TOLERANCE[dtype])
    uses = uses or tuple(expected)
    assert_close(
        gradients(bilstm, call, uses), gradients(lstm, call, uses), GRADIENT_TOLERANCE[dtype]
    )


def error_of(function: Callable[..., object], *args: object, **keywords: object) -> Exception:
    """The exception that a wrong call raises, to be compared with another's."""
    try:
        function(*args, **keywords)
    except Exception as error:
        return error
    raise AssertionError(f"{function} accepted {args} {keywords}")


@contextmanager
def rng_kept() -> Iterator[None]:
    """Leaves the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        yield


# nn.LSTM with projections warns once a process that oneDNN cannot help it: the oracle's own
# affair, which must not turn whichever test meets it first into an error.
with warnings.catch_warnings(), rng_kept():
    warnings.simplefilter("ignore")
    nn.LSTM(1, 2, proj_size=1)(torch.zeros(1, 1, 1))
