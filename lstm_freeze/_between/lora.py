"""add_lora: weights stay frozen, and two small factors beside each of them train (LoRA)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import LBFGS, Optimizer

from .._checks import as_integer, as_module, as_number
from .._freezing import Freeze, freeze, unfreeze
from .._model import Layers, Names, Target, Tree, unwrap
from .._optimizers import as_optimizers
from .adapted import Adapted, add_factors, merged, take_factors
from .choosing import chosen_weights

_GROUP = "lora"


class LoRA:
    """What `add_lora` returns: a handle that merges or removes the factors it added.

    As a context manager it removes them at the exit. A copy or pickle of the module alone has the
    factors too; to be able to end them there, copy both: `copy.deepcopy((model, lora))`.

    Attributes:
        parameters: The names of the factors.

    Examples:
        >>> from lstm_freeze import BiLSTM
        >>> lora = add_lora(BiLSTM(4, 8), layers=0, directions="forward", rank=2)
        >>> lora.parameters[:2]
        ('weight_ih_l0_lora_A', 'weight_ih_l0_lora_B')
    """

    def __init__(
        self,
        module: nn.Module,
        weights: Sequence[Adapted],
        frozen: Freeze,
        optimizers: tuple[Optimizer, ...],
    ) -> None:
        """Keep what was added; only `add_lora` makes one."""
        self.parameters: tuple[str, ...] = tuple(n for w in weights for n in w.factors)
        self._module = unwrap(module)
        self._weights = tuple(weights)
        self._frozen: Freeze | None = frozen
        self._thaw = frozen.changed
        self._optimizers = optimizers

    def remove(self) -> None:
        """Take the factors away: the module computes with the base again, bit for bit.

        The base trains again if it did before `add_lora`. A second time does nothing.
        """
        self._end({})

    def merge(self) -> None:
        """Write base + update into the weights, and take the factors away.

        The module computes what it computed, to rounding. The weights train again if they did
        before `add_lora`; where they stay frozen, a FrozenGuard accepts the new values after
        `guard.remember()`. A second time does nothing.
        """
        tree = Tree(self._module)
        self._end({w.full_name: merged(w.owner(tree), w.name) for w in self._weights})

    def state_dict(self) -> dict[str, Tensor]:
        """The factors by name; rank shows in their shapes, alpha is for the caller to know.

        >>> lora = add_lora(nn.Linear(4, 3), rank=2)
        >>> {name: tuple(factor.shape) for name, factor in lora.state_dict().items()}
        {'weight_lora_A': (2, 4), 'weight_lora_B': (3, 2)}
        """
        named = Tree(self._module).parameters
        return {name: named[name].detach() for name in self.parameters if name in named}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Set the factors to those of a `state_dict()`.

        Raises:
            ValueError: It has other names or shapes; each is named, and nothing was changed.
        """
        own = self.state_dict()
        wrong = sorted(own.keys() ^ state_dict.keys())
        wrong += [n for n in own if n in state_dict and state_dict[n].shape != own[n].shape]
        if wrong:
            raise ValueError(
                f"`state_dict` does not fit these LoRA factors: {', '.join(wrong)} are missing, "
                "additional or of another shape; call add_lora with the targets and rank that it "
                "was made with"
            )
        with torch.no_grad():
            for name, factor in own.items():
                factor.copy_(state_dict[name])

    def __enter__(self) -> LoRA:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        if not self._weights:
            return "LoRA(ended)"
        numbers = sum(factor.numel() for factor in self.state_dict().values())
        return f"LoRA({len(self._weights)} weights, {numbers:,} numbers in their factors)"

    def __getstate__(self) -> dict[str, Any]:
        # Marks say by name what trained before in a copy; the optimizers hold other Parameters.
        return {**vars(self), "_frozen": None, "_optimizers": ()}

    def _end(self, values: Mapping[str, Tensor]) -> None:
        if not self._weights:
            return
        tree = Tree(self._module)
        factors = [tree.parameters[name] for name in self.parameters]
        if any(not factor.requires_grad for factor in factors):
            unfreeze(self._module, list(self.parameters))  # guards release what is removed
        if self._frozen is not None:
            self._frozen.undo()
        elif self._thaw:
            unfreeze(self._module, list(self._thaw))
        with torch.no_grad():
            for name, value in values.items():
                tree.parameters[name].copy_(value)
        for weight in self._weights:
            take_factors(weight.owner(tree), weight.name)
        _leave(self._optimizers, factors)
        self._weights, self.parameters = (), ()


