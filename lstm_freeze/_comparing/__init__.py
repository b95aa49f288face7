"""Which method for my data? Scores of several methods on the same splits, compared honestly."""

from .choice import Choice as Choice
from .comparing import compare as compare
from .comparison import Comparison as Comparison
