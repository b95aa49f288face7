"""Tree: a model's modules and parameters by path, its RNNs and its parts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from functools import cached_property

import torch
from torch import nn

from .._names import Place
from .cells import cells_of, stacks_of
from .parts import Part as Part
from .parts import parts_of
from .serving import Serving, is_rnn
from .serving import join as join
from .serving import within as within

# By torch.compile, FSDP, activation checkpointing and Lightning's Fabric.
WRAPPED_AS = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
)
# By adapter packages (PEFT).
ADAPTED_AS = r"base_model(?:\.model)?"


def inner_name(module: nn.Module) -> str | None:
    """The name under which a wrapper (DDP, torch.compile's, PEFT's) holds the module it wraps."""
    return wrapped_name(module) or _adapted_name(module)


def wrapped_name(module: nn.Module) -> str | None:
    """The same for wrappers that keep references to what they found in the module."""
    if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return "module"
    return next((name for name in WRAPPED_AS if name in module._modules), None)


def _adapted_name(module: nn.Module) -> str | None:
    """The name under which an adapter package (PEFT) holds the model that it adapts.

    Such a wrapper has only a `base_model`, which has only a `model`. Where the `base_model` is
    given alone, its class tells whether it is the package's or the user's.
    """
    if (base := _only_child(module, "base_model")) and _only_child(base, "model"):
        return "base_model.model"
    ours = any(kind.__module__.partition(".")[0] == "peft" for kind in type(module).__mro__)
    return "model" if ours and _only_child(module, "model") else None


def _only_child(module: nn.Module, name: str) -> nn.Module | None:
    """The child of this name, where it holds all of a module's parameters and buffers."""
    if module._parameters or module._buffers:
        return None
    others = (m for n, m in module._modules.items() if n != name and m is not None)
    if any(next(m.parameters(), next(m.buffers(), None)) is not None for m in others):
        return None
    return module._modules.get(name)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside any wrappers around it; the module itself when there are none."""
    while (name := inner_name(module)) is not None:
        module = module.get_submodule(name)
    return module


# There nn.LSTM is one call of a vendor's library, faster than any loop over time steps.
FUSED_LSTM_DEVICES = {"cuda"}


def runs_fused(module: nn.Module) -> bool:
    """Whether nn.LSTM would run a vendor's fused kernels (cuDNN) where this module lives."""
    return any(p.device.type in FUSED_LSTM_DEVICES for p in module.parameters())


def walk(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Each (path, module) in registration order; shared modules at each path, no wrappers."""
    module = unwrap(module)
    yield path, module
    for name, child in module._modules.items():
        if child is not None:
            yield from walk(child, join(path, name))


def reshard(module: nn.Module) -> None:
    """Have FSDP2 (fully_shard) put the shards, which optimizers hold, back into the module.

    After a forward pass without a backward pass, modules hold gathered weights, and FSDP2 would
    overwrite a change of these.
    """
    if (fsdp := sys.modules.get("torch.distributed.fsdp")) is None:
        return
    for child in module.modules():
        if isinstance(child, getattr(fsdp, "FSDPModule", ())):
            child.reshard()  # type: ignore[operator]


def rewrite(module: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Write each parameter to its own place again, so that compiled code reads requires_grad.

    Without a write to the dict that holds the parameter, older versions of torch (2.6; not 2.13)
    skip the check, and compiled code goes on with what was frozen when it was compiled.
    """
    ids = {id(parameter) for parameter in parameters}
    for child in module.modules():
        held = child._parameters
        if not isinstance(held, dict):  # TorchScript's
            continue
        for name, parameter in held.items():
            if id(parameter) in ids:
                held[name] = None  # a write of the present value does not count
                held[name] = parameter


def numel(parameter: nn.Parameter) -> int:
    """The number of elements; 0 for a lazy parameter that has no shape yet."""
    return 0 if nn.parameter.is_lazy(parameter) else parameter.numel()


def can_train(parameter: nn.Parameter) -> bool:
    """Whether a parameter is of a type that can require a gradient (integers cannot)."""
    return parameter.is_floating_point() or parameter.is_complex()


def _is_copy(owner: nn.Module, name: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor among the parameters is a copy that old weight drop has left there."""
    if isinstance(tensor, nn.Parameter):
        return False
    return not tensor.is_leaf or (is_rnn(owner) and not tensor.requires_grad)


class Tree:
    """A module's submodules and parameters by path; wrappers are not part of the paths."""

    def __init__(self, module: nn.Module) -> None:
        """Read the module's present state; a later change of its structure is not followed."""
        reshard(module)
        self.root = unwrap(module)
        self.wrapped = self.root is not module
        self.modules: dict[str, nn.Module] = dict(walk(module))
        self.parameters: dict[str, nn.Parameter] = {
            join(path, name): parameter
            for path, owner in self.modules.items()
            for name, parameter in owner._parameters.items()
            if parameter is not None and not _is_copy(owner, name, parameter)
        }
        self.rnns: dict[str, nn.Module] = {p: m for p, m in self.modules.items() if is_rnn(m)}

    @cached_property
    def cells(self) -> dict[str, nn.Module]:
        """Path -> module that runs one step or layer of a recurrence, and is not an nn.RNNBase.

        These are nn.LSTMCell and the like, and the user's own recurrent layers in a stack.
        """
        return cells_of(self.modules, self.rnns, stacks_of(self.modules))

    @cached_property
    def _serving(self) -> Serving:
        return Serving(self.modules, self.parameters, self.rnns)

    @cached_property
    def _places(self) -> dict[str, dict[str, Place]]:
        found: dict[str, dict[str, Place]] = {path: {} for path in self.rnns}
        for name, (path, place) in self._serving.places.items():
            found[path][name] = place
        return found

    def places(self, rnn_path: str) -> dict[str, Place]:
        """Full name -> place, for all parameters that serve one RNN, also those outside of it."""
        return self._places[rnn_path]

    def rnn_of(self, name: str) -> str | None:
        """The path of the RNN that a parameter serves; None where it serves none."""
        found = self._serving.places.get(name)
        return found[0] if found else None

    def place_of(self, name: str) -> Place | None:
        """The place of a parameter in the RNN that it serves; None where it serves none."""
        found = self._serving.places.get(name)
        return found[1] if found else None

    @property
    def tensors_served(self) -> dict[str, str]:
        """Name -> path of the tensor it serves, where that is not its own name."""
        return self._serving.tensors

    @property
    def parametrized(self) -> dict[str, str]:
        """Name -> path of the tensor that a module computes from this parameter of its own."""
        return self._serving.parametrized

    def distinct(self, names: Iterable[str] | None = None) -> dict[str, nn.Parameter]:
        """First name -> parameter, each parameter once, in registration order."""
        chosen = self.parameters if names is None else set(names)
        first: dict[int, str] = {}
        for name, parameter in self.parameters.items():
            if name in chosen:
                first.setdefault(id(parameter), name)
        return {name: self.parameters[name] for name in first.values()}

    def all_names(self, names: Iterable[str]) -> dict[str, nn.Parameter]:
        """The parameters of these names under every name they have, in registration order."""
        ids = {id(self.parameters[name]) for name in names}
        return {name: p for name, p in self.parameters.items() if id(p) in ids}

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The parts, input side first; tied parameters belong to the first that has them."""
        return parts_of(self)
