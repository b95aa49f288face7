"""Place: (layer, direction, kind) <-> the name of an RNN's parameter. No torch.

The only file that spells or parses the parameter names of nn.RNNBase.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

DIRECTIONS = ("forward", "reverse")
KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
KIND_GROUPS = {
    "weight": ("weight_ih", "weight_hh", "weight_hr"),
    "bias": ("bias_ih", "bias_hh"),
}

_NAME = re.compile(rf"(?P<kind>{'|'.join(KINDS)})_l(?P<layer>0|[1-9]\d*)(?P<reverse>_reverse)?")
_LED = re.compile(rf"(?P<base>{_NAME.pattern})(?P<suffix>[^\d\n].*)")
_PARAMETRIZED = re.compile(r"(?P<path>(?:.*\.)?)parametrizations\.(?P<base>[^.]+)\..+")
_OLD_STYLE = re.compile(r"(?P<path>)(?P<base>.+)_(?:g|v|orig)")
_FACTOR = re.compile(r"(?P<path>)(?P<base>.+)_lora_[AB]")


class Place(NamedTuple):
    """The place of one parameter in an RNN."""

    layer: int
    direction: str
    kind: str


def lowest_layer(places: Iterable[Place | None], default: int) -> int:
    """The lowest layer among these places; a None is skipped.

    >>> lowest_layer([place_of("bias_ih_l2"), None, place_of("bias_ih_l1")], default=3)
    1
    """
    return min((place.layer for place in places if place is not None), default=default)


def base_name(name: str) -> str:
    """The path of the tensor that a parametrised (also old-style) parameter or a factor serves.

    >>> base_name("lstm.parametrizations.weight_hh_l0.original0"), base_name("weight_hh_l0_g")
    ('lstm.weight_hh_l0', 'weight_hh_l0')
    >>> base_name(factor_name("lstm.weight_hh_l0", "A"))
    'lstm.weight_hh_l0'
    """
    match = _PARAMETRIZED.fullmatch(name) or _OLD_STYLE.fullmatch(name) or _FACTOR.fullmatch(name)
    return match["path"] + match["base"] if match else name


def factor_name(name: str, factor: str) -> str:
    """The name of a LoRA factor, "A" or "B", of the weight of this name.

    >>> factor_name("weight_hh_l0_reverse", "B")
    'weight_hh_l0_reverse_lora_B'
    """
    return f"{name}_lora_{factor}"


def is_factor(name: str) -> bool:
    """Whether this is the name of a LoRA factor.

    >>> is_factor("lstm.weight_hh_l0_lora_A"), is_factor("lstm.weight_hh_l0")
    (True, False)
    """
    return _FACTOR.fullmatch(name) is not None


def name_of(layer: int, direction: str, kind: str) -> str:
    """The name nn.RNNBase gives the parameter at a place.

    >>> name_of(1, "reverse", "bias_hh")
    'bias_hh_l1_reverse'
    """
    return f"{kind}_l{layer}{'_reverse' if direction == 'reverse' else ''}"


@functools.lru_cache(maxsize=4096)
def place_of(name: str) -> Place | None:
    """The place that a parameter name of an RNN stands for; None for any other name.

    >>> place_of("weight_ih_l11_reverse")
    Place(layer=11, direction='reverse', kind='weight_ih')
    >>> place_of("parametrizations.weight_hh_l0.original1").kind
    'weight_hh'
    """
    match = _NAME.fullmatch(name) or _NAME.fullmatch(base_name(name))
    if match is None:
        return None
    return Place(int(match["layer"]), DIRECTIONS[match["reverse"] is not None], match["kind"])


def led_by(name: str) -> str | None:
    """The place name that a longer name begins with: what `weight_hh_l0_raw` is named after.

    >>> led_by("weight_hh_l10_reverse_raw"), led_by("weight_hh_l0"), led_by("hidden_l0")
    ('weight_hh_l10_reverse', None, None)
    """
    if _NAME.fullmatch(name):
        return None
    match = _LED.fullmatch(name)
    return match["base"] if match else None


def kinds_of(bias: bool, proj: bool) -> tuple[str, ...]:
    """The kinds an RNN with these options has, in registration order."""
    # Conditions, not products: under torch.compile the options may be symbols.
    biases = KIND_GROUPS["bias"] if bias else ()
    return ("weight_ih", "weight_hh", *biases, *(("weight_hr",) if proj else ()))


def rnn_names(num_layers: int, bidirectional: bool, bias: bool, proj: bool) -> tuple[str, ...]:
    """All parameter names of an RNN, in nn.RNNBase's registration order.

    >>> rnn_names(1, True, False, False)
    ('weight_ih_l0', 'weight_hh_l0', 'weight_ih_l0_reverse', 'weight_hh_l0_reverse')
    """
    return tuple(
        name_of(layer, direction, kind)
        for layer in range(num_layers)
        for direction in DIRECTIONS[: 1 + bidirectional]
        for kind in kinds_of(bias, proj)
    )
