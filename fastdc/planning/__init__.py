"""What a run will take, before it starts: ``plan`` gives bytes, operations and seconds, and refuses what cannot fit."""

from fastdc.planning.memory import free_bytes
from fastdc.planning.plans import METHODS, Plan, check_fits, plan

__all__ = ["METHODS", "Plan", "check_fits", "free_bytes", "plan"]
