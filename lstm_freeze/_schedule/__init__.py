"""Schedules: which targets train in which phase, and at which rates."""

from .phase import Phase as Phase
from .phase import raise_all as raise_all
from .recipe import Recipe as Recipe
from .resolved import ResolvedPhase as ResolvedPhase
from .resolved import ResolvedSchedule as ResolvedSchedule
from .schedule import FreezeSchedule as FreezeSchedule
