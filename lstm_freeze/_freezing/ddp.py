"""What may be frozen and unfrozen in a module that DistributedDataParallel has wrapped."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .._model import Tree, inner_name
from .._torch_internals import reduced_parameters, reduced_tensors
from .._warn import warn

RANKS_DRIFT = "its gradients would stay local and the ranks would drift apart"
# By id, the parameters that were trainable when they were frozen through a DDP object, which
# keeps them alive anyway.
_trained: weakref.WeakKeyDictionary[DistributedDataParallel, dict[int, nn.Parameter]] = (
    weakref.WeakKeyDictionary()
)


def ddp_of(module: nn.Module) -> DistributedDataParallel | None:
    """The DDP object among a module and its wrappers; None where there is none."""
    while not isinstance(module, DistributedDataParallel):
        if (name := inner_name(module)) is None:
            return None
        module = module.get_submodule(name)
    return module


def reduces_all(ddp: DistributedDataParallel, tree: Tree) -> bool:
    """Whether all parameters were trainable when DDP wrapped the module."""
    return reduced_tensors(ddp) == len(tree.distinct())


def require_reducible(
    ddp: DistributedDataParallel, tree: Tree, unfrozen: Mapping[str, nn.Parameter]
) -> None:
    """Raise ValueError if the reducer may not hold a parameter that is to be trainable."""
    if reduces_all(ddp, tree):
        return
    known = _trained.get(ddp, {})
    # A parameter may have been unfrozen after DDP wrapped it, so the reducer is asked as well.
    averaged = reduced_parameters(ddp)
    reduced = None if averaged is None else set(map(id, averaged))
    for name, parameter in unfrozen.items():
        trained = parameter.requires_grad or id(parameter) in known
        if not (trained and (reduced is None or id(parameter) in reduced)):
            raise ValueError(
                f"unfreezing {name!r} under DDP: it was frozen when DDP wrapped the module (or by "
                f"hand since), so {RANKS_DRIFT}; wrap the module while all that will "
                "ever train is trainable, and then call freeze(...) with the DDP object"
            )


def waits_for_all(ddp: DistributedDataParallel) -> bool:
    """Whether DDP's backward pass waits for gradients that frozen parameters never get."""
    return not ddp.find_unused_parameters or bool(ddp.static_graph)


def warn_unused(ddp: DistributedDataParallel) -> None:
    """Warn if DDP will wait for gradients that frozen parameters never get."""
    if waits_for_all(ddp):
        warn(
            "freezing or unfreezing under DDP without find_unused_parameters=True (or with "
            "static_graph=True): DDP waits for the gradients of frozen parameters and raises in "
            "the next backward pass; wrap with "
            "DistributedDataParallel(module, find_unused_parameters=True)"
        )


def remember_trainable(ddp: DistributedDataParallel, parameters: Iterable[nn.Parameter]) -> None:
    """Note parameters that are trainable under this DDP object and about to be frozen."""
    known = _trained.setdefault(ddp, {})
    known.update({id(parameter): parameter for parameter in parameters})


@torch.no_grad()
def align_buffers(model: nn.Module | None, modules: Iterable[nn.Module] | None = None) -> None:
    """Give every rank the buffers of rank 0, where DDP wraps the model; all ranks must call it.

    Each rank updates running statistics of its own, and DDP overwrites them with those of rank 0 in
    the next forward pass. Frozen statistics must not change then.

    Args:
        model: Nothing happens where it is no DDP object.
        modules: The modules whose own buffers are aligned; None for all.
    """
    if isinstance(model, DistributedDataParallel) and model.broadcast_buffers:
        source = dist.get_global_rank(model.process_group, 0)
        for module in model.module.modules() if modules is None else modules:
            for buffer in module.buffers(recurse=False):
                dist.broadcast(buffer, source, group=model.process_group)
