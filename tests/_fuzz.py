"""Random changes between a forward pass and its backward: right gradients or an error, no crash.

`python tests/_fuzz.py --seed 0 --cases 300` prints what happened. `tests/test_agreement.py` runs it
in a process of its own, and `make sanitize` under the address and undefined-behaviour sanitizers.
"""

from __future__ import annotations

import argparse
import collections
import copy
import random
import sys

import torch
from _loops import LOOPS, on_loop
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from lstm_freeze import BiLSTM
from lstm_freeze._recurrence.native import extension

USABLE = LOOPS if extension.built is not None else LOOPS[:1]
ERRORS = (RuntimeError, ValueError, TypeError, IndexError)
DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.complex64)


class Case:
    """One module, one call of it, and a twin of both that nothing happens to."""

    def __init__(self, draw):
        self.draw = draw
        torch.manual_seed(draw.randrange(2**31))
        self.I, self.H = draw.choice((1, 3, 7, 40)), draw.choice((2, 5, 17, 130))
        self.module = BiLSTM(
            self.I,
            self.H,
            num_layers=draw.choice((1, 1, 2)),
            bias=draw.random() < 0.8,
            bidirectional=draw.random() < 0.6,
            proj_size=draw.choice((0, 0, 1, self.H - 1)),
            dtype=torch.float64 if draw.random() < 0.15 else torch.float32,
        )
        for p in self.module.parameters():
            p.requires_grad_(draw.random() < 0.7)
        self.dtype = self.module.weight_ih_l0.dtype
        self.numbers, self.x = None, self.leaf()
        self.hx = self.states() if draw.random() < 0.4 else None
        self.loop = draw.choice(USABLE)
        twin = copy.deepcopy(self.module), copy.deepcopy(self.x), copy.deepcopy(self.hx)
        self.expected = self.gradients(*twin, self.run(*twin))

    def leaf(self):
        """Dense input, or packed with sizes whose memory numpy shares."""
        draw, B = self.draw, self.draw.choice((1, 2, 9, 40))
        if draw.random() < 0.5:
            return self.tensor(draw.choice((1, 2, 13)), B, self.I).requires_grad_(
                draw.random() < 0.5
            )
        lengths = [draw.randint(1, 12) for _ in range(B)]
        packed = pack_sequence([self.tensor(n, self.I) for n in lengths], enforce_sorted=False)
        return packed._replace(data=packed.data.requires_grad_(draw.random() < 0.5))

    def states(self):
        packed = isinstance(self.x, PackedSequence)
        batch = int(self.x.batch_sizes[0]) if packed else self.x.shape[1]
        rows = self.module.num_layers * self.module.num_directions
        sizes = self.module.proj_size or self.H, self.H
        wanted = self.draw.random() < 0.5
        return tuple(self.tensor(rows, batch, n).requires_grad_(wanted) for n in sizes)

    def tensor(self, *shape):
        return torch.randn(shape, dtype=self.dtype)

    @property
    def data(self):
        return self.x.data if isinstance(self.x, PackedSequence) else self.x

    def tensors(self):
        """All that the caller holds and the backward pass reads."""
        return [*self.module.parameters(), self.data, *(self.hx or ())]

    def run(self, module, x, hx):
        with on_loop(self.loop):
            output, states = module(x, hx)
        return [output.data if isinstance(x, PackedSequence) else output, *states]

    def gradients(self, module, x, hx, outputs):
        data = x.data if isinstance(x, PackedSequence) else x
        leaves = [p for p in (*module.parameters(), data, *(hx or ())) if p.requires_grad]
        losses = [y for y in outputs if y.requires_grad]
        if not losses or not leaves:
            return []
        seeds = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape) for y in losses]
        torch.autograd.backward(losses, seeds)
        return [p.grad for p in leaves]


# ---- what may happen: each returns whether the gradients must come out right ------------------


def nothing(case):
    return True


def sizes_rewritten(case):
    """By the memory that numpy shares with them."""
    if not isinstance(case.x, PackedSequence):
        return True
    sizes = case.x.batch_sizes.numpy()
    sizes[:] = [case.draw.choice((0, 1, 8, 319, 2**40, 2**63 - 1, -1)) for _ in sizes]
    return True


def module_converted(case):
    dtype = case.draw.choice([d for d in DTYPES[:3] if d != case.dtype])
    case.module.to(dtype)
    return False


