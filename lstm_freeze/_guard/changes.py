"""How frozen weights changed, and why: the evidence at hand and the cause it speaks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from .._freezing import hold_of
from .._hashing import Bits, bits_of, difference, has_bits, stored, tensor_of
from .._model import Tree


@dataclass(frozen=True)
class Memory:
    """What is remembered of a tensor.

    Attributes:
        dtype: Its dtype.
        shape: Its shape; of a DTensor that of the local shard.
        content: Its bits, or their fingerprint.
        version: Autograd's count of the writes to it; None for an inference tensor.
    """

    dtype: torch.dtype
    shape: torch.Size
    content: Bits | int
    version: int | None

    @classmethod
    def of(cls, tensor: Tensor, content: Bits | int) -> Memory:
        """Remember a tensor whose bits or fingerprint are these."""
        local = stored(tensor)
        return cls(local.dtype, local.shape, content, _version(tensor))

    def on(self, device: torch.device) -> Bits:
        """The bits on a device, to which the module may have moved."""
        if isinstance(self.content, int):
            raise TypeError("a fingerprint has no bits")
        words, rest = self.content.words.to(device), self.content.rest.to(device)
        return self.content._replace(words=words, rest=rest)


@dataclass(eq=False)
class Held:
    """A tensor that must not move: a parameter, or a buffer of a frozen normalisation layer.

    Attributes:
        names: All its names.
        owner: The parameter, or the module whose buffer it is.
        buffer: The name of the buffer in its module.
        memory: None until there is something to remember.
    """

    names: tuple[str, ...]
    owner: nn.Module | nn.Parameter
    buffer: str | None = None
    memory: Memory | None = None

    @property
    def tensor(self) -> Tensor | None:
        """The present tensor; a buffer is looked up, since buffers are often assigned anew."""
        if isinstance(self.owner, nn.Parameter):
            return self.owner
        return self.owner._buffers.get(self.buffer or "")


@dataclass(frozen=True)
class Change:
    """What became of one held tensor.

    Attributes:
        name: The name it is reported under.
        held: What was held.
        memory: What was remembered of it.
        now: The tensor that is there now, if any.
        replaced: The name holds another Parameter now, or none.
    """

    name: str
    held: Held
    memory: Memory
    now: Tensor | None
    replaced: bool = False

    @cached_property
    def present(self) -> Bits | None:
        """The bits there are now."""
        return bits_of(self.now) if self.now is not None and has_bits(self.now) else None

    @property
    def converted(self) -> bool:
        """Whether dtype or shape is another."""
        return self.present is not None and self.present[:2] != self._form

    @property
    def unseen(self) -> bool:
        """Whether autograd saw no write to it."""
        version = self.memory.version
        return self.now is not None and version is not None and version == _version(self.now)

    @property
    def _form(self) -> tuple[torch.dtype, torch.Size]:
        return self.memory.dtype, self.memory.shape

    @cached_property
    def both(self) -> tuple[Tensor, Tensor] | None:
        """The tensor now and as it was, where they can be compared element by element."""
        if self.present is None or isinstance(self.memory.content, int) or self.converted:
            return None
        return tensor_of(self.present), tensor_of(self.memory.on(self.present.words.device))

    @cached_property
    def extent(self) -> tuple[int, float] | None:
        """How many elements moved and the largest change, where it is known."""
        return difference(*self.both) if self.both else None

    @property
    def whole(self) -> bool:
        """Whether most elements changed; also where that is not known."""
        return not self.both or not self.extent or 2 * self.extent[0] > self.both[0].numel()

    def __str__(self) -> str:
        others = [name for name in self.held.names if name != self.name]
        ties = f" (tied: also {', '.join(others)})" if others else ""
        return f"{self.name}{ties}: {self._amount()}"

    def _amount(self) -> str:
        if self.present is None:
            return "gone" if self.now is None else "has no values any more"
        if self.converted:
            was, now = (f"{d} {tuple(s)}" for d, s in (self._form, self.present[:2]))
            return f"{was} became {now}".replace("torch.", "")
        if not self.both or not self.extent:
            return 'how many elements moved and how far is known in mode="exact" only'
        moved, largest = self.extent
        if not moved:
            return "another object with the same bits"
        size = "NaN" if largest != largest else f"{largest:.3g}"
        if not largest:
            size += " (the sign of a zero)"
        return f"{moved:,} of {self.both[0].numel():,} elements moved, largest change {size}"


@dataclass(frozen=True)
class Evidence:
    """What can be seen of a changed tensor after the fact.

    Attributes:
        replaced: Its name holds another Parameter now, or none.
        converted: Its dtype or shape is another.
        statistics: It is a buffer of a normalisation layer that `freeze` does not hold.
        requires_grad: It requires grad now, though nobody called `unfreeze`.
        shares_with: The name of a trainable parameter that lies in the same memory.
        gradient: `"stale"`, `"zero"` or `"none"`.
        optimizers: The attached optimizers that hold it, with their settings.
        lbfgs: One of them is LBFGS.
        foreign: One of them is not of torch.optim.
        max_norm: It is the weight of an nn.Embedding with max_norm.
        shrunk: All its elements shrank by the same factor.
        whole: Most of its elements changed, or their number is unknown.
        several: Other tensors changed as well.
        unseen: Autograd's version counter did not move. A hint only: fused optimizers and writes
            through `.data` do not move it.
    """

    replaced: bool = False
    converted: bool = False
    statistics: bool = False
    requires_grad: bool = False
    shares_with: str = ""
    gradient: str = "none"
    optimizers: tuple[str, ...] = ()
    lbfgs: bool = False
    foreign: bool = False
    max_norm: bool = False
    shrunk: bool = False
    whole: bool = False
    several: bool = False
    unseen: bool = False


def likely_cause(e: Evidence) -> str:
    """The likeliest cause, with what prevents it; the strongest evidence comes first."""
    return next(_known_causes(e), "") or _a_write(e)


def _known_causes(e: Evidence) -> Iterator[str]:
    by = f" by {' and '.join(e.optimizers)}" if e.optimizers else ""
    if e.replaced:
        yield (
            "replaced Parameter (assigned anew, load_state_dict(assign=True), a parametrization): "
            "the new one is not what was frozen, and an optimizer built before does not hold it"
        )
    if e.converted:
        yield "its dtype or shape was converted (module.to, .half(), .double(), a new .data)"
    if e.statistics:
        yield (
            "the running statistics of a normalisation layer that was frozen by requires_grad = "
            "False move in train(); freeze(...) holds them"
        )
    if e.requires_grad:
        yield "requires_grad switched on elsewhere, not by unfreeze(...), so that it trains"
    if e.shares_with:
        yield f"tied weight: it shares its memory with {e.shares_with}, which trains; freeze both"
    if e.gradient == "stale":
        yield (
            f"a stale gradient from before it was frozen, used in a step{by} with momentum and "
            "weight decay if any; freeze(...) clears .grad, requires_grad = False alone does not"
        )
    if e.gradient == "zero":
        yield (
            f"a stale gradient of zeros (zero_grad(set_to_none=False)): momentum or weight decay "
            f"went on{by}; freeze(...) clears .grad, requires_grad = False alone does not"
        )
    if e.lbfgs:
        yield "LBFGS moves all it holds by its flat history, frozen or not; take another optimizer"
    if e.max_norm:
        yield "max_norm of the embedding rewrites its rows in the forward pass; set it to None"
    if e.shrunk:
        yield (
            f"weight decay{by}: all elements shrank by one factor, so the optimizer does not heed "
            "that .grad is None; leave what is frozen out of its groups"
        )
    if e.foreign:
        yield (
            f"a step{by}, which is not of torch.optim and may not heed that .grad is None; "
            "or an in-place write"
        )


def _a_write(e: Evidence) -> str:
    written = "an in-place write"
    if e.unseen:
        written += " that autograd does not see (.data, numpy, storage)"
    if not e.whole:
        return written
    loaded = [] if e.unseen else ["load_state_dict"]
    over = [*loaded, "swapped-in averaged weights (SWA, EMA)"]
    causes = [*over, written] if e.several else [written, *over]
    return f"{', '.join(causes[:-1])} or {causes[-1]}"


def gather(change: Change, optimizers: Sequence[Optimizer], tree: Tree, several: bool) -> Evidence:
    """What can be seen of one change; `several` tells that it is not the only one."""
    owner = change.held.owner
    if change.replaced:
        return Evidence(replaced=True)
    common = Evidence(
        converted=change.converted, whole=change.whole, several=several, unseen=change.unseen
    )
    if not isinstance(owner, nn.Parameter):
        return replace(common, statistics=hold_of(owner) is None)
    holding = [(o, g) for o in optimizers for g in o.param_groups if _in(owner, g["params"])]
    modules = [m for m in tree.modules.values() if _in(owner, m._parameters.values())]
    return replace(
        common,
        requires_grad=owner.requires_grad,
        shares_with=next(_trainable_in_same_memory(owner, tree), ""),
        gradient="none" if owner.grad is None else "stale" if owner.grad.any() else "zero",
        optimizers=tuple(_with_settings(optimizer, group) for optimizer, group in holding),
        lbfgs=any(isinstance(optimizer, LBFGS) for optimizer, _ in holding),
        foreign=any(
            not type(optimizer).__module__.startswith("torch.") for optimizer, _ in holding
        ),
        max_norm=any(getattr(module, "max_norm", None) is not None for module in modules),
        shrunk=change.both is not None and _shrunk(*change.both),
    )


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _in(parameter: nn.Parameter, several: Iterable[nn.Parameter | None]) -> bool:
    return any(one is parameter for one in several)


def _with_settings(optimizer: Optimizer, group: dict[str, object]) -> str:
    settings = [f"{k}={group[k]}" for k in ("momentum", "weight_decay") if group.get(k)]
    return f"{type(optimizer).__name__}({', '.join(settings)})"


def _trainable_in_same_memory(parameter: nn.Parameter, tree: Tree) -> Iterator[str]:
    begin, end = _extent(parameter)
    for name, other in tree.parameters.items():
        if other is not parameter and other.requires_grad:
            first, last = _extent(other)
            if first < end and begin < last:
                yield name


def _extent(parameter: nn.Parameter) -> tuple[int, int]:
    if nn.parameter.is_lazy(parameter) or parameter.is_meta or not parameter.numel():
        return 0, 0
    span = sum((n - 1) * s for n, s in zip(parameter.shape, parameter.stride(), strict=True)) + 1
    return parameter.data_ptr(), parameter.data_ptr() + span * parameter.element_size()


def _shrunk(new: Tensor, old: Tensor) -> bool:
    if not old.is_floating_point():
        return False
    there = old != 0
    factors = new[there].double() / old[there].double()
    if len(factors) < 2 or not factors.isfinite().all():
        return False
    middle = factors.median()
    return bool(0 < middle < 1 and (factors - middle).abs().max() <= 0.05 * (1 - middle))
