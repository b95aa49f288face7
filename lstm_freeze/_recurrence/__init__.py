"""One LSTM layer over time: rows, weights, loops, and the operator that autograd sees."""

from .agreement import check_is_there as check_is_there
from .agreement import check_steps as check_steps
from .cell import parameter_shapes as parameter_shapes
from .native import release_memory as release_memory
from .native import waiting_memory as waiting_memory
from .native import which_loop as which_loop
from .native import which_products as which_products
from .operator import run_layer as run_layer
from .rows import Rows as Rows
from .rows import check_packed as check_packed
from .rows import dense_rows as dense_rows
from .rows import packed_rows as packed_rows
from .rows import reverse_rows as reverse_rows
from .rows import unpermuted as unpermuted
from .tracing import is_traced as is_traced
from .tracing import is_written_out as is_written_out
from .weights import Weights as Weights
