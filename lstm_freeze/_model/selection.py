"""Selection and select: from targets and keywords to named parameters."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import SupportsIndex

from torch import nn

from .._checks import as_module
from .targets import Layers, Names, in_rnn, quote, resolve, rnns_there_are
from .tree import Tree

Target = str | Iterable[str] | None
"""One or several targets: a module path, a parameter path, a glob, or an RNN with brackets."""


class Selection(Mapping[str, nn.Parameter]):
    """Chosen parameters by name, in registration order; tied ones under every name they have.

    Attributes:
        parameters: The chosen parameters, each once.
    """

    def __init__(self, tree: Tree, names: Iterable[str]) -> None:
        """Choose the parameters of these names."""
        self._named = tree.all_names(names)
        self._distinct = tree.distinct(self._named)

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The chosen parameters, each once."""
        return tuple(self._distinct.values())

    @property
    def distinct(self) -> Mapping[str, nn.Parameter]:
        """First name -> parameter, each parameter once."""
        return self._distinct

    def __getitem__(self, name: str) -> nn.Parameter:
        return self._named[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)

    def __eq__(self, other: object) -> bool:
        # Mapping's own would compare tensors by value.
        if not isinstance(other, Mapping):
            return NotImplemented
        return {n: id(p) for n, p in self.items()} == {n: id(p) for n, p in other.items()}

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        rows = [
            f"  {name:<{width}}  {'trainable' if p.requires_grad else 'frozen   '}  {_shape(p)}"
            for name, p in self.items()
        ]
        return "\n".join([f"Selection of {len(self._distinct)} parameters:", *rows])


def select(
    module: nn.Module,
    *targets: Target,
    layers: Layers = None,
    directions: Names = None,
    kinds: Names = None,
    exclude: Target = None,
) -> Selection:
    """List the parameters that these targets and keywords name; changes nothing.

    Targets are OR-ed; keywords are AND-ed with each other and with the targets; several values
    of one keyword are OR-ed. No target and no keyword means every parameter.

    Args:
        module: Any module; wrappers (DDP, torch.compile's) are looked through.
        targets: Strings or lists of strings. A module path covers its subtree (`"encoder"`); `*`
            crosses dots (`"head.*"`); brackets choose within an RNN (`"encoder.lstm[-1].reverse"`,
            `"lstm[0:2].forward.weight_hh"`, `"[0]"` where `module` is the RNN); a parameter's own
            path; `"lora"` or `"head.lora"` (all factors of `add_lora`, or those below a path);
            `"*"`.
        layers: Layers of the one RNN that `module` is or contains: `0`, `-1`, `[0, 2]`,
            `slice(0, 2)`.
        directions: `"forward"`, `"reverse"` or both; `"backward"` is an alias of `"reverse"`.
        kinds: `"weight_ih"`, `"weight_hh"`, `"bias_ih"`, `"bias_hh"`, `"weight_hr"`, `"bias"`
            (both biases), `"weight"` (all weights), `"lora"` (the factors of `add_lora`, which also
            count as the kind of the weight they serve), or several.
        exclude: Targets to leave out; a tied parameter is left out under all its names.

    Returns:
        The chosen parameters by name.

    Raises:
        ValueError: A target, value or exclusion matches nothing, a list is empty, keywords are
            used where there is not exactly one RNN, or nothing is left.
        TypeError: An argument is of another type than named above.

    Examples:
        >>> lstm = nn.LSTM(4, 8, num_layers=2, bidirectional=True)
        >>> list(select(lstm, layers=-1, directions="reverse", kinds="bias"))
        ['bias_ih_l1_reverse', 'bias_hh_l1_reverse']
        >>> list(select(nn.Sequential(lstm, nn.Linear(16, 2)), "1", "0[0].forward.weight_hh"))
        ['0.weight_hh_l0', '1.weight', '1.bias']
    """
    as_module(module)
    return select_in(Tree(module), targets, layers, directions, kinds, exclude)


def select_in(
    tree: Tree,
    targets: Sequence[Target] = (),
    layers: Layers = None,
    directions: Names = None,
    kinds: Names = None,
    exclude: Target = None,
) -> Selection:
    """The same as `select`, in a tree that has been read."""
    patterns = [t for target in targets for t in as_targets(target, "targets")]
    names = set(tree.parameters)
    if any(target is not None for target in targets):
        names = set().union(*(resolve(tree, t) for t in patterns))
    if not (layers is None and directions is None and kinds is None):
        names &= set(tree.all_names(_by_keyword(tree, layers, directions, kinds)))
        if not names:
            raise ValueError(
                f"targets {patterns} and the keywords together select nothing: "
                "keywords choose within the RNN; drop one of the two"
            )
    kept = set(names)
    for target in as_exclusion(exclude):
        kept -= set(tree.all_names(resolve(tree, target, "exclude=")))
    if names and not kept:
        raise ValueError(f"exclude={exclude!r} leaves nothing selected; exclude less")
    return Selection(tree, kept)


def as_targets(target: Target, argument: str, remedy: str = "None means all") -> list[str]:
    """A target or several as a list of strings; None is all; `remedy` is for an empty list."""
    if target is None:
        return ["*"]
    if isinstance(target, str):
        return [target]
    if isinstance(target, (nn.Module, nn.Parameter)) or not isinstance(target, Iterable):
        raise TypeError(
            f"`{argument}` must be strings (module or parameter paths) or lists of them, "
            f"got {type(target).__name__}"
        )
    items = list(target)
    if not items:
        raise ValueError(f"`{argument}` got an empty list, which names nothing; {remedy}")
    if wrong := [i for i in items if not isinstance(i, str)]:
        raise TypeError(f"`{argument}` must hold strings, got {type(wrong[0]).__name__}")
    return items


def as_exclusion(exclude: Target) -> list[str]:
    """The targets to leave out; none for None."""
    return [] if exclude is None else as_targets(exclude, "exclude", "None leaves nothing out")


def select_layer(tree: Tree, layer: SupportsIndex, argument: str) -> Selection:
    """A layer of the one RNN of a tree; messages name the argument that gave it."""
    shown = f"{argument}={operator.index(layer)}"
    names = in_rnn(tree, _the_rnn(tree, shown), layer, None, None, shown)
    return Selection(tree, tree.all_names(names))


def _by_keyword(tree: Tree, layers: Layers, directions: Names, kinds: Names) -> set[str]:
    given = {"layers": layers, "directions": directions, "kinds": kinds}
    keyword = next(name for name, value in given.items() if value is not None)
    return in_rnn(tree, _the_rnn(tree, f"{keyword}="), layers, directions, kinds)


def _the_rnn(tree: Tree, shown: str) -> str:
    """The path of the one RNN of a tree; ValueError where there is not exactly one."""
    if len({*map(id, tree.rnns.values())}) != 1:
        example = f"like {quote(f'{next(iter(tree.rnns))}[0]')}" if tree.rnns else "module paths"
        raise ValueError(
            f"{shown} needs a module that is or contains exactly one RNN; "
            f"{rnns_there_are(tree)}; use targets, {example}"
        )
    return next(iter(tree.rnns))


def _shape(parameter: nn.Parameter) -> str:
    lazy = nn.parameter.is_lazy(parameter)
    return "(lazy)" if lazy else str(tuple(parameter.shape))
