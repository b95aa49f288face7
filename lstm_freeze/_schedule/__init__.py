"""Schedules: which targets train in which phase, and at which rates."""

from .phase import Phase as Phase
from .schedule import FreezeSchedule as FreezeSchedule
