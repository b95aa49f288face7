"""The proof that frozen weights have not moved, and that the others do train."""

from .error import FrozenWeightsChanged as FrozenWeightsChanged
from .guard import FrozenGuard as FrozenGuard
