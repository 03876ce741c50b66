"""Passes of Lloyd's algorithm over the same rows, which remember what the next one can skip."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastdc.kernels._backend import choose
from fastdc.kernels.kmeans.op import KMeansStep, kmeans_step

ALGORITHMS = ("auto", "lloyd", "bounds")
FEWEST_CENTERS, FEWEST_FEATURES = 16, 9  # below, a plain pass is as fast
QUIET = 8  # bounds begin when less than one row in so many changes its label
PAYING = 0.6  # share of the pairs of a row and a group; where more are looked at, a plain pass is faster
LARGEST = 1e15  # coordinate of a center; beyond, and with NaN, passes are plain
REST = 8  # plain passes before bounds are tried again; twice as many after each try in vain


class LloydSteps:
    """What :func:`kmeans_step` returns, bit for bit, for centers that move little from call to call.

    On CPUs each row keeps a lower bound of its distance to each of a few groups of centers (Yinyang k-means): where
    the bound, less the farthest move of the group's centers, is above the distance to the own center, the group is
    skipped. Bounds begin once labels are quiet, and rest while they do not pay.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
    sample_weight : Tensor of shape (n_samples,) or None
    algorithm : {"auto", "lloyd", "bounds"}
        "auto" takes bounds on CPUs with at least 16 centers and 9 features; "lloyd" never; "bounds" from the second
        call on.
    backend : {None, "reference", "numba", "triton"}
        Bounds are of the numba backend; the others make plain passes.

    Notes
    -----
    Memory: 4 bytes a row and group, of which there are at most 64 and about sqrt(n_clusters); and 20 KB a thread
    and group.

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
        self.quiet = algorithm == "bounds"
        self.rest, self.pause = 0, REST
        self.memory: Any = None

    def __call__(self, centers: Tensor, previous_labels: Tensor | None) -> KMeansStep:
        """One pass; ``previous_labels`` are those of the call before."""
        if previous_labels is not None and self._can_skip(centers) and self._begins():
            step = self._bounded_step(centers, previous_labels)
        else:
            step = kmeans_step(
                self.x,
                centers,
                sample_weight=self.sample_weight,
                previous_labels=previous_labels,
                backend=self.backend,
            )
        self.n_changed = step.n_changed
        return step

    def _can_skip(self, centers: Tensor) -> bool:
        """Whether this kind of call may have bounds at all."""
        if self.algorithm == "lloyd" or choose("kmeans_step", self.x, self.backend) != "numba":
            return False
        fewest = FEWEST_CENTERS if self.algorithm == "auto" else 2
        if centers.shape[0] < fewest or centers.shape[1] < FEWEST_FEATURES:
            return False
        return float(centers.abs().max()) < LARGEST

    def _begins(self) -> bool:
        """Whether this call is one with bounds."""
        self.quiet = self.quiet or (self.n_changed is not None and QUIET * int(self.n_changed) <= len(self.x))
        self.rest -= 1 if self.quiet else 0
        return self.quiet and self.rest < 0

    def _bounded_step(self, centers: Tensor, previous_labels: Tensor) -> KMeansStep:
        from fastdc.kernels.kmeans.numba_bounded_step import Memory

        first = self.memory is None
        if first:
            self.memory = Memory(self.x, self.sample_weight, centers)
        step, share = self.memory.step(centers, previous_labels)
        if not first and share > PAYING and self.algorithm == "auto":
            self.memory, self.rest = None, self.pause
            self.pause *= 2
        return KMeansStep(*step)
