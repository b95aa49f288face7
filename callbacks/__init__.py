"""Lightning callbacks of lstm_freeze, for pytorch_lightning and lightning.pytorch."""

from ._advance import Plateau as Plateau
from ._frozen_check import FrozenWeightsCheck as FrozenWeightsCheck
from ._gradual import GradualUnfreezing as GradualUnfreezing
from ._save_changes import SaveChanges as SaveChanges
from ._scheduler import FreezeScheduler as FreezeScheduler
from ._weight_anchor import WeightAnchor as WeightAnchor
from ._weight_drift import WeightDrift as WeightDrift

__all__ = [
    "FreezeScheduler",
    "FrozenWeightsCheck",
    "GradualUnfreezing",
    "Plateau",
    "SaveChanges",
    "WeightAnchor",
    "WeightDrift",
]