def add_lora(
    module: nn.Module,
    *targets: Target,
    layers: Layers = None,
    directions: Names = None,
    kinds: Names = "weight",
    exclude: Target = None,
    rank: int = 8,
    alpha: float | None = None,
    optimizer: Any = None,
) -> LoRA:
    """Freeze weights and give each two small trainable factors: LoRA, for BiLSTM and nn.Linear.

    The module computes with `weight + alpha / rank * B @ A`, where A is (rank, in) and B is
    (out, rank). B begins at zero, so the first forward pass has the same bits as before
    (Hu et al. 2021, arXiv 2106.09685). In a BiLSTM the gradients of the factors come from those of
    the gates directly: a gradient as large as the weight is never formed.

    The factors are Parameters of the module that has the weight, named `weight_hh_l0_lora_A` and so
    on. Targets name them like the weight they serve (`"lstm[0].weight_hh"`), and all of them are
    `"lora"`, `kinds="lora"` or, below a path, `"encoder.lora"`; so freeze, schedules, param groups
    and the rest of this library work on them. The base keeps its key in the `state_dict`, and is
    frozen: a FrozenGuard watches it.

    Args:
        module: Any module; torch.compile's wrapper is looked through. Add factors before the module
            is wrapped in DistributedDataParallel.
        targets: What gets factors; see `select`. Of what is chosen, the weights of every BiLSTM and
            nn.Linear; biases, embeddings and normalisation are passed over. None: all such weights.
        layers: Layers of the one RNN in `module`.
        directions: Directions of the one RNN in `module`.
        kinds: Kinds of weights of the one RNN in `module`; "weight" is all, in any number of RNNs
            and linear layers.
        exclude: Targets that get no factors, such as a new head that should train whole.
        rank: The width of the factors.
        alpha: The update is scaled by `alpha / rank`; None is `2 * rank`.
        optimizer: One that gets a param group "lora" of the factors, with its default learning
            rate; build learning-rate schedulers afterwards.

    Returns:
        A handle: `.parameters`, `.merge()`, `.remove()`, `.state_dict()`, `.load_state_dict()`;
        also a context manager that removes.

    Raises:
        ValueError: A target or keyword names nothing, or nothing that LoRA serves; a chosen weight
            is an nn.LSTM's (see `replace_lstm`), parametrised, tied or has factors already; a
            number is out of range; or `module` is wrapped in DDP. Nothing was changed.
        TypeError: An argument is of another type than named above. Nothing was changed.

    Examples:
        >>> from lstm_freeze import BiLSTM, status
        >>> model = nn.ModuleDict({"lstm": BiLSTM(4, 8), "head": nn.Linear(16, 2)})
        >>> lora = add_lora(model, "lstm", rank=2)
        >>> print(str(status(model)).splitlines()[-1])
        trainable params: 466 || all params: 1,234 || trainable%: 37.7634
        >>> lora.remove()
        >>> print(str(status(model)).splitlines()[-1])
        trainable params: 930 || all params: 930 || trainable%: 100.0000
    """
    as_module(module)
    rank = as_integer(rank, "rank", least=1)
    alpha = 2.0 * rank if alpha is None else as_number(alpha, "alpha")
    if alpha <= 0:
        raise ValueError(f"`alpha` must be above 0, got {alpha}; None is 2 * rank")
    optimizers = _one_at_most(optimizer)
    if any(isinstance(child, DistributedDataParallel) for child in module.modules()):
        raise ValueError(
            "`module` is wrapped in DistributedDataParallel, which would never average the "
            "gradients of new parameters; add_lora first, then wrap"
        )
    tree = Tree(module)
    weights = chosen_weights(tree, targets, layers, directions, kinds, exclude)
    try:
        for weight in weights:
            add_factors(weight.owner(tree), weight.name, rank, alpha / rank)
        frozen = freeze(module, [w.full_name for w in weights], optimizer=optimizer)
    except BaseException:
        for weight in weights:
            take_factors(weight.owner(tree), weight.name)
        raise
    lora = LoRA(module, weights, frozen, optimizers)
    _join(optimizers, Tree(module), lora.parameters)
    return lora


def _one_at_most(optimizer: Any) -> tuple[Optimizer, ...]:
    optimizers = as_optimizers(optimizer)
    if len(optimizers) > 1:
        raise ValueError(
            f"`optimizer` must be the one that is to train the factors, got {len(optimizers)}"
        )
    if optimizers and isinstance(optimizers[0], LBFGS):
        raise ValueError(
            "`optimizer` is an LBFGS, which takes no further parameters and moves frozen ones; "
            "use another, or build an LBFGS over the factors afterwards"
        )
    return optimizers


def _join(optimizers: tuple[Optimizer, ...], tree: Tree, names: Sequence[str]) -> None:
    """Put the factors in a param group of the optimizer; an emptied group is used again."""
    factors = [tree.parameters[name] for name in names]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if group.get("name") == _GROUP and not group["params"]:
                group["params"] = factors
                return
        optimizer.add_param_group({"params": factors, "name": _GROUP})


def _leave(optimizers: tuple[Optimizer, ...], factors: Sequence[nn.Parameter]) -> None:
    """Take the factors out of the optimizers.

    Their group stays, empty: learning-rate schedulers count groups.
    """
    ids = {id(factor) for factor in factors}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in ids]
        for factor in factors:
            with suppress(KeyError):
                del optimizer.state[factor]
