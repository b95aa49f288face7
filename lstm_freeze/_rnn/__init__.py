"""BiLSTM and its arithmetic; knows nothing of freezing."""

from .bilstm import BiLSTM as BiLSTM
from .groups import ParameterGroup as ParameterGroup
from .loop_native import which_loop as which_loop
from .memory import release_memory as release_memory
from .memory import waiting_memory as waiting_memory
from .prefix import RunLayers as RunLayers
from .replacing import replace_lstm as replace_lstm
from .rows import Rows as Rows
from .rows import check_packed as check_packed
from .rows import reverse_rows as reverse_rows
