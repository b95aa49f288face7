"""Lightning callbacks of lstm_freeze, for pytorch_lightning and lightning.pytorch."""

from ._advance import Plateau as Plateau
from ._frozen_check import FrozenWeightsCheck as FrozenWeightsCheck
from ._gradual import GradualUnfreezing as GradualUnfreezing
from ._scheduler import FreezeScheduler as FreezeScheduler
from ._weight_drift import WeightDrift as WeightDrift

__all__ = [
    "FreezeScheduler",
    "FrozenWeightsCheck",
    "GradualUnfreezing",
    "Plateau",
    "WeightDrift",
]
