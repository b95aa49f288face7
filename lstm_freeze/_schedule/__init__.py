"""Schedules: which targets train in which phase, and at which rates."""

from .phase import Phase as Phase
from .phase import raise_all as raise_all
from .rates import present_rates as present_rates
from .rates import show_warm_up as show_warm_up
from .recipe import Recipe as Recipe
from .resolved import ResolvedPhase as ResolvedPhase
from .resolved import ResolvedSchedule as ResolvedSchedule
from .schedule import FreezeSchedule as FreezeSchedule
