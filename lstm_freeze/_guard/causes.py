"""Causes: the evidence that a changed tensor leaves, and the likeliest cause by it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from .._freezing import fixed_mode_of
from .._model import Tree
from .change import Change


@dataclass(frozen=True)
class Evidence:
    """What can be found out about a changed tensor after the change.

    Attributes:
        replaced: Its name refers to another Parameter now, or to none.
        converted: Its dtype or shape has changed.
        statistics: It is a buffer of a normalisation layer whose mode `freeze` has not fixed.
        requires_grad: It requires grad now, though nobody called `unfreeze`.
        shares_with: The name of a trainable parameter that uses the same memory.
        gradient: `"stale"`, `"zero"` or `"none"`.
        optimizers: The attached optimizers that hold it, with their settings.
        lbfgs: One of them is LBFGS.
        foreign: One of them is not from torch.optim.
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
    """The likeliest cause, with its remedy: the one that the strongest evidence supports."""
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
            "False, or is TorchScript's, move in train(); freeze(...) holds those of other "
            "modules, and .eval() those of TorchScript's"
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


def gather_evidence(
    change: Change, optimizers: Sequence[Optimizer], tree: Tree, several: bool
) -> Evidence:
    """The evidence of one change; `several` says that other tensors changed as well."""
    owner = change.remembered.owner
    if change.replaced:
        return Evidence(replaced=True)
    common = Evidence(
        converted=change.converted, whole=change.whole, several=several, unseen=change.unseen
    )
    if not isinstance(owner, nn.Parameter):
        return replace(common, statistics=fixed_mode_of(owner) is None)
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
        shrunk=change.new_and_old is not None and _shrunk(*change.new_and_old),
    )


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
