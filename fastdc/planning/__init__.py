"""What a run will take, before it starts: ``plan`` gives bytes, operations and seconds, and refuses what cannot fit.

A method's bytes, operations and seconds are those of its record, a :class:`~fastdc.planning.work.Work`: of k-means and
mixtures in ``centers.py``, of spectral clustering and DBSCAN in ``graphs.py``, of nearest neighbours in
``neighbors.py``.
"""

from fastdc.planning.memory import free_bytes, readable
from fastdc.planning.plans import METHODS, Plan, check_fits, plan

__all__ = ["METHODS", "Plan", "check_fits", "free_bytes", "plan", "readable"]
