"""Passes of Lloyd's algorithm over the same rows, which remember what the next one can skip."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastdc.kernels._backend import choose
from fastdc.kernels._parallel import distances_ns
from fastdc.kernels.kmeans.op import KMeansStep, kmeans_step

ALGORITHMS = ("auto", "lloyd", "bounds")
FEWEST_CENTERS, FEWEST_FEATURES = 16, 9  # below, a plain pass is as fast
LEAST_WORK = 1e7  # nanoseconds of a pass on one thread; below, what bounds are begun with outweighs what they save
QUIET = 8  # bounds are thought of when less than one row in so many changes its label
PAYING = 0.75  # share of the distances; where more have to be made, a plain pass is faster
LARGEST = 1e15  # coordinate of a center; beyond, and with NaN, passes are plain


class LloydSteps:
    """What :func:`kmeans_step` returns, bit for bit, for centers that move little from call to call.

    On CPUs each row keeps a lower bound of its distance to each of a few groups of centers (Yinyang k-means): where
    the bound, less the farthest move of the group's centers, is above the distance to the own center, the group is
    skipped. Centers that move farther than the others are taken out of their groups while they do, and compared with
    all rows. Bounds begin once labels are quiet, when a forecast on a few rows says that they pay.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
    sample_weight : Tensor of shape (n_samples,) or None
    algorithm : {"auto", "lloyd", "bounds"}
        "auto" takes bounds on CPUs with at least 16 centers and 9 features where a pass takes some milliseconds;
        "lloyd" never; "bounds" from the second call on.
    backend : {None, "reference", "numba", "triton"}
        Bounds are of the numba backend; the others make plain passes.

    Notes
    -----
    Memory: 8 bytes a row and 4 a row and group, of which there are at most 65, about sqrt(n_clusters) and for long
    rows up to n_clusters / 6; and 12 KB a thread and group.

    References
    ----------
    Ding, Zhao, Shen, Musuvathi, Mytkowicz. Yinyang K-Means: A Drop-In Replacement of the Classic K-Means with
    Consistent Speedup. ICML 2015.
    """

    def __init__(
        self, x: Tensor, sample_weight: Tensor | None, algorithm: str = "auto", backend: str | None = None
    ) -> None:
        if algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm must be one of {ALGORITHMS}, got {algorithm!r}")
        self.x, self.sample_weight, self.algorithm, self.backend = x, sample_weight, algorithm, backend
        self.n_changed: Tensor | None = None  # by the last call
        self.before: Tensor | None = None  # centers of the last call
        self.quiet = algorithm == "bounds"
        self.memory: Any = None

    def __call__(self, centers: Tensor, previous_labels: Tensor | None) -> KMeansStep:
        """One pass; ``previous_labels`` are those of the call before."""
        step = None
        if previous_labels is not None and self.before is not None and self._can_skip(centers) and self._is_quiet():
            step = self._bounded_step(centers, self.before, previous_labels)
        if step is None:
            step = kmeans_step(
                self.x,
                centers,
                sample_weight=self.sample_weight,
                previous_labels=previous_labels,
                backend=self.backend,
            )
        self.n_changed, self.before = step.n_changed, centers
        return step

    def _can_skip(self, centers: Tensor) -> bool:
        """Whether this kind of call may have bounds at all."""
        if self.algorithm == "lloyd" or choose("kmeans_step", self.x, self.backend) != "numba":
            return False
        k, d = centers.shape
        if k < (FEWEST_CENTERS if self.algorithm == "auto" else 2) or d < FEWEST_FEATURES:
            return False
        if self.algorithm == "auto" and len(self.x) * distances_ns(d, k) < LEAST_WORK:
            return False
        return float(centers.abs().max()) < LARGEST

    def _is_quiet(self) -> bool:
        self.quiet = self.quiet or (self.n_changed is not None and QUIET * int(self.n_changed) <= len(self.x))
        return self.quiet

    def _bounded_step(self, centers: Tensor, before: Tensor, previous_labels: Tensor) -> KMeansStep | None:
        """A pass with bounds, or None where it would not pay."""
        from fastdc.kernels.kmeans.numba_bounded_step import Memory

        if self.memory is None:
            self.memory = Memory(self.x, self.sample_weight, centers)
        share, restless = self.memory.forecast.choose(centers, before, self.memory.restless)
        if self.algorithm == "auto" and not share < PAYING:
            self.memory.forget()
            return None
        return KMeansStep(*self.memory.step(centers, before, restless, previous_labels))
