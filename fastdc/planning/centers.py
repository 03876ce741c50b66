"""What k-means, k-means by batches and Gaussian mixtures take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fastdc._input import as_tensor, read_count
from fastdc.cluster.gaussian_mixture import GaussianMixture
from fastdc.cluster.mini_batch import MiniBatchKMeans, _State
from fastdc.cluster.streaming import MOST_ROWS, SAMPLED_PER_CLUSTER, block_of
from fastdc.data import RowSource
from fastdc.data.stream import BUFFERS
from fastdc.data.windows import WINDOW_BLOCKS, WINDOW_BYTES
from fastdc.kernels._parallel import distances_ns
from fastdc.kernels.kmeans import center_update, kmeans_step
from fastdc.kernels.kmeans.bounds import FEWEST_CENTERS, FEWEST_FEATURES, LEAST_WORK
from fastdc.kernels.kmeans.numba_bounded_step import group_size
from fastdc.planning import timing
from fastdc.planning.memory import KERNEL_BYTES, Shape, copy_bytes, kept_bytes
from fastdc.planning.work import ClusterWork

COVARIANCES = ("diag", "spherical", "tied", "full")


@dataclass(frozen=True, kw_only=True)
class PassWork(ClusterWork):
    """A method that makes passes over the rows, those of a source a block at a time."""

    iterates: ClassVar[bool] = True

    streamed: bool = True

    def can_stream(self, shape: Shape) -> bool:
        return True

    def instead(self, shape: Shape, available: int) -> Iterator[str]:
        if not self.streamed and replace(self, streamed=True).bytes(shape) <= available:
            yield "a row source (fastdc.data.as_row_source), which is read a block at a time"
        yield from super().instead(shape, available)


@dataclass(frozen=True, kw_only=True)
class KMeansWork(PassWork):
    """``KMeans``, with the bounds that it may come to keep; those of a row source lie in files where they are large."""

    name: ClassVar[str] = "kmeans"

    def added_bytes(self, shape: Shape) -> int:
        if self.streamed:
            bounds = sum(copy_bytes(part, in_files=True) for part in self._bound_bytes(shape))
            return max(self._seeding_bytes(shape), self._passing_bytes(shape) + bounds) + KERNEL_BYTES
        labels = 25 * shape.n + kept_bytes(8 * shape.n)  # of two passes, which are none, and what adds these up
        return labels + sum(self._bound_bytes(shape)) + center_bytes(shape, self.n_clusters) + KERNEL_BYTES

    def flops(self, shape: Shape) -> float:
        return 2.0 * shape.n * shape.d * self.n_clusters

    def seconds(self, rows: RowSource) -> float:
        """Of a pass that makes all distances, and new centers."""
        d = rows.shape[1]
        sample = timing.sample_of(rows, distances_ns(d, self.n_clusters))
        centers = timing.some_of(sample, self.n_clusters)

        def step(x: Tensor) -> None:
            found = kmeans_step(x, centers, previous_labels=torch.zeros(len(x), dtype=torch.int64))
            center_update(found.sums, found.counts, centers)

        block = block_of(d, rows.dtype, MOST_ROWS) if self.streamed else None
        return timing.pass_seconds(rows, sample, step, block)

    def _bound_bytes(self, shape: Shape) -> tuple[int, int]:
        """Squared norms of the rows, and bounds for each group of centers and for the restless ones."""
        k, d = self.n_clusters, shape.d
        if k < FEWEST_CENTERS or d < FEWEST_FEATURES or shape.n * distances_ns(d, k) < LEAST_WORK:
            return 0, 0
        return 8 * shape.n, 4 * (-(-k // group_size(k, d)) + 1) * shape.n

    def _seeding_bytes(self, shape: Shape) -> int:
        """The sample that k-means++ chooses from, and a distance and some numbers for each of its rows."""
        sampled = min(shape.n, max(block_of_shape(shape), SAMPLED_PER_CLUSTER * self.n_clusters))
        return sampled * (shape.row_bytes * (1 if shape.is_mapped else 2) + shape.itemsize + 24)

    def _passing_bytes(self, shape: Shape) -> int:
        """int32 labels of two passes, which are none, and what adds these up; blocks, and what a kernel has for one."""
        return 17 * shape.n + streaming_bytes(shape) + center_bytes(shape, self.n_clusters)


@dataclass(frozen=True, kw_only=True)
class MiniBatchWork(PassWork):
    """``MiniBatchKMeans``; an iteration is a pass over all rows in batches."""

    name: ClassVar[str] = "minibatch"

    batch_size: int = 1024

    def check(self, shape: Shape) -> None:
        super().check(shape)
        read_count(self.batch_size, "batch_size")

    def added_bytes(self, shape: Shape) -> int:
        """An order of all rows, or three windows of those that are read; two batches; and at the end the labels."""
        batches = min(shape.n, self.batch_size) * (2 * shape.row_bytes + 24)
        centers = center_bytes(shape, self.n_clusters) + KERNEL_BYTES
        if not self.streamed:
            return max(8 * shape.n + batches, 12 * shape.n) + centers
        window = min(shape.n, max(WINDOW_BLOCKS, WINDOW_BYTES // shape.row_bytes))
        ordering = 8 * shape.n if shape.is_mapped else window * (3 * shape.row_bytes + 32)
        return max(ordering + batches, 4 * shape.n + streaming_bytes(shape, 9)) + centers

    def flops(self, shape: Shape) -> float:
        return 2.0 * shape.n * shape.d * self.n_clusters

    def seconds(self, rows: RowSource) -> float:
        n = len(rows)
        size = min(n, self.batch_size)
        x = as_tensor(rows.rows(0, n)) if rows.view(0, n) is not None else timing.sample_of(rows, 1.0)
        model = MiniBatchKMeans(self.n_clusters, batch_size=size)
        random = np.random.default_rng(0)
        counts = torch.ones(self.n_clusters, dtype=torch.float64)
        state = _State(timing.some_of(x, self.n_clusters), counts, 0, random, 0)

        def learn(count: int) -> None:
            for _ in range(count):
                chosen = torch.from_numpy(random.integers(len(x), size=size))
                state.learn(x[chosen], None, model)

        one = timing.least_seconds(lambda: learn(1))
        count = max(1, min(200, int(0.2 / max(one, 1e-6))))
        learning = -(-n // size) * timing.least_seconds(lambda: learn(count)) / count
        if rows.view(0, 1) is not None:
            return learning
        return max(learning, n * timing.reading_a_row(rows, block_of_shape(Shape.of(rows))))  # a thread reads ahead


@dataclass(frozen=True, kw_only=True)
class MixtureWork(PassWork):
    """``GaussianMixture``; an iteration is one of EM."""

    name: ClassVar[str] = "gmm"

    covariance_type: str = "diag"

    def check(self, shape: Shape) -> None:
        if self.covariance_type not in COVARIANCES:
            raise ValueError(f"covariance_type must be one of {COVARIANCES}, got {self.covariance_type!r}")
        super().check(shape)

    def added_bytes(self, shape: Shape) -> int:
        """Those of the k-means that it starts from; or its own, which are none for a row."""
        k, d = self.n_clusters, shape.d
        scatters = {"diag": k * d, "spherical": k, "tied": d * d, "full": k * d * d}[self.covariance_type]
        copies = 8 * (torch.get_num_threads() + 7)  # sums in float64 of each thread, and what an update makes of them
        start = KMeansWork(n_clusters=k, streamed=self.streamed).added_bytes(shape)
        blocks = streaming_bytes(shape) if self.streamed else 0
        return max(start, blocks + copies * (k * d + scatters) + KERNEL_BYTES)

    def flops(self, shape: Shape) -> float:
        each = 3 * shape.d**2 if self.covariance_type == "full" else 7 * shape.d
        return float(shape.n) * self.n_clusters * each

    def seconds(self, rows: RowSource) -> float:
        d = rows.shape[1]
        features = d * d if self.covariance_type == "full" else d
        sample = timing.sample_of(rows, 4 * distances_ns(features, self.n_clusters))
        means = timing.some_of(sample, self.n_clusters).numpy()
        arguments: dict[str, Any] = {
            "covariance_type": self.covariance_type,
            "means_init": means,
            "check_finite": False,
        }
        model = GaussianMixture(self.n_clusters, **arguments)
        start = model._start(sample, self.n_clusters, 0)
        block = block_of(d, rows.dtype, MOST_ROWS) if self.streamed else None
        return timing.pass_seconds(rows, sample, lambda x: model._update(x, start), block)

    def instead(self, shape: Shape, available: int) -> Iterator[str]:
        if self.covariance_type == "full" and replace(self, covariance_type="diag").bytes(shape) <= available:
            yield "diagonal covariances"
        yield from super().instead(shape, available)


def block_of_shape(shape: Shape) -> int:
    """Rows of a source that are worked on at a time."""
    return min(shape.n, block_of(shape.d, np.dtype(f"f{shape.itemsize}"), MOST_ROWS))


def streaming_bytes(shape: Shape, of_a_row: int = 33) -> int:
    """Blocks that are read, and what a pass has for a row of one: less where labels before are not compared."""
    block = block_of_shape(shape)
    buffers = 0 if shape.is_mapped else min(BUFFERS, -(-shape.n // block)) * block * shape.row_bytes
    return buffers + block * of_a_row


def center_bytes(shape: Shape, n_clusters: int) -> int:
    """Centers as a pass and an update have them: sums of all threads in float64, and copies."""
    return n_clusters * (shape.d * (8 * (4 + torch.get_num_threads()) + 4 * shape.itemsize) + 64)
