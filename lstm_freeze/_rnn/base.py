"""LSTMBase: an LSTM's sizes, and the methods of nn.LSTM that are called besides forward."""

from __future__ import annotations

import math

from torch import Tensor, nn

from .._names import DIRECTIONS, KINDS, name_of
from .._recurrence import parameter_shapes, unpermuted
from . import checks
from .layer_weights import weight_of
from .stack import States


class LSTMBase(nn.Module):
    """An LSTM's sizes, and the methods of nn.LSTM that are called besides forward."""

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    bidirectional: bool
    proj_size: int

    @property
    def num_directions(self) -> int:
        """D: 2 where bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    def weight_shapes(self, layer: int) -> tuple[tuple[int, ...], ...]:
        """The shapes of a layer's parameters in the order of KINDS, absent ones too."""
        P = self.proj_size or self.hidden_size
        layer_input = P * self.num_directions if layer else self.input_size
        return parameter_shapes(layer_input, self.hidden_size, P)

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Raises where the input's dtype, rank or size does not fit this module."""
        weight = weight_of(self, name_of(0, DIRECTIONS[0], KINDS[0]))
        checks.check_dtype(input, weight, ValueError)
        checks.check_input_size(input, 3 if batch_sizes is None else 2, self.input_size, weight)

    def check_forward_args(self, input: Tensor, hidden: States, batch_sizes: Tensor | None) -> None:
        """Raises where the input or the states do not fit this module or each other."""
        if batch_sizes is None:
            self.check_input(input, None)
        weight = weight_of(self, name_of(0, DIRECTIONS[0], KINDS[0]))
        self.check_given_states(input, hidden, batch_sizes, weight)

    def check_given_states(
        self, input: Tensor, states: States, batch_sizes: Tensor | None, weight: Tensor
    ) -> None:
        """Raises where initial states do not fit the input and this module's sizes."""
        for k, size in enumerate(self.state_sizes(input, batch_sizes)):
            self.check_hidden_size(states[k], size, f"Expected hidden[{k}] size {{}}, got {{}}")
        checks.check_states(input, states, weight)

    def state_sizes(
        self, input: Tensor, batch_sizes: Tensor | None
    ) -> tuple[tuple[int, int, int], ...]:
        """Those of both states for this input."""
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

    def permute_hidden(self, hx: States, permutation: Tensor | None) -> States:
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