def one_converted(case):
    chosen = case.draw.choice(case.tensors())
    allowed = DTYPES[:3] if chosen.requires_grad else DTYPES
    chosen.data = chosen.data.to(case.draw.choice([d for d in allowed if d != case.dtype]))
    return False


def one_reshaped(case):
    chosen = case.draw.choice(case.tensors())
    shape = list(chosen.shape)
    k = case.draw.randrange(len(shape))
    shape[k] = case.draw.choice((0, 1, shape[k] - 1, shape[k] + 1, 4 * shape[k], 1000))
    if case.draw.random() < 0.2:
        shape = [*shape, 1] if case.draw.random() < 0.5 else shape[1:]
    chosen.data = torch.randn(shape, dtype=chosen.dtype)
    return False


def storage_let_go(case):
    chosen = case.draw.choice(case.tensors())
    chosen.untyped_storage().resize_(case.draw.choice((0, chosen.untyped_storage().nbytes() // 2)))
    return False


def strides_changed(case):
    """Equal values, laid out otherwise."""
    chosen = case.draw.choice(case.tensors())
    last = torch.empty(*reversed(chosen.shape), dtype=chosen.dtype)
    chosen.data = last.permute(*reversed(range(chosen.dim()))).copy_(chosen.data)
    return True


def loop_switched(case):
    case.loop = USABLE[USABLE.index(case.loop) - 1]
    return True


def results_written_to(case):
    """The results are the caller's, who may do with them what he likes."""
    for y in case.outputs:
        y.detach().fill_(float("nan"))
    return True


CHANGES = (
    nothing,
    sizes_rewritten,
    module_converted,
    one_converted,
    one_reshaped,
    storage_let_go,
    strides_changed,
    loop_switched,
    results_written_to,
)


class Hooks:
    """Hooks on saved tensors that give one of them back changed."""

    def __init__(self, draw):
        self.draw, self.kind = draw, draw.choice(("strides", "strides", "dtype", "shape", "copy"))
        self.right = self.kind in ("strides", "copy")

    def unpack(self, x):
        if self.kind == "copy":
            return x.clone()
        if self.kind == "strides":
            last = torch.empty(*reversed(x.shape), dtype=x.dtype)
            return last.permute(*reversed(range(x.dim()))).copy_(x)
        if self.draw.random() < 0.7:
            return x
        if self.kind == "dtype":
            return x.to(self.draw.choice(DTYPES))
        return x.new_zeros([max(0, n + self.draw.choice((-1, 0, 1))) for n in x.shape])

    def __enter__(self):
        self.context = torch.autograd.graph.saved_tensors_hooks(lambda x: x, self.unpack)
        self.context.__enter__()
        return self

    def __exit__(self, *args):
        self.context.__exit__(*args)


def play(case, change, hooked):
    """One case: "right", "refused", or AssertionError."""
    hooks = Hooks(case.draw)
    if hooked:
        with hooks:
            case.outputs = case.run(case.module, case.x, case.hx)
    else:
        case.outputs = case.run(case.module, case.x, case.hx)
    must = change(case) and (not hooked or hooks.right)
    try:
        with on_loop(case.loop):
            found = case.gradients(case.module, case.x, case.hx, case.outputs)
    except ERRORS:
        if must:
            raise
        return "refused"
    assert len(found) == len(case.expected)
    for x, y in zip(found, case.expected, strict=True):
        assert (x is None) == (y is None)
        if x is not None:  # the two loops round otherwise
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
    return "right"


def main(seed, cases):
    torch.set_num_threads(2)
    counts = collections.Counter()
    for number in range(cases):
        draw = random.Random(f"{seed}-{number}")
        change = draw.choice(CHANGES)
        hooked = draw.random() < 0.25 and change is not storage_let_go  # hooks would read it
        print(f"case {seed}-{number}: {change.__name__}{' hooked' * hooked}", file=sys.stderr)
        case = Case(draw)
        counts[change.__name__, play(case, change, hooked)] += 1
    for (name, outcome), count in sorted(counts.items()):
        print(f"{count:6} {name} {outcome}")
    print(f"{cases} cases, seed {seed}: no crash, nothing wrong")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=300)
    options = parser.parse_args()
    main(options.seed, options.cases)
