"""Fine-tuning and freezing for recurrent encoders in PyTorch."""

from ._bilstm import BiLSTM as BiLSTM
from ._bilstm import ParameterGroup as ParameterGroup
from ._bilstm import replace_lstm as replace_lstm
from ._freezing import Freeze as Freeze
from ._freezing import freeze as freeze
from ._freezing import freeze_up_to as freeze_up_to
from ._freezing import unfreeze as unfreeze
from ._groups import param_groups as param_groups
from ._groups import slanted_triangular as slanted_triangular
from ._guard import FrozenGuard as FrozenGuard
from ._guard import FrozenWeightsChanged as FrozenWeightsChanged
from ._phases import Phase as Phase
from ._prefix_cache import PrefixCache as PrefixCache
from ._schedule import FreezeSchedule as FreezeSchedule
from ._selection import Selection as Selection
from ._selection import select as select
from ._status import Status as Status
from ._status import status as status

__all__ = [
    "BiLSTM",
    "Freeze",
    "FreezeSchedule",
    "FrozenGuard",
    "FrozenWeightsChanged",
    "ParameterGroup",
    "Phase",
    "PrefixCache",
    "Selection",
    "Status",
    "freeze",
    "freeze_up_to",
    "param_groups",
    "replace_lstm",
    "select",
    "slanted_triangular",
    "status",
    "unfreeze",
]
