"""BiLSTM and its arithmetic; knows nothing of freezing."""

from .bilstm import BiLSTM as BiLSTM
from .groups import ParameterGroup as ParameterGroup
from .prefix import RunLayers as RunLayers
from .replacing import replace_lstm as replace_lstm
from .rows import Rows as Rows
from .rows import check_packed as check_packed
from .rows import reverse_rows as reverse_rows
