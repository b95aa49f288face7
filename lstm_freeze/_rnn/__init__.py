"""BiLSTM: the module, its checks and conversions; knows nothing of freezing."""

from .bilstm import BiLSTM as BiLSTM
from .parameter_group import ParameterGroup as ParameterGroup
from .prefix import RunLayers as RunLayers
from .replacing import replace_lstm as replace_lstm
