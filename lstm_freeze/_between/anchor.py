"""anchor: after each optimizer step, draws weights towards their remembered values."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from .._checks import as_module, as_number
from .._hashing import has_bits
from .._model import Target, Tree, select_in
from .._optimizers import as_optimizers, innermost


class Anchor:
    """What `anchor` returns: the hooks on the optimizers, and the weights they draw towards.

    As a context manager it detaches at the exit.

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> anchor(model, optimizer, strength=0.01).distance()
        0.0
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizers: tuple[Optimizer, ...],
        strength: float,
    ) -> None:
        """Remember the weights and follow the optimizers; made by `anchor` only."""
        self.strength = strength
        self._parameters = dict(parameters)
        self._start: dict[str, Tensor] = {}
        self.remember()
        self._names = {id(p): name for name, p in self._parameters.items()}
        self._hooks: list[RemovableHandle] = [
            one.register_step_post_hook(self._after_step) for one in innermost(optimizers)
        ]

    def detach(self) -> None:
        """Stop drawing the weights; a second time does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def remember(self) -> None:
        """Take the present weights as what the anchor draws towards."""
        self._start = {name: p.detach().clone() for name, p in self._parameters.items()}

    def distance(self) -> float:
        """The distance of the weights from where they are anchored: ||w - w0|| over all of them.

        >>> model = nn.Linear(2, 1)
        >>> held = anchor(model, torch.optim.SGD(model.parameters(), lr=0.1), strength=0.01)
        >>> _ = nn.init.constant_(model.bias, model.bias.item() + 3.0)
        >>> round(held.distance(), 4)
        3.0
        """
        total = 0.0
        for name, parameter in self._parameters.items():
            change = _wide(parameter.detach()) - _wide(self._at(name, parameter))
            total += float(torch.linalg.vector_norm(change)) ** 2
        return float(total**0.5)

    def state_dict(self) -> dict[str, Tensor]:
        """The weights that the anchor draws towards, by name; for a checkpoint."""
        return dict(self._start)

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Draw towards the weights of a checkpoint.

        Raises:
            ValueError: It has other names or shapes than the anchored weights; each is named.
        """
        wrong = sorted(state_dict.keys() ^ self._parameters.keys())
        wrong += [
            name
            for name, parameter in self._parameters.items()
            if name in state_dict and state_dict[name].shape != parameter.shape
        ]
        if wrong:
            raise ValueError(
                f"`state_dict` does not fit the anchored weights: {', '.join(wrong)} are missing, "
                "additional or of another shape; anchor the same weights as when it was made"
            )
        self._start = {
            name: state_dict[name].detach().to(parameter, copy=True)
            for name, parameter in self._parameters.items()
        }

    def __enter__(self) -> Anchor:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()

    def __repr__(self) -> str:
        watched = f"attached to {len(self._hooks)} optimizers" if self._hooks else "detached"
        return f"Anchor({len(self._parameters)} weights, strength={self.strength}, {watched})"

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # A fused optimizer sets it where it has skipped the step because of an overflow (AMP).
        overflow = getattr(optimizer, "found_inf", None)
        for group in optimizer.param_groups:
            share = group["lr"] * self.strength
            for parameter in group["params"]:
                name = self._names.get(id(parameter))
                if name is None or not parameter.requires_grad:
                    continue
                pull = (parameter - self._at(name, parameter)).mul_(share)
                if isinstance(overflow, Tensor):
                    pull = torch.where(overflow.to(pull.device) == 0, pull, 0)
                parameter.sub_(pull)

    def _at(self, name: str, parameter: nn.Parameter) -> Tensor:
        """Where a weight is anchored, on the device and in the dtype that it has now."""
        start = self._start[name]
        if start.device != parameter.device or start.dtype != parameter.dtype:
            start = self._start[name] = start.to(parameter)
        return start


def anchor(
    module: nn.Module,
    optimizer: Any,
    *targets: Target,
    strength: float,
    exclude: Target = None,
) -> Anchor:
    """Draw weights towards what they are now: after each optimizer step, decoupled from the loss.

    `w -= lr * strength * (w - w0)` for every chosen weight that is trainable then, with the
    learning rate of its param group, as AdamW decays weights towards zero. Frozen weights are not
    touched by a bit. This is L2-SP (Li et al. 2018, arXiv 1802.01483), decoupled: for SGD the
    same as a penalty of `strength / 2 * ||w - w0||**2` evaluated after the step, and with Adam
    free of its scaling. Set the optimizer's own weight decay to 0, which draws towards zero.

    Args:
        module: Any module; wrappers (DDP, torch.compile's) are looked through.
        optimizer: One or several; Lightning's wrapper is looked through.
        targets: What to anchor; see `select`. None: everything.
        strength: At least 0: each step goes `lr * strength` of the way back.
        exclude: Targets to leave alone, such as a new head.

    Returns:
        A handle: `.detach()`, `.remember()`, `.distance()`, `.state_dict()` and
        `.load_state_dict()`; also a context manager.

    Raises:
        ValueError: A target names nothing, `strength` is out of range, a weight has no values
            yet, or a trainable one is in no group of `optimizer` and would never be drawn.
        TypeError: An argument is of another type than named above.

    Examples:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, 2.0)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with anchor(model, optimizer, strength=0.5):
        ...     model(torch.ones(1, 1)).sum().backward()
        ...     optimizer.step()
        >>> round(model.weight.item(), 4)  # 1.9 after the step, then 0.1 * 0.5 of the way to 2
        1.905
    """
    tree = Tree(as_module(module))
    strength = as_number(strength, "strength", least=0)
    optimizers = as_optimizers(optimizer)
    if not optimizers:
        raise ValueError(f"`optimizer` must be at least one optimizer, got {optimizer!r}")
    chosen = {
        name: p
        for name, p in select_in(tree, targets, exclude=exclude).distinct.items()
        if nn.parameter.is_lazy(p) or p.is_floating_point() or p.is_complex()
    }
    if empty := [name for name, p in chosen.items() if not has_bits(p)]:
        raise ValueError(
            f"{', '.join(empty)}: no values yet (lazy, or on the meta device), so there is nothing "
            "to draw towards; run the module once, or load its weights"
        )
    _require_rates(optimizers)
    _require_drawn(optimizers, chosen)
    return Anchor(chosen, optimizers, strength)


def _require_rates(optimizers: tuple[Optimizer, ...]) -> None:
    for optimizer in optimizers:
        if any("lr" not in group for group in optimizer.param_groups):
            raise ValueError(
                f"`optimizer` must have a learning rate in every group, and {type(optimizer)} has "
                'none ("lr"); the pull is lr * strength'
            )


def _require_drawn(optimizers: tuple[Optimizer, ...], chosen: Mapping[str, nn.Parameter]) -> None:
    held = {id(p) for optimizer in optimizers for g in optimizer.param_groups for p in g["params"]}
    outside = [name for name, p in chosen.items() if p.requires_grad and id(p) not in held]
    if outside:
        raise ValueError(
            f"`optimizer` holds no {', '.join(outside)}: anchored, it would never be drawn; give "
            "all optimizers as a list, or choose fewer targets"
        )


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in a dtype that is exact enough for differences."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
