"""Moves the content of an RNN into a module of another class, alone or inside a model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils import parametrize

from .._checks import as_bool, as_module
from .._model import Tree, runs_fused, wrapped_name
from .._warn import warn
from .unregistered import kept_outside

Module = TypeVar("Module", bound=nn.Module)

_CONTENT = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
# Attributes that nn.RNNBase derives from its parameters, and a call compiled for the module itself.
_BOUND = (
    "_flat_weights",
    "_flat_weights_names",
    "_all_weights",
    "_flat_weight_refs",
    "_compiled_call_impl",
)


def adopt(target: Module, source: nn.Module, share_hooks: bool, skip: tuple[str, ...]) -> Module:
    """Gives `target` everything `source` has but the attributes in `skip`.

    Parameters, buffers, submodules and parametrizations are the same objects. With `share_hooks`
    the hook registries are, too: the user's handles then remove hooks from both modules, and a
    hook registered on one module runs on both.
    """
    for name, value in vars(source).items():
        if name in _BOUND or name in skip:
            continue
        registry = type(value) in (dict, OrderedDict, set) and name.startswith("_")
        if registry and (name in _CONTENT or not share_hooks):
            value = value.copy()
        vars(target)[name] = value
    hooks = vars(target).get("_load_state_dict_pre_hooks", {})
    for key, hook in hooks.items():
        if getattr(hook, "with_module", False):
            hooks[key] = type(hook)(hook.hook, target)
    if parametrize.is_parametrized(source):
        _share_parametrizations(target, source)
    return target


def _share_parametrizations(target: nn.Module, source: nn.Module) -> None:
    # register_parametrization would run the parametrizations and make new Parameters.
    shared: Any = source.parametrizations
    del target._modules["parametrizations"]
    parametrize._inject_new_class(target)
    target.parametrizations = nn.ModuleDict(dict(shared.items()))
    for name in shared:
        parametrize._inject_property(target, name)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the module is of this very class, parametrised or not."""
    return parametrize.type_before_parametrizations(module) is kind


def swap_lstms(
    model: nn.Module,
    convert: Callable[[nn.LSTM], nn.Module],
    done: type[nn.Module],
    subclasses: bool,
) -> tuple[str, ...]:
    """Puts `convert(lstm)` in the place of every nn.LSTM inside `model`; returns their paths.

    A module at several places is converted once. Modules of class `done` are left alone. So are
    subclasses of nn.LSTM, with a warning, unless `subclasses` is True.
    """
    as_module(model, "model")
    as_bool(subclasses, "subclasses")
    if isinstance(model, nn.LSTM):
        raise ValueError(
            "model must contain nn.LSTM modules, got an nn.LSTM itself, which cannot be replaced "
            "in place: use BiLSTM.from_lstm(model)"
        )
    _refuse_wrapped(model)
    places: dict[str, tuple[nn.Module, str, nn.LSTM]] = {}
    left: dict[str, nn.LSTM] = {}
    for path, parent in model.named_modules(remove_duplicate=False):
        for name, child in parent._modules.items():
            if not isinstance(child, nn.LSTM) or isinstance(child, done):
                continue
            child_path = f"{path}.{name}" if path else name
            if subclasses or is_plain(child, nn.LSTM):
                places[child_path] = parent, name, child
            else:
                left[child_path] = child
    converted = {lstm: convert(lstm) for _, _, lstm in places.values()}
    for parent, name, lstm in places.values():
        parent._modules[name] = converted[lstm]
    for path, lstm in left.items():
        warn(
            f"{path!r} is a {type(lstm).__name__}, a subclass of nn.LSTM that may do more than "
            "nn.LSTM: left as it is; replace_lstm(model, subclasses=True) replaces nn.LSTM's part "
            "of it and keeps what it adds",
        )
    _say_what_is_kept_outside(model, {id(module) for module in left.values()}, done)
    if not places and not left:
        _say_what_there_is(model, done)
    _say_where_it_is_slower({path: lstm for path, (_, _, lstm) in places.items()})
    return tuple(places)


def _say_where_it_is_slower(replaced: Mapping[str, nn.LSTM]) -> None:
    """Warns once of those that ran a vendor's fused kernels and have no frozen part yet."""
    slower = [
        repr(path)
        for path, lstm in replaced.items()
        if runs_fused(lstm) and all(p.requires_grad for p in lstm.parameters())
    ]
    if not slower:
        return
    warn(
        f"{', '.join(slower)}: on CUDA a BiLSTM all of which trains is slower than nn.LSTM, which "
        "runs on cuDNN. What speaks for BiLSTM there: a frozen prefix whose outputs are cached "
        "(lstm.prefix_cache = PrefixCache()), one direction frozen, or a frozen encoder in eval() "
        "that gradients pass through. Else keep nn.LSTM: freeze and all else here work on it, too"
    )


def _say_what_is_kept_outside(model: nn.Module, left: set[int], done: type[nn.Module]) -> None:
    """Warns of each nn.LSTM that the model keeps outside of its submodules."""
    for path, lstm in kept_outside(model, nn.LSTM).items():
        if id(lstm) not in left and not isinstance(lstm, done):
            warn(
                f"{path!r} still is an nn.LSTM: it is kept in a plain Python object and not as a "
                "submodule, so what uses it from there goes on with nn.LSTM; keep it in an "
                "nn.ModuleList or nn.ModuleDict, or put the BiLSTM there by hand"
            )


def _say_what_there_is(model: nn.Module, done: type[nn.Module]) -> None:
    """Warns that there was nothing to replace, unless all has been replaced before."""
    tree = Tree(model)
    if any(isinstance(rnn, done) for rnn in tree.rnns.values()):
        return
    found = {**tree.rnns, **tree.cells}
    listed = [f"{path!r} ({type(module).__name__})" for path, module in found.items()]
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    saw = (
        f"there are {', '.join(listed[:5])}{more}, which stay as they are"
        if found
        else ("nor any other RNN")
    )
    warn(
        f"replace_lstm replaced nothing: there is no nn.LSTM in this {type(model).__name__}; {saw}",
    )


def _refuse_wrapped(model: nn.Module) -> None:
    for path, module in model.named_modules():
        where = f"model.{path}" if path else "model"
        if wrapped_name(module) is not None:
            raise ValueError(
                f"model must not be wrapped yet, but {where} is a {type(module).__name__}, which "
                "already holds on to the nn.LSTM modules: call replace_lstm before wrapping"
            )
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise ValueError(
                f"model must not be compiled yet, but {where}.compile() was called: call "
                "replace_lstm before compiling"
            )
