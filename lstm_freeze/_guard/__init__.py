"""The proof that frozen weights have not moved."""

from .guard import FrozenGuard as FrozenGuard
from .guard import FrozenWeightsChanged as FrozenWeightsChanged
