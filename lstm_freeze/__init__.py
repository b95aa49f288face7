"""Fine-tuning and freezing for recurrent encoders in PyTorch."""

from ._between import Anchor as Anchor
from ._between import LoRA as LoRA
from ._between import add_lora as add_lora
from ._between import anchor as anchor
from ._between import interpolate as interpolate
from ._cache import PrefixCache as PrefixCache
from ._comparing import Choice as Choice
from ._comparing import Comparison as Comparison
from ._comparing import compare as compare
from ._config import show_config as show_config
from ._freezing import Freeze as Freeze
from ._freezing import Status as Status
from ._freezing import freeze as freeze
from ._freezing import freeze_up_to as freeze_up_to
from ._freezing import status as status
from ._freezing import unfreeze as unfreeze
from ._guard import FrozenGuard as FrozenGuard
from ._guard import FrozenWeightsChanged as FrozenWeightsChanged
from ._model import Selection as Selection
from ._model import select as select
from ._optimizers import param_groups as param_groups
from ._optimizers import slanted_triangular as slanted_triangular
from ._recurrence import release_memory as release_memory
from ._rnn import BiLSTM as BiLSTM
from ._rnn import ParameterGroup as ParameterGroup
from ._rnn import replace_lstm as replace_lstm
from ._saving import fingerprints as fingerprints
from ._saving import load_changes as load_changes
from ._saving import save_changes as save_changes
from ._schedule import FreezeSchedule as FreezeSchedule
from ._schedule import Phase as Phase
from ._schedule import Recipe as Recipe

__all__ = [
    "Anchor",
    "BiLSTM",
    "Choice",
    "Comparison",
    "Freeze",
    "FreezeSchedule",
    "FrozenGuard",
    "FrozenWeightsChanged",
    "LoRA",
    "ParameterGroup",
    "Phase",
    "PrefixCache",
    "Recipe",
    "Selection",
    "Status",
    "add_lora",
    "anchor",
    "compare",
    "fingerprints",
    "freeze",
    "freeze_up_to",
    "interpolate",
    "load_changes",
    "param_groups",
    "release_memory",
    "replace_lstm",
    "save_changes",
    "select",
    "show_config",
    "slanted_triangular",
    "status",
    "unfreeze",
]
