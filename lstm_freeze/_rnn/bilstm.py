"""BiLSTM: torch.nn.LSTM's contract on a recurrence of our own."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .._names import KINDS, place_of, rnn_names
from .._recurrence import (
    Rows,
    Weights,
    check_steps,
    dense_rows,
    is_traced,
    is_written_out,
    packed_rows,
    unpermuted,
)
from .._warn import warn
from . import checks
from .base import LSTMBase
from .conversion import adopt, is_plain
from .layer_weights import check_weights, read_weights
from .padding import Lengths, as_lengths, masked_rows, padded_rows
from .parameter_group import ParameterGroup, parameter_groups
from .precision import precision_of
from .prefix import CachesPrefix, are_zeros, frozen_prefix
from .stack import Stack, States


class BiLSTM(LSTMBase):
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
            place = place_of(name)
            assert place is not None
            shape = self.weight_shapes(place.layer)[KINDS.index(place.kind)]
            setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    @classmethod
    def from_lstm(cls, lstm: nn.LSTM) -> BiLSTM:
        """Makes a BiLSTM of an nn.LSTM, with the same Parameter objects.

        Optimizers and ties stay valid. The hooks registered so far, the training mode,
        parametrizations and attributes are taken over.

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
        target.begin_empty()
        return adopt(target, lstm, share_hooks, skip=("mode",))

    def begin_empty(self) -> None:
        """Makes this an empty module, for `adopt` to fill."""
        nn.Module.__init__(self)
        self.dropout_off_layers = set()
        self.prefix_cache = None

    def to_lstm(self) -> nn.LSTM:
        """Makes an nn.LSTM of this module, with the same Parameter objects.

        Examples:
            >>> BiLSTM(4, 8).to_lstm()
            LSTM(4, 8, bidirectional=True)

        Raises:
            ValueError: There are LoRA factors.
        """
        if scales := self.__dict__.get("lora_scales"):
            raise ValueError(
                f"this BiLSTM has LoRA factors ({', '.join(scales)}), which nn.LSTM cannot have; "
                "merge() or remove() what add_lora returned first"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of dropout in one layer: warned before
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
        own = ("dropout_off_layers", "prefix_cache", "lora_scales")
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
        if name == "qconfig":  # torch.ao.quantization sets it on every module it looks at
            warn(
                "torch.ao.quantization does not know BiLSTM and leaves it as it is: put "
                "lstm.to_lstm() in its place before quantizing"
            )
        super().__setattr__(name, value)

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The weights of each layer and direction, as nn.LSTM lists them."""
        layers = read_weights(self)
        plain = [[weights[: len(KINDS)] for weights in layer] for layer in layers]
        return [[w for w in found if w is not None] for layer in plain for found in layer]

    @property
    def groups(self) -> tuple[ParameterGroup, ...]:
        """The parameters per layer and direction, input side first, forward before reverse.

        Examples:
            >>> [(g.layer, g.direction) for g in BiLSTM(4, 8).groups]
            [(0, 'forward'), (0, 'reverse')]
        """
        named = self.named_parameters(remove_duplicate=False)
        return parameter_groups(named, self.num_layers, self.num_directions)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: States | None = None,
        *,
        lengths: Lengths | None = None,
    ) -> tuple[Any, States]:
        """Runs all layers over the sequences.

        With `lengths`, a padded batch gives what packing it by hand gives: the reverse direction
        begins at each sequence's own last step, the final states are those at its own end, outputs
        beyond the end are zeros, and the values in the padding change nothing.

        Examples:
            >>> lstm = BiLSTM(4, 8)
            >>> padded = torch.nn.utils.rnn.pad_sequence([torch.randn(n, 4) for n in (2, 5, 3)])
            >>> output, (h_n, c_n) = lstm(padded, lengths=[2, 5, 3])
            >>> output.shape, bool(output[2:, 0].any())
            (torch.Size([5, 3, 16]), False)

        Args:
            input: (T, B, I), with `batch_first` (B, T, I), unbatched (T, I), or a PackedSequence.
            hx: The initial hidden and cell states, (L * D, B, P) and (L * D, B, H), without B
                for unbatched input; zeros where absent.
            lengths: (B,) integers from 1 to T, the steps of each sequence of a batch that is padded
                at the end, in any order: a tensor on any device, or a list or array. Reading them
                makes the host wait once for an accelerator they are on; on the CPU or as a list
                they cost no wait. In a program for torch.compile, torch.export or torch.jit.trace,
                a tensor stays an input; a list becomes part of the program. In one for ONNX, and
                under torch.func.vmap over them, they cannot be read, so their range is not checked.

        Returns:
            The last layer's output, (T, B, D * P) or shaped like the input, and the final states
            (h_n, c_n), shaped like `hx`.

        Raises:
            ValueError: The input has the wrong rank or dtype; `lengths` do not fit, or the input is
                not a padded batch.
            RuntimeError: A size, a state or a packed input's dtype does not fit.
        """
        if isinstance(input, torch.fx.Proxy):
            path = input.tracer.path_of_module(self)
            args = (input,) if hx is None else (input, hx)
            keywords = {} if lengths is None else {"lengths": lengths}
            proxy: Any = input.tracer.create_proxy("call_module", path, args, keywords)
            return proxy
        if isinstance(input, PackedSequence):
            checks.check_is_padded(input, lengths)
            return self._forward_packed(input, hx)
        checks.check_is_tensor(input)
        if input.dim() not in (2, 3):
            raise ValueError(
                f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead: pass (T, I), "
                "(T, B, I) or, with batch_first, (B, T, I)"
            )
        checks.check_is_padded(input, lengths)
        is_batched = input.dim() == 3
        if not is_batched:
            input = input.unsqueeze(0 if self.batch_first else 1)
        weights = read_weights(self)
        weight = weights[0][0].weight_ih
        checks.check_dtype(input, weight, ValueError)
        checks.check_input_size(input, 3, self.input_size, weight)
        traced = is_traced(input)
        if not traced:
            checks.check_are_there(input, hx)
        if hx is not None:
            hx = checks.dense_states(hx, is_batched)
            self.check_given_states(input, hx, None, weight)
            hx = checks.two_states(hx)
        if lengths is None:
            rows = dense_rows(input, self.batch_first)
        else:
            lengths = as_lengths(lengths, input.shape[0 if self.batch_first else 1])
            if not is_written_out(input):
                rows, padding = padded_rows(input, lengths, self.batch_first, self.bidirectional)
                return padding.restored(*self._run(rows, padding.sorted(hx), weights, traced))
            rows = masked_rows(input, lengths, self.batch_first)
        output, h_n, c_n = self._run(rows, hx, weights, traced)
        if self.batch_first:
            output = output.transpose(0, 1)
        if not is_batched:
            output = output.squeeze(0 if self.batch_first else 1)
            return output, (h_n.squeeze(1), c_n.squeeze(1))
        return output, (h_n, c_n)

    def _forward_packed(
        self, input: PackedSequence, hx: States | None
    ) -> tuple[PackedSequence, States]:
        data, batch_sizes = input.data, input.batch_sizes
        weights = read_weights(self)
        weight = weights[0][0].weight_ih
        checks.check_dtype(data, weight, RuntimeError)
        checks.check_input_size(data, 2, self.input_size, weight)
        traced = is_traced(data)
        if not traced:
            checks.check_are_there(data, hx)
        rows = packed_rows(input, self.bidirectional, traced)
        if hx is not None:
            sizes = self.state_sizes(data, batch_sizes)
            hx = checks.packed_states(hx, sizes, input.sorted_indices)
            self.check_given_states(data, hx, batch_sizes, weight)
        output, h_n, c_n = self._run(rows, hx, weights, traced)
        packed = PackedSequence(output, batch_sizes, input.sorted_indices, input.unsorted_indices)
        return packed, unpermuted((h_n, c_n), input.unsorted_indices)

    def _run(
        self, rows: Rows, hx: States | None, weights: Sequence[Sequence[Weights]], traced: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All layers over the internal form: output rows, h_n (L * D, B, P), c_n (L * D, B, H)."""
        first = weights[0][0].weight_ih
        check_weights(self, weights, rows.data.device, traced)
        if rows.is_dense and not traced:
            check_steps(rows.data)
        precision = precision_of(first, rows, hx, projected=self.proj_size > 0)
        dropout = [self._dropout_before(layer) for layer in range(self.num_layers)]
        stack = Stack(weights, dropout, hx, precision)
        caches = self.prefix_cache is not None and not traced
        prefix = self._cached_prefix(rows, stack) if caches else []
        finals: list[States] = []
        if prefix:
            form = (precision, rows.data.dtype, rows.data.device, self.bidirectional)
            # Initial states of these layers, if given, are zeros.
            run = stack._replace(hx=None).run
            rows, h, c = self.prefix_cache.serve(rows, prefix, form, run)
            finals.append((h, c))
        rows, others = stack.run(rows, len(prefix), self.num_layers)
        finals += others
        if len(finals) == 1:
            return rows.data, *finals[0]
        h_n = torch.cat([h for h, _ in finals])
        c_n = torch.cat([c for _, c in finals])
        return rows.data, h_n, c_n

    def _cached_prefix(self, rows: Rows, stack: Stack) -> list[list[Tensor]]:
        """The weights of the lowest layers that the prefix cache may compute; empty where none."""
        if rows.data.requires_grad or rows.data.numel() == 0:
            return []
        prefix = frozen_prefix(self.named_parameters(remove_duplicate=False), stack.weights)
        if any(stack.dropout[: len(prefix)]):
            self.prefix_cache.warn_of_dropout()
            return []
        if prefix and stack.hx is not None:
            zeros = are_zeros(state[: len(prefix) * self.num_directions] for state in stack.hx)
            if zeros is None:
                self.prefix_cache.warn_of_states()
            return prefix if zeros else []
        return prefix

    def _dropout_before(self, layer: int) -> float:
        """The probability of the dropout below a layer; 0 where there is none.

        There is none between two layers frozen with dropout="off".
        """
        if not layer or not self.training or not self.dropout:
            return 0.0
        below = layer - 1
        if not {below, layer} <= self.dropout_off_layers:
            return self.dropout
        groups = self.groups[below * self.num_directions : (layer + 1) * self.num_directions]
        trains = any(p.requires_grad for group in groups for p in group.parameters)
        return self.dropout if trains else 0.0

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a pickled module, also an old one without `proj_size` or this class's extras."""
        extras: dict[str, Any] = {"prefix_cache": None, "dropout_off_layers": set()}
        super().__setstate__({"proj_size": 0, **extras, **state})  # type: ignore[no-untyped-call]
