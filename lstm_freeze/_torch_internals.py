"""Every private name of torch that this package uses, each with a fallback.

Torch may change or remove these names. A missing name must not stop the import or an ordinary call:
then a fallback is used, and the docstring says how it differs.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from operator import attrgetter
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import update_bn


def _owner(place: str) -> Any:
    """The module or class of torch with this dotted name; None where torch does not have it."""
    # A function may hide the module of its name: torch.nn.utils.spectral_norm.
    try:
        return sys.modules.get(f"torch.{place}") or attrgetter(place)(torch)
    except AttributeError:
        return None


# Those of the names that every call of a BiLSTM asks for, found once.
_OWNERS = {
    place: _owner(place) for place in ("_C", "_C._functorch", "_subclasses", "autograd.forward_ad")
}


def _look_up(dotted: str) -> Any:
    """The object of a dotted name inside torch; None where this torch does not have it."""
    place, _, name = dotted.rpartition(".")
    return getattr(_OWNERS.get(place) or _owner(place), name, None)


_NORM_BASE = "nn.modules.batchnorm._NormBase"
_DROPOUT_BASE = "nn.modules.dropout._DropoutNd"
_PUBLIC_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
_PUBLIC_DROPOUTS = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)


def has_running_statistics(module: nn.Module) -> bool:
    """Whether a batch or instance norm keeps running statistics; fallback: the public classes."""
    bases = _look_up(_NORM_BASE) or _PUBLIC_NORMS
    return isinstance(module, bases) and getattr(module, "running_mean", None) is not None


def is_dropout(module: nn.Module) -> bool:
    """Whether a module is a dropout layer of torch.nn; without the base class, a public one."""
    return isinstance(module, _look_up(_DROPOUT_BASE) or _PUBLIC_DROPOUTS)


def is_spectral_norm(module: nn.Module) -> bool:
    """Whether a module is the parametrization of spectral_norm; without the class, by buffers."""
    kind = _look_up("nn.utils.parametrizations._SpectralNorm")
    if kind is not None:
        return isinstance(module, kind)
    return {"_u", "_v"} <= module._buffers.keys()


def is_old_spectral_norm(hook: Any) -> bool:
    """Whether a forward pre-hook is the old spectral norm; without the class, by attributes."""
    kind = _look_up("nn.utils.spectral_norm.SpectralNorm")
    if isinstance(kind, type):
        return isinstance(hook, kind)
    return hasattr(hook, "n_power_iterations") and hasattr(hook, "compute_weight")


def remove_hooks_of(module: nn.Module, owner: object) -> None:
    """Remove the forward hooks that are methods of an object, also copied ones."""
    for kind in ("_forward_pre_hooks", "_forward_hooks"):
        hooks = getattr(module, kind, {})
        for key in [k for k, hook in hooks.items() if getattr(hook, "__self__", None) is owner]:
            for registry in (kind, f"{kind}_with_kwargs", f"{kind}_always_called"):
                getattr(module, registry, {}).pop(key, None)


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor has a shape and no numbers, as under torch.compile and torch.export."""
    kind = _look_up("_subclasses.FakeTensor")
    if kind is not None:
        return isinstance(tensor, kind)
    return hasattr(tensor, "fake_mode")


def is_batched_gradient(grad: Tensor | None) -> bool:
    """Whether `torch.autograd.grad(..., is_grads_batched=True)` is at work.

    Without the name: no, and such a call raises torch's error that there is no batching rule.
    """
    asks = _look_up("_C._functorch.is_legacy_batchedtensor")
    return grad is not None and asks is not None and bool(asks(grad))


def forward_mode_is_on() -> bool:
    """Whether forward-mode AD is at work; without the name: no, and torch raises in such a call."""
    level = _look_up("autograd.forward_ad._current_level")
    return level is not None and level >= 0


def functions_are_transformed() -> bool:
    """Whether torch.func is at work; without the name: no, and torch raises in such a call."""
    asks = _look_up("_C._are_functorch_transforms_active")
    return asks is not None and bool(asks())


def dispatch_is_watched() -> bool:
    """Whether a mode watches torch's operators, as a counter of FLOPs does; without the name: yes.

    Then each layer is one operator that such a mode sees, which costs a small call some time.
    """
    asks = _look_up("_C._len_torch_dispatch_stack")
    return asks is None or bool(asks())


def steps_around(frame: FrameType) -> Iterator[object]:
    """The optimizers within whose `step` this frame runs, innermost first.

    `frame` is that of torch's wrapper around a `step`, which calls the step hooks and has the
    optimizer as its local `self`; where it has none, no step seems to be within another.
    """
    outer = frame.f_back
    while outer is not None:
        if outer.f_code is frame.f_code and "self" in outer.f_locals:
            yield outer.f_locals["self"]
        outer = outer.f_back


def update_bn_runs() -> bool:
    """Whether this is called from within `torch.optim.swa_utils.update_bn`, told by its code."""
    code = getattr(inspect.unwrap(update_bn), "__code__", None)
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


def reduced_tensors(ddp: DistributedDataParallel) -> int | None:
    """How many parameters DDP's reducer holds; None where it cannot be asked."""
    asks = getattr(ddp, "_get_ddp_logging_data", None)
    found: int | None = None if asks is None else asks().get("num_parameter_tensors")
    return found


def has_comm_hook(ddp: DistributedDataParallel) -> bool:
    """Whether DDP has a communication hook; where it cannot be asked: yes, so none is set."""
    asks = getattr(ddp, "_get_ddp_logging_data", None)
    return asks is None or bool(asks().get("comm_hook"))


def reduced_parameters(ddp: DistributedDataParallel) -> list[nn.Parameter] | None:
    """The parameters whose gradients DDP's reducer averages; None where it cannot be asked."""
    asks = getattr(ddp.reducer, "_get_zeros_like_grad_buckets", None)
    return None if asks is None else [p for bucket in asks() for p in bucket.parameters()]


def is_compiled(module: nn.Module) -> bool:
    """Whether a module, or one inside it, is compiled; by Lightning too. Without the names: no."""
    kind = (
        _look_up("_dynamo.eval_frame.OptimizedModule") if "torch._dynamo" in sys.modules else None
    )
    return any(
        (kind is not None and isinstance(part, kind))
        or getattr(part, "_compiled_call_impl", None) is not None
        or getattr(part, "_compiler_ctx", None) is not None
        for part in module.modules()
    )


def recompile_limit() -> int | None:
    """How many variants of a function torch.compile makes before it gives up; None: not known."""
    limit: int | None = _look_up("_dynamo.config.recompile_limit")
    return limit
