"""The prefix cache: outputs of frozen layers, kept per sample."""

from .levels import PrefixLevels as PrefixLevels
from .prefix_cache import PrefixCache as PrefixCache
