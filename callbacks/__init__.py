"""Lightning callbacks of lstm_freeze, for pytorch_lightning and lightning.pytorch."""

from ._advance import Plateau as Plateau
from ._frozen_check import FrozenWeightsCheck as FrozenWeightsCheck
from ._scheduler import FreezeScheduler as FreezeScheduler
from ._scheduler import GradualUnfreezing as GradualUnfreezing

__all__ = [
    "FreezeScheduler",
    "FrozenWeightsCheck",
    "GradualUnfreezing",
    "Plateau",
]
