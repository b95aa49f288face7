"""freeze, unfreeze, undo, and the status of a module."""

from .constants import sentence_about_constants as sentence_about_constants
from .constants import unnamed as unnamed
from .ddp import RANKS_DRIFT as RANKS_DRIFT
from .ddp import align_buffers as align_buffers
from .ddp import waits_for_all as waits_for_all
from .fixed_modes import decider_of as decider_of
from .fixed_modes import fixed_mode_of as fixed_mode_of
from .fixed_modes import is_normalization as is_normalization
from .fixed_modes import is_scripted_normalization as is_scripted_normalization
from .freezing import freeze as freeze
from .freezing import freeze_up_to as freeze_up_to
from .freezing import set_trainable as set_trainable
from .freezing import unfreeze as unfreeze
from .handle import Freeze as Freeze
from .listeners import listeners as listeners
from .status import Status as Status
from .status import status as status
