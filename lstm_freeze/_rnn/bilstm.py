"""BiLSTM: torch.nn.LSTM's contract on a recurrence of our own."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from .._names import DIRECTIONS, KINDS, kinds_of, name_of, place_of, rnn_names
from . import checks, memory, operator
from .conversion import adopt, is_plain, swap_lstms
from .precision import Precision, autocast_dtype, precision_of
from .prefix import CachesPrefix
from .rows import Rows, dense_rows, packed_rows, unpermuted
from .weights import Weights

State = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class ParameterGroup:
    """The parameters of one layer and direction of an RNN.

    Examples:
        >>> BiLSTM(4, 8).groups[1].names[0]
        'weight_ih_l0_reverse'

    Attributes:
        layer: The layer, counted from the input.
        direction: "forward" or "reverse".
        names: The parameters' names in the module, parametrised names included.
        parameters: The parameters in the order of `names`.
    """

    layer: int
    direction: str
    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...] = field(repr=False)


class BiLSTM(nn.Module):
    """Applies a multi-layer, by default bidirectional, LSTM to a batch of sequences.

    A drop-in for torch.nn.LSTM: the same arguments, parameters, initialisation, results and
    errors; only the default of `bidirectional` differs. Its backward pass does only the work that
    something trainable needs, and what is frozen never changes a bit of its forward pass.

    Examples:
        >>> lstm = BiLSTM(4, 8, num_layers=2)
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 4))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 16]), torch.Size([4, 3, 8]))

    Args:
        input_size: The number of features I of a step of the input.
        hidden_size: The number of features H of the hidden state.
        num_layers: The number of stacked layers L.
        bias: Whether the gates have biases.
        batch_first: Whether dense input and output are (B, T, F) instead of (T, B, F).
        dropout: The probability of the dropout between layers, in training mode.
        bidirectional: Whether each layer also reads the sequence from its end (D = 2).
        proj_size: Where positive, the size P that hidden states are projected to (else P = H).
        device: Where the parameters live.
        dtype: The parameters' dtype.

    Raises:
        ValueError: A size or the dropout probability is out of range.
        TypeError: A size is not an int, or a switch not a bool.

    Attributes:
        prefix_cache: A PrefixCache, or None.
        dropout_off_layers: Layers that `freeze(..., dropout="off")` has frozen: no dropout between
            two of them while neither has a trainable parameter.
    """

    mode = "LSTM"
    dropout_off_layers: set[int]
    prefix_cache: Any

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = True,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.check_options(
            input_size=input_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            proj_size=proj_size,
            stacklevel=2,
        )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self.dropout_off_layers = set()
        self.prefix_cache = None
        for name in rnn_names(num_layers, bidirectional, bias, proj_size > 0):
            shape = self._shape(name)
            setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()
        memory.keep_for(self)

    @classmethod
    def from_lstm(cls, lstm: nn.LSTM) -> BiLSTM:
        """Makes a BiLSTM of an nn.LSTM, with the same Parameter objects.

        Optimizers and ties that hold the parameters stay valid. Hooks (later ones apart), the
        training mode, parametrizations and attributes are taken over.

        Examples:
            >>> lstm = nn.LSTM(4, 8)
            >>> BiLSTM.from_lstm(lstm).weight_hh_l0 is lstm.weight_hh_l0
            True

        Raises:
            TypeError: `lstm` is not an nn.LSTM, or is of a subclass, which may do more.
        """
        return cls._from_lstm(lstm, share_hooks=False)

    @classmethod
    def _from_lstm(cls, lstm: nn.LSTM, share_hooks: bool) -> BiLSTM:
        if not is_plain(lstm, nn.LSTM):
            remedy = " (a subclass may do more than nn.LSTM)" if isinstance(lstm, nn.LSTM) else ""
            raise TypeError(f"lstm must be an nn.LSTM, got {type(lstm).__name__}{remedy}")
        target = cls.__new__(cls)
        nn.Module.__init__(target)
        target.dropout_off_layers = set()
        target.prefix_cache = None
        memory.keep_for(target)
        return adopt(target, lstm, share_hooks, skip=("mode",))

    def to_lstm(self) -> nn.LSTM:
        """Makes an nn.LSTM of this module, with the same Parameter objects.

        Examples:
            >>> BiLSTM(4, 8).to_lstm()
            LSTM(4, 8, bidirectional=True)
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # dropout of one layer: said before
            lstm = nn.LSTM(
                self.input_size,
                self.hidden_size,
                self.num_layers,
                self.bias,
                self.batch_first,
                self.dropout,
                self.bidirectional,
                self.proj_size,
                device="meta",
            )
        own = ("dropout_off_layers", "prefix_cache")
        adopt(lstm, self, share_hooks=False, skip=own)
        lstm._init_flat_weights()
        return lstm

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a `prefix_cache` must be one."""
        if name == "prefix_cache" and not (value is None or isinstance(value, CachesPrefix)):
            raise TypeError(
                f"`prefix_cache` must be a PrefixCache or None, got {value!r}; "
                f"lstm.prefix_cache = PrefixCache(max_bytes=2**30)"
            )
        super().__setattr__(name, value)

    @property
    def num_directions(self) -> int:
        """D: 2 where bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The weights of each layer and direction, as nn.LSTM lists them."""
        return [
            [w for w in self._weights(layer, direction) if w is not None]
            for layer in range(self.num_layers)
            for direction in DIRECTIONS[: self.num_directions]
        ]

    @property
    def groups(self) -> tuple[ParameterGroup, ...]:
        """The parameters per layer and direction, input side first, forward before reverse.

        Examples:
            >>> [(g.layer, g.direction) for g in BiLSTM(4, 8).groups]
            [(0, 'forward'), (0, 'reverse')]
        """
        found: dict[tuple[int, str], dict[str, nn.Parameter]] = {
            (layer, direction): {}
            for layer in range(self.num_layers)
            for direction in DIRECTIONS[: self.num_directions]
        }
        for name, parameter in self.named_parameters(remove_duplicate=False):
            place = place_of(name)
            if place is not None and place[:2] in found:
                found[place[:2]][name] = parameter
        return tuple(
            ParameterGroup(*where, tuple(named), tuple(named.values()))
            for where, named in found.items()
        )

    def forward(self, input: Tensor | PackedSequence, hx: State | None = None) -> tuple[Any, State]:
        """Runs all layers over the sequences.

        Args:
            input: (T, B, I), with `batch_first` (B, T, I), unbatched (T, I), or a PackedSequence.
            hx: The initial hidden and cell states, (L * D, B, P) and (L * D, B, H), without B
                for unbatched input; zeros where absent.

        Returns:
            The last layer's output, (T, B, D * P) or shaped like the input, and the final states
            (h_n, c_n), shaped like `hx`.

        Raises:
            ValueError: The input has the wrong rank or dtype.
            RuntimeError: A size, a state or a packed input's dtype does not fit.
        """
        if isinstance(input, torch.fx.Proxy):
            path = input.tracer.path_of_module(self)
            args = (input,) if hx is None else (input, hx)
            proxy: Any = input.tracer.create_proxy("call_module", path, args, {})
            return proxy
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        checks.check_is_tensor(input)
        if input.dim() not in (2, 3):
            raise ValueError(
                f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead: pass (T, I), "
                "(T, B, I) or, with batch_first, (B, T, I)"
            )
        is_batched = input.dim() == 3
        if not is_batched:
            input = input.unsqueeze(0 if self.batch_first else 1)
        if hx is None:
            self.check_input(input, None)
        else:
            hx = checks.dense_states(hx, is_batched)
            self.check_forward_args(input, hx, None)
            hx = checks.two_states(hx)
        output, h_n, c_n = self._run(dense_rows(input, self.batch_first), hx)
        if self.batch_first:
            output = output.transpose(0, 1)
        if not is_batched:
            output = output.squeeze(0 if self.batch_first else 1)
            return output, (h_n.squeeze(1), c_n.squeeze(1))
        return output, (h_n, c_n)

    def _forward_packed(
        self, input: PackedSequence, hx: State | None
    ) -> tuple[PackedSequence, State]:
        data, batch_sizes = input.data, input.batch_sizes
        weight = self._weights(0, "forward").weight_ih
        if data.dtype != weight.dtype and not autocast_dtype(weight):
            raise RuntimeError(checks.dtype_message(data.dtype, weight.dtype))
        self._check_sizes(data, batch_sizes)
        if hx is not None:
            sizes = self._state_sizes(data, batch_sizes)
            hx = checks.packed_states(hx, sizes, input.sorted_indices)
            self.check_forward_args(data, hx, batch_sizes)
        output, h_n, c_n = self._run(packed_rows(input, self.bidirectional), hx)
        packed = PackedSequence(
            output, input.batch_sizes, input.sorted_indices, input.unsorted_indices
        )
        return packed, unpermuted((h_n, c_n), input.unsorted_indices)

    def _run(self, rows: Rows, hx: State | None) -> tuple[Tensor, Tensor, Tensor]:
        """All layers over the internal form: output rows, h_n (L * D, B, P), c_n (L * D, B, H)."""
        weight = self._weights(0, "forward").weight_ih
        precision = precision_of(weight, rows, hx, projected=self.proj_size > 0)
        finals: list[State] = []

        def run(rows: Rows, first: int, last: int) -> tuple[Rows, list[State]]:
            states = []
            for layer in range(first, last):
                rows, h, c = self._run_layer(rows, layer, hx, precision)
                states.append((h, c))
            return rows, states

        use = self.prefix_cache is not None and hx is None
        prefix = self._frozen_prefix(rows) if use else []
        start = len(prefix)
        if prefix:
            form = (precision, rows.data.dtype, rows.data.device, self.bidirectional)
            rows, *states = self.prefix_cache.serve(rows, prefix, form, run)
            finals.append((states[0], states[1]))
        rows, rest = run(rows, start, self.num_layers)
        finals += rest
        h_n = torch.cat([h for h, _ in finals])
        c_n = torch.cat([c for _, c in finals])
        return rows.data, h_n, c_n

    def _frozen_prefix(self, rows: Rows) -> list[list[Tensor]]:
        """The weights of each of the lowest layers that a prefix cache may serve for this input."""
        if rows.data.requires_grad or rows.data.numel() == 0 or operator.is_traced(rows.data):
            return []
        named = self.named_parameters(remove_duplicate=False)
        places = [place_of(name) for name, parameter in named if parameter.requires_grad]
        depth = min((place.layer for place in places if place), default=self.num_layers)
        prefix: list[list[Tensor]] = []
        for layer in range(depth):
            found = [w for d in DIRECTIONS[: self.num_directions] for w in self._weights(layer, d)]
            weights = [w for w in found if w is not None]
            if any(w.requires_grad for w in weights):  # as of no parameter here
                break
            prefix.append(weights)
        random = self.training and self.dropout > 0
        if random and not all(self._dropout_is_off(layer) for layer in range(1, len(prefix))):
            self.prefix_cache.warn_of_dropout()
            return []
        return prefix

    def _run_layer(
        self, rows: Rows, layer: int, hx: State | None, precision: Precision
    ) -> tuple[Rows, Tensor, Tensor]:
        """One layer, the dropout before it included."""
        data, D = rows.data, self.num_directions
        if layer and self.training and self.dropout and not self._dropout_is_off(layer):
            data = F.dropout(data, self.dropout, training=True)
        h0 = c0 = None
        if hx is not None:
            h0 = precision.admit(hx[0][layer * D : (layer + 1) * D])
            c0 = hx[1][layer * D : (layer + 1) * D].to(precision.compute)
        weights = []
        for direction in DIRECTIONS[:D]:
            found = self._weights(layer, direction)
            self._check_weights(found, layer, direction, data.device)
            weights.append(precision.admit_all(found))
        output, h, c = operator.layer(
            precision.admit(data), rows.batch_sizes, rows.reverse, h0, c0, weights
        )
        output, h = output.to(precision.output), h.to(precision.output)
        return rows.with_data(output), h, c.to(precision.cell)

    def _weights(self, layer: int, direction: str) -> Weights:
        """The weights as they are now: parametrised, pruned and replaced ones count at once."""
        kinds = kinds_of(self.bias, self.proj_size > 0)
        found = {kind: getattr(self, name_of(layer, direction, kind)) for kind in kinds}
        for kind, weight in found.items():
            if weight is None:
                name = name_of(layer, direction, kind)
                raise TypeError(f"{name} must be a Tensor, got None: set it to a Parameter")
        return Weights(**found)

    def _check_weights(
        self, weights: Weights, layer: int, direction: str, device: torch.device
    ) -> None:
        """Raises where a weight was replaced by one that does not fit: memory is read by sizes."""
        for kind, weight, shape in zip(KINDS, weights, self._shapes(layer), strict=True):
            if weight is not None and (weight.shape != shape or weight.device != device):
                raise RuntimeError(
                    f"{name_of(layer, direction, kind)} must have size {shape} on {device}, got "
                    f"{tuple(weight.shape)} on {weight.device}: set it to one that fits"
                )

    def _dropout_is_off(self, layer: int) -> bool:
        """Whether the gap below `layer` lies between two layers frozen with dropout="off"."""
        below = layer - 1
        if not {below, layer} <= self.dropout_off_layers:
            return False
        groups = self.groups[below * self.num_directions : (layer + 1) * self.num_directions]
        return not any(p.requires_grad for group in groups for p in group.parameters)

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Raises where the input's dtype, rank or size does not fit this module."""
        weight = self._weights(0, "forward").weight_ih
        if input.dtype != weight.dtype and not autocast_dtype(weight):
            raise ValueError(checks.dtype_message(input.dtype, weight.dtype))
        self._check_sizes(input, batch_sizes)

    def _check_sizes(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        expected = 3 if batch_sizes is None else 2
        if input.dim() != expected:
            raise RuntimeError(f"input must have {expected} dimensions, got {input.dim()}")
        if input.size(-1) != self.input_size:
            raise RuntimeError(
                "input.size(-1) must be equal to input_size. "
                f"Expected {self.input_size}, got {input.size(-1)}"
            )
        weight = self._weights(0, "forward").weight_ih
        if input.device != weight.device:
            raise RuntimeError(
                checks.device_message("Input", input.device, "parameter", weight.device)
            )

    def _state_sizes(
        self, input: Tensor, batch_sizes: Tensor | None
    ) -> tuple[tuple[int, int, int], ...]:
        return (
            self.get_expected_hidden_size(input, batch_sizes),
            self.get_expected_cell_size(input, batch_sizes),
        )

    def get_expected_hidden_size(
        self, input: Tensor, batch_sizes: Tensor | None
    ) -> tuple[int, int, int]:
        """(L * D, B, P) for this input."""
        size = self.proj_size if self.proj_size > 0 else self.hidden_size
        return (*self.get_expected_cell_size(input, batch_sizes)[:2], size)

    def get_expected_cell_size(
        self, input: Tensor, batch_sizes: Tensor | None
    ) -> tuple[int, int, int]:
        """(L * D, B, H) for this input."""
        if batch_sizes is not None:
            batch = int(batch_sizes[0])
        else:
            batch = input.size(0) if self.batch_first else input.size(1)
        return self.num_layers * self.num_directions, batch, self.hidden_size

    def check_hidden_size(
        self,
        hx: Tensor,
        expected_hidden_size: tuple[int, int, int],
        msg: str = "Expected hidden size {}, got {}",
    ) -> None:
        """Raises where a state does not have the expected size."""
        checks.check_state_size(hx, expected_hidden_size, msg)

    def check_forward_args(self, input: Tensor, hidden: State, batch_sizes: Tensor | None) -> None:
        """Raises where the input or the states do not fit this module or each other."""
        if batch_sizes is None:
            self.check_input(input, None)
        for k, size in enumerate(self._state_sizes(input, batch_sizes)):
            self.check_hidden_size(hidden[k], size, f"Expected hidden[{k}] size {{}}, got {{}}")
        weight = self._weights(0, "forward").weight_ih
        for k, state in enumerate(hidden):
            if state.dtype != weight.dtype and not autocast_dtype(weight):
                raise RuntimeError(
                    f"hx must have the weights' dtype. Expected {weight.dtype}, got {state.dtype} "
                    f"for hx[{k}]: convert it with hx[{k}].to({weight.dtype})"
                )
            if state.device != input.device:
                raise RuntimeError(
                    checks.device_message("Input", input.device, "hidden", state.device)
                )

    def permute_hidden(self, hx: State, permutation: Tensor | None) -> State:
        """Both states with their sequences in the order of `permutation`."""
        return unpermuted(hx, permutation)

    def flatten_parameters(self) -> None:
        """Does nothing: the weights are used where they are. Here for nn.LSTM's callers."""

    def reset_parameters(self) -> None:
        """Draws all parameters anew from U(-1/sqrt(H), 1/sqrt(H)), in registration order."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        """The arguments, as nn.LSTM prints them: those that differ from nn.LSTM's defaults."""
        defaults = {
            "proj_size": 0,
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0,
            "bidirectional": False,
        }
        exact = ("bias", "batch_first", "bidirectional")
        given = [
            f"{k}={value}"
            for k, default in defaults.items()
            if (value := getattr(self, k)) is not default and (k in exact or value != default)
        ]
        return ", ".join([str(self.input_size), str(self.hidden_size), *given])

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a pickled module, also one without `proj_size` or this class's own extras."""
        extras: dict[str, Any] = {"prefix_cache": None, "dropout_off_layers": set()}
        super().__setstate__({"proj_size": 0, **extras, **state})  # type: ignore[no-untyped-call]
        memory.keep_for(self)

    def _shape(self, name: str) -> tuple[int, ...]:
        place = place_of(name)
        assert place is not None
        return self._shapes(place.layer)[KINDS.index(place.kind)]

    def _shapes(self, layer: int) -> tuple[tuple[int, ...], ...]:
        """The shapes of a layer's parameters in the order of KINDS, absent ones too."""
        H, P = self.hidden_size, self.proj_size or self.hidden_size
        layer_input = P * self.num_directions if layer else self.input_size
        return ((4 * H, layer_input), (4 * H, P), (4 * H,), (4 * H,), (P, H))


def replace_lstm(model: nn.Module) -> tuple[str, ...]:
    """Makes every nn.LSTM inside `model` a BiLSTM, in place.

    Parameters stay the same objects, so optimizers stay valid; hooks and their handles, training
    mode and parametrizations are kept. An nn.LSTM that stands in several places stays shared.
    Subclasses of nn.LSTM are left alone with a warning.

    Examples:
        >>> model = nn.Sequential(nn.Embedding(20, 4), nn.LSTM(4, 8))
        >>> replace_lstm(model)
        ('1',)

    Returns:
        The paths of the replaced modules.

    Raises:
        ValueError: `model` is itself an nn.LSTM, or is already wrapped or compiled.
    """
    return swap_lstms(model, lambda lstm: BiLSTM._from_lstm(lstm, share_hooks=True), stacklevel=3)
