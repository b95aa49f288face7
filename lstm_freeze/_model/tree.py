"""What a model is made of: its modules and parameters by path, its RNNs, its parts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from .._names import DIRECTIONS, Place, base_name, place_of

RNN_MODES = ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")
# By torch.compile, FSDP, activation checkpointing and Lightning's Fabric.
WRAPPED_AS = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
)


def inner_name(module: nn.Module) -> str | None:
    """The name under which a wrapper (DDP, torch.compile's, ...) holds the module it wraps."""
    if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return "module"
    return next((name for name in WRAPPED_AS if name in module._modules), None)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside any wrappers around it; the module itself when there are none."""
    while (name := inner_name(module)) is not None:
        module = module.get_submodule(name)
    return module


def is_rnn(module: nn.Module) -> bool:
    """Whether a module keeps its parameters as nn.RNNBase does (BiLSTM, nn.LSTM, GRU, RNN)."""
    # A model may keep `mode` and `num_layers` as settings of its own: the names decide.
    names = (*module._parameters.keys(), *getattr(module, "parametrizations", ()))
    return getattr(module, "mode", None) in RNN_MODES and any(map(place_of, names))


# Where nn.LSTM is one call of a vendor's library, which beats any loop over time steps.
FUSED_LSTM_DEVICES = {"cuda"}


def runs_fused(module: nn.Module) -> bool:
    """Whether nn.LSTM would run a vendor's fused kernels (cuDNN) where this module lives."""
    return any(p.device.type in FUSED_LSTM_DEVICES for p in module.parameters())


def walk(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every (path, module), in registration order; shared ones at each path, wrappers at none."""
    module = unwrap(module)
    yield path, module
    for name, child in module._modules.items():
        if child is not None:
            yield from walk(child, join(path, name))


def reshard(module: nn.Module) -> None:
    """Have FSDP2 (fully_shard) put its shards back where they belong: what an optimizer holds.

    After a forward pass that no backward pass followed, modules hold gathered weights for the
    time being, and FSDP2 would overwrite what is set there.
    """
    if (fsdp := sys.modules.get("torch.distributed.fsdp")) is None:
        return
    for child in module.modules():
        if isinstance(child, getattr(fsdp, "FSDPModule", ())):
            child.reshard()  # type: ignore[operator]


def rewrite(module: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Write parameters to where they are, so that compiled code reads requires_grad again.

    Older versions of torch (2.6 does, 2.13 does not) skip that check as long as nothing was
    written to the dict that holds the parameter, and went on with what was frozen at compilation.
    """
    ids = {id(parameter) for parameter in parameters}
    for child in module.modules():
        held = child._parameters
        if not isinstance(held, dict):  # TorchScript's
            continue
        for name, parameter in held.items():
            if id(parameter) in ids:
                held[name] = None  # writing the value that is there already would not count
                held[name] = parameter


def join(path: str, name: str) -> str:
    """`path.name`, or just the one of them that is not empty."""
    return f"{path}.{name}" if path and name else path or name


def within(name: str, path: str) -> bool:
    """Whether a name lies in the subtree of a module path ("" is the root)."""
    return not path or name == path or name.startswith(path + ".")


def _by_child(names: Iterable[str], path: str) -> dict[str, list[str]]:
    """The names below a module path, by the child they lie in."""
    found: dict[str, list[str]] = {}
    for name in names:
        if name != path and within(name, path):
            own = name[len(path) + 1 :] if path else name
            found.setdefault(join(path, own.split(".")[0]), []).append(name)
    return found


def numel(parameter: nn.Parameter) -> int:
    """The number of elements; 0 for a lazy parameter that has no shape yet."""
    return 0 if nn.parameter.is_lazy(parameter) else parameter.numel()


def can_train(parameter: nn.Parameter) -> bool:
    """Whether a parameter is of a type that can require a gradient (integers cannot)."""
    return parameter.is_floating_point() or parameter.is_complex()


@dataclass(frozen=True)
class Part:
    """What is frozen, listed and given a learning rate as one: an RNN layer's direction, a block.

    Attributes:
        name: `encoder.lstm[0].forward`, `encoder.embedding`, ...
        depth: 0 for the last registered part (the head), rising towards the input; the two
            directions of an RNN layer share one.
        parameters: Name to parameter; every parameter of a model is in exactly one part.
    """

    name: str
    depth: int
    parameters: Mapping[str, nn.Parameter]


class Tree:
    """A module's inside by path, seen through wrappers; the paths never mention them."""

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
            if parameter is not None
        }
        self.rnns: dict[str, nn.Module] = {p: m for p, m in self.modules.items() if is_rnn(m)}

    def places(self, rnn_path: str) -> dict[str, Place]:
        """Full name -> place, for the parameters of one RNN that have a place."""
        relative = {
            name: name[len(rnn_path) + 1 :] if rnn_path else name
            for name in self.parameters
            if within(name, rnn_path)
        }
        return {name: p for name, rel in relative.items() if (p := place_of(rel)) is not None}

    @cached_property
    def served(self) -> dict[str, str]:
        """Name -> path of the tensor it serves, for parametrised (also old-style) parameters."""
        bases = {name: base_name(name) for name in self.parameters}
        return {n: base for n, base in bases.items() if base != n and self._is_tensor(base)}

    def _is_tensor(self, path: str) -> bool:
        # A parameter may be called `w_v` though no weight norm made it out of a `w`.
        owner_path, _, name = path.rpartition(".")
        owner = self.modules.get(owner_path)
        return owner is not None and (
            name in getattr(owner, "parametrizations", ())
            or isinstance(vars(owner).get(name), torch.Tensor)
        )

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
        left = self.distinct()
        found: list[tuple[str, str, dict[str, nn.Parameter]]] = []
        for name, level, names in self._split(""):
            if own := {n: left.pop(n) for n in names if n in left}:
                found.append((name, level, own))
        levels = list(dict.fromkeys(level for _, level, _ in found))
        return tuple(
            Part(name, len(levels) - 1 - levels.index(level), own) for name, level, own in found
        )

    def _split(self, path: str) -> Iterator[tuple[str, str, list[str]]]:
        """(part name, level, parameter names); parts of one level have the same depth."""
        if path in self.rnns:
            yield from self._split_rnn(path)
            return
        module = self.modules[path]
        below = (join(path, name) for name, _ in module._modules.items())
        children = [child for child in below if child in self.modules]
        if not children:
            yield path or type(module).__name__, path, list(self.parameters)
            return
        for name, _ in module._parameters.items():
            yield (own := join(path, name)), own, [own]
        names = _by_child(self.parameters, path)
        holding_rnns = _by_child(self.rnns, path)
        for child in children:
            if child in holding_rnns:
                yield from self._split(child)
            else:
                yield child, child, names.get(child, [])

    def _split_rnn(self, path: str) -> Iterator[tuple[str, str, list[str]]]:
        places = self.places(path)
        seats = sorted({(p.layer, DIRECTIONS.index(p.direction)) for p in places.values()})
        for layer, direction in seats:
            yield (
                f"{path}[{layer}].{DIRECTIONS[direction]}",
                f"{path}[{layer}]",
                [n for n, p in places.items() if p[:2] == (layer, DIRECTIONS[direction])],
            )
        if others := [n for n in self.parameters if within(n, path) and n not in places]:
            yield path or type(self.root).__name__, path, others
