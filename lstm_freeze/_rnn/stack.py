"""Stack: the layers of one call with their weights, dropout, initial states and dtypes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from .._recurrence import Rows, Weights, run_layer
from .precision import Precision

States = tuple[Tensor, Tensor]
"""Hidden and cell states."""


class Stack(NamedTuple):
    """All that the layers of one call need besides the rows.

    Attributes:
        weights: The weights of each layer and direction, read once for the whole call.
        dropout: The probability of the dropout before each layer, 0 where there is none.
        hx: The initial states, (L * D, B, P) and (L * D, B, H); zeros where absent.
        precision: The dtypes.
    """

    weights: Sequence[Sequence[Weights]]
    dropout: Sequence[float]
    hx: States | None
    precision: Precision

    def run(self, rows: Rows, first: int, last: int) -> tuple[Rows, list[States]]:
        """Layers [first, last) over rows: the output rows and each layer's final states."""
        finals = []
        for index in range(first, last):
            rows, states = self.run_layer(rows, index)
            finals.append(states)
        return rows, finals

    def run_layer(self, rows: Rows, index: int) -> tuple[Rows, States]:
        """One layer, the dropout before it included."""
        precision, data = self.precision, rows.data
        if self.dropout[index]:
            data = F.dropout(data, self.dropout[index], training=True)
        directions = [precision.converted_weights(weights) for weights in self.weights[index]]
        h0 = c0 = None
        if self.hx is not None:
            D = len(directions)
            here = slice(index * D, (index + 1) * D)
            h0 = precision.converted(self.hx[0][here])
            c0 = self.hx[1][here].to(precision.compute)
        data = precision.converted(data)
        output, h, c = run_layer(
            data, rows.batch_sizes, rows.reverse, h0, c0, directions, rows.lengths
        )
        if not precision.is_one:
            output, h = output.to(precision.output), h.to(precision.output)
            c = c.to(precision.cell)
        return rows.with_data(output), (h, c)
