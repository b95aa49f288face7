"""Serving: which tensor a parameter serves, and at which place in an RNN.

A parameter serves the tensor that is computed from it. Mostly the tensor is the parameter. Three
builds keep the parameter elsewhere. A parametrisation (also an old-style one) keeps it under
another name. Weight drop (DropConnect) keeps `weight_hh_l0_raw`, in the RNN or in a wrapper around
it, and writes a dropped copy to `weight_hh_l0`. An adapter package puts its factors beside a
`base_layer` that holds the weight; the factors of `add_lora` are beside the weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .._names import Place, base_name, is_factor, led_by, place_of, rnn_names

RNN_MODES = ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")
BASE_LAYER = "base_layer"
"""The name under which adapter packages hold the layer that they adapt."""

Named = Mapping[str, nn.Parameter]
Modules = Mapping[str, nn.Module]


def is_rnn(module: nn.Module) -> bool:
    """Whether a module keeps its parameters as nn.RNNBase does (BiLSTM, nn.LSTM, GRU, RNN)."""
    # Names of parameters decide: a model may have a `mode` and `num_layers` of its own.
    if getattr(module, "mode", None) not in RNN_MODES:
        return False
    plain = (name for name, value in vars(module).items() if isinstance(value, torch.Tensor))
    names = (*module._parameters.keys(), *getattr(module, "parametrizations", ()), *plain)
    return any(place_of(name) or led_by(name) for name in names)


def join(path: str, name: str) -> str:
    """`path.name`, or just the one of them that is not empty."""
    return f"{path}.{name}" if path and name else path or name


def within(name: str, path: str) -> bool:
    """Whether a name lies in the subtree of a module path ("" is the root)."""
    return not path or name == path or name.startswith(path + ".")


def without_base_layers(path: str) -> str:
    """A path as it was before an adapter package put its layers in.

    >>> without_base_layers("head.base_layer.weight")
    'head.weight'
    """
    return ".".join(word for word in path.split(".") if word != BASE_LAYER)


class Serving:
    """Which RNN, place and tensor each parameter of a model serves.

    Attributes:
        places: Name -> path of the RNN and place in it, for parameters that have a place.
        tensors: Name -> path of the tensor it serves, where that is not its own name.
        parametrized: The entries of `tensors` that come from a parametrisation of the module.
    """

    def __init__(self, modules: Modules, parameters: Named, rnns: Modules) -> None:
        """Read the model's present state."""
        self._modules, self._parameters, self._rnns = modules, parameters, rnns
        self._lacking = {path: _lacking(module) for path, module in rnns.items()}
        self.places: dict[str, tuple[str, Place]] = {}
        self.tensors: dict[str, str] = {}
        self.parametrized: dict[str, str] = {}
        for name in parameters:
            self._read(name)

    def _read(self, name: str) -> None:
        rnn = self._rnn_around(name)
        base = base_name(name)
        place = None if rnn is None else place_of(name[len(rnn) + 1 :] if rnn else name)
        if rnn is not None and place is not None:
            self.places[name] = rnn, place
        if base != name and self._is_tensor(base):
            self.tensors[name] = self.parametrized[name] = base
        elif is_factor(name) and base in self._parameters:
            self.tensors[name] = base
        elif place is None and (found := self._dropped(name, rnn) or self._adapted(name)):
            owner, tensor = found
            self.tensors[name] = join(owner, tensor)
            if owner in self._rnns and (place := place_of(tensor)):
                self.places[name] = owner, place
        path = self.tensors.get(name, name)
        if (bare := without_base_layers(path)) != name:
            self.tensors[name] = bare

    def _rnn_around(self, name: str) -> str | None:
        """The path of the nearest RNN that a name lies in."""
        return next((path for path in _above(name) if path in self._rnns), None)

    def _is_tensor(self, path: str) -> bool:
        # A parameter may be called `w_v` and have nothing to do with weight norm and a `w`.
        owner_path, _, name = path.rpartition(".")
        owner = self._modules.get(owner_path)
        return owner is not None and (
            name in getattr(owner, "parametrizations", ())
            or isinstance(vars(owner).get(name), torch.Tensor)
        )

    def _dropped(self, name: str, rnn: str | None) -> tuple[str, str] | None:
        """The tensor without a parameter of its own that a parameter is named after."""
        owner, _, own = name.rpartition(".")
        if led_by(own) is None and place_of(own) is None:
            return self._dropped_elsewhere(name)
        base = led_by(own) or own
        if rnn is not None:
            factor = "lora_" in own and _has(self._modules[rnn], base)
            return (rnn, base) if factor or self._takes(rnn, base, name) else None
        if isinstance(self._modules.get(owner), nn.ParameterDict):
            owner = owner.rpartition(".")[0]
        takers = {
            id(module): path
            for path, module in reversed([*self._rnns.items()])
            if within(path, owner) and self._takes(path, base, name)
        }
        return (takers.popitem()[1], base) if len(takers) == 1 else None

    def _takes(self, rnn: str, base: str, name: str) -> bool:
        """Whether an RNN gets its tensor `base` from a parameter that is not its own."""
        own = self._modules[rnn]._parameters.get(base)
        return base in self._lacking[rnn] or own is self._parameters[name]

    def _dropped_elsewhere(self, name: str) -> tuple[str, str] | None:
        """As `_dropped`, for layers other than RNNs: a tensor of the same shape, here or below."""
        owner, _, own = name.rpartition(".")
        parameter = self._parameters[name]
        if "_" not in own or nn.parameter.is_lazy(parameter):
            return None
        for path in (owner, *(join(owner, child) for child in self._modules[owner]._modules)):
            held = vars(self._modules[path]) if path in self._modules else {}
            for base in _beginnings(own):
                value = held.get(base)
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    return path, base
        return None

    def _adapted(self, name: str) -> tuple[str, str] | None:
        """The weight that a factor of an adapter package belongs to."""
        for path in _above(name):
            base = join(path, BASE_LAYER)
            if base not in self._modules or within(name, base):
                continue
            tensor = getattr(self._modules[path], "parameter_name", "weight")
            while join(base, BASE_LAYER) in self._modules:
                base = join(base, BASE_LAYER)
            if isinstance(tensor, str) and _has(self._modules[base], tensor):
                return base, tensor
            return None
        return None


def _above(name: str) -> Iterator[str]:
    """The paths of the modules that a name lies in, the nearest first; the last is the root."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _beginnings(name: str) -> Iterator[str]:
    """The name without one or more suffixes: `a_b`, then `a`, for `a_b_c`."""
    while (name := name.rpartition("_")[0]) != "":
        yield name


def _has(module: nn.Module, name: str) -> bool:
    """Whether a module has a tensor of this name, as a parameter or otherwise."""
    return name in module._parameters or isinstance(getattr(module, name, None), torch.Tensor)


def _lacking(rnn: Any) -> set[str]:
    """The names of an RNN's tensors that are not its own parameters."""
    try:
        names = rnn_names(rnn.num_layers, rnn.bidirectional, rnn.bias, bool(rnn.proj_size))
    except (AttributeError, TypeError):
        names = ()
    own = {n for n, p in rnn._parameters.items() if isinstance(p, nn.Parameter)}
    tensors = {**rnn._parameters, **vars(rnn)}
    plain = {name for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    parametrized = {*getattr(rnn, "parametrizations", ())}
    return {name for name in {*names, *plain} if place_of(name)} - own - parametrized
