"""Passes of Lloyd's algorithm over the same rows, which remember what the next one can skip."""

from __future__ import annotations

from typing import Any

import torch
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
MOST_IN_FILES = 1 << 31  # bytes of bounds beside rows that come in blocks; more would leave the page cache


class LloydSteps:
    """What :func:`kmeans_step` returns, bit for bit, for centers that move little from call to call.

    On CPUs each row keeps a lower bound of its distance to each of a few groups of centers (Yinyang k-means): where
    the bound, less the farthest move of the group's centers, is above the distance to the own center, the group is
    skipped. Centers that move farther than the others are taken out of their groups while they do, and compared with
    all rows. Bounds begin once labels are quiet, when a forecast on a few rows says that they pay.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Or rows that come in blocks, given to :meth:`block` between :meth:`begin` and :meth:`end`: an object of that
        length, with a ``dtype`` and ``device`` of torch, and of which ``x[numbers]`` are some rows.
    sample_weight : Tensor of shape (n_samples,) or None
        Those of blocks are given with each.
    algorithm : {"auto", "lloyd", "bounds"}
        "auto" takes bounds on CPUs with at least 16 centers and 9 features where a pass takes some milliseconds;
        "lloyd" never; "bounds" from the second call on.
    backend : {None, "reference", "numba", "triton"}
        Bounds are of the numba backend; the others make plain passes.

    Notes
    -----
    Memory: 8 bytes a row and 4 a row and group, of which there are at most 65, about sqrt(n_clusters) and for long
    rows up to n_clusters / 6; and 12 KB a thread and group. Of blocks "auto" takes at most 2 GB, and plain passes
    beyond and where there is no room for them (``fastdc.kernels._copies`` says where they lie).

    References
    ----------
    Ding, Zhao, Shen, Musuvathi, Mytkowicz. Yinyang K-Means: A Drop-In Replacement of the Classic K-Means with
    Consistent Speedup. ICML 2015.
    """

    def __init__(
        self, x: Any, sample_weight: Tensor | None, algorithm: str = "auto", backend: str | None = None
    ) -> None:
        if algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm must be one of {ALGORITHMS}, got {algorithm!r}")
        self.x, self.sample_weight, self.algorithm, self.backend = x, sample_weight, algorithm, backend
        self.n_changed: Tensor | None = None  # by the last call
        self.before: Tensor | None = None  # centers of the last call
        self.quiet = algorithm == "bounds"
        self.memory: Any = None
        self.skips = False  # whether this pass does

    def __call__(self, centers: Tensor, previous_labels: Tensor | None) -> KMeansStep:
        """One pass; ``previous_labels`` are those of the call before."""
        self.begin(centers, has_labels=previous_labels is not None)
        step = self.block(0, self.x, centers, self.sample_weight, previous_labels)
        self.end(centers, step.n_changed)
        return step

    def begin(self, centers: Tensor, *, has_labels: bool) -> None:
        """A pass over all blocks begins; ``has_labels`` says whether those of the pass before are known."""
        self.skips = False
        if has_labels and self.before is not None and self._can_skip(centers) and self._is_quiet():
            self.skips = self._begin_bounds(centers, self.before)
        if not self.skips and self.memory is not None:
            self.memory.forget()

    def block(
        self, start: int, x: Tensor, centers: Tensor, sample_weight: Tensor | None, previous_labels: Tensor | None
    ) -> KMeansStep:
        """The part of rows x (m, n_features), the first of which is row ``start``."""
        if self.skips:
            return KMeansStep(*self.memory.step(start, x, centers, sample_weight, previous_labels))
        return kmeans_step(
            x, centers, sample_weight=sample_weight, previous_labels=previous_labels, backend=self.backend
        )

    def end(self, centers: Tensor, n_changed: Tensor) -> None:
        """A pass is over; so many labels changed in all blocks."""
        self.n_changed, self.before = n_changed, centers

    def _can_skip(self, centers: Tensor) -> bool:
        """Whether this kind of call may have bounds at all."""
        x = self.x if isinstance(self.x, Tensor) else torch.empty((1, 1), dtype=self.x.dtype, device=self.x.device)
        if self.algorithm == "lloyd" or choose("kmeans_step", x, self.backend) != "numba":
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

    def _begin_bounds(self, centers: Tensor, before: Tensor) -> bool:
        """Whether it pays; the pass then has bounds."""
        from fastdc.kernels.kmeans.numba_bounded_step import Memory

        if self.memory is None:
            self.memory = Memory(self.x, centers)
        if self.algorithm == "auto" and not isinstance(self.x, Tensor) and self.memory.n_bytes > MOST_IN_FILES:
            return self._give_up()
        share, restless = self.memory.forecast.choose(centers, before, self.memory.restless)
        if self.algorithm == "auto" and not share < PAYING:
            return False
        try:
            self.memory.begin(centers, before, restless)
        except OSError:  # a full disk
            if self.algorithm != "auto":
                raise
            return self._give_up()
        return True

    def _give_up(self) -> bool:
        self.algorithm, self.memory = "lloyd", None
        return False
