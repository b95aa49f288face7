"""freeze, unfreeze, undo, and the status of a module."""

from .freezing import Freeze as Freeze
from .freezing import can_train as can_train
from .freezing import freeze as freeze
from .freezing import freeze_up_to as freeze_up_to
from .freezing import listeners as listeners
from .freezing import set_trainable as set_trainable
from .freezing import unfreeze as unfreeze
from .modes import decider_of as decider_of
from .modes import hold_of as hold_of
from .modes import is_normalization as is_normalization
from .status import Status as Status
from .status import status as status
