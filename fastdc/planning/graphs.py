"""What clustering by neighbourhoods takes: spectral clustering and DBSCAN. Their work depends on the points."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fastdc._input import read_count
from fastdc.cluster._spectral import DENSE
from fastdc.cluster.dbscan import DBSCAN
from fastdc.cluster.spectral import FLAT, SpectralClustering
from fastdc.data import RowSource
from fastdc.kernels._checks import check_positive
from fastdc.kernels.neighbors.points import METRICS, check_metric
from fastdc.planning import timing
from fastdc.planning.memory import KERNEL_BYTES, Shape, copy_bytes, kept_bytes
from fastdc.planning.work import ClusterWork, Work

EDGE_BYTES = 12  # of a sparse matrix of float64
FACTOR_BYTES = 18  # of an entry of the factors, with what is reserved for more
SAMPLED = 1 << 13  # rows whose graph is looked at


@dataclass(frozen=True, kw_only=True)
class WholeWork(Work):
    """A method that needs all rows at hand. Streamed, they and their copies lie in files, unless they are small."""

    def can_stream(self, shape: Shape) -> bool:
        return True

    def bytes(self, shape: Shape) -> int:
        rows = 0 if shape.is_mapped else copy_bytes(shape.n * shape.row_bytes, in_files=self.streamed)
        return self.added_bytes(shape) + rows

    def copies(self, shape: Shape, count: int = 1) -> int:
        """Bytes of copies of all rows."""
        return count * copy_bytes(shape.n * shape.row_bytes, in_files=self.streamed)

    def instead(self, shape: Shape, available: int) -> Iterator[str]:
        yield from super().instead(shape, available)
        if not self.streamed and replace(self, streamed=True).bytes(shape) <= available:
            yield "a row source (fastdc.data.as_row_source), which lies in files with its copies"


@dataclass(frozen=True, kw_only=True)
class SpectralWork(WholeWork, ClusterWork):
    """``SpectralClustering`` with its default weights and solver.

    ``n_components`` of the graph need no eigenvectors where they are as many as clusters; None is not known.
    """

    name: ClassVar[str] = "spectral"

    n_neighbors: int = 10
    metric: str = "euclidean"
    n_components: int | None = None

    def check(self, shape: Shape) -> None:
        super().check(shape)
        read_count(self.n_neighbors, "n_neighbors")
        check_metric(self.metric, METRICS[:2])

    def added_bytes(self, shape: Shape) -> int:
        bytes_of_stages = [self._graph_bytes(shape)]
        if self.n_components is None or self.n_components < self.n_clusters:
            bytes_of_stages.append(self._eigenvector_bytes(shape))
        kept = kept_bytes(8 * shape.n * self._degree(shape))
        return max(bytes_of_stages) + kept + KERNEL_BYTES

    def flops(self, shape: Shape) -> float:
        """Of the search for neighbours: half of all pairs."""
        return float(shape.n) ** 2 * shape.d

    def seconds(self, rows: RowSource) -> float:
        """An extrapolation: of the search, which compares all pairs, and a linear rest, eigenvectors among it.

        Factors take n^1.5 operations in the plane, which is between the two; how many products Lanczos' method needs
        is up to the points.
        """
        model = self._model()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first = max(timing.FIRST_ROWS, 2 * self.n_clusters)
            return timing.grown_seconds(len(rows), lambda size: timing.by_chance(rows, size), model.fit, first=first)

    def look_at(self, rows: RowSource) -> SpectralWork:
        """With the components of the graph of some rows. All rows may hang together where some of them do not."""
        if len(rows) <= self.n_clusters:
            return self
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sample = timing.by_chance(rows, max(SAMPLED, 2 * self.n_clusters))
            return replace(self, n_components=self._model().fit(sample).n_components_)

    def _model(self) -> SpectralClustering:
        arguments: dict[str, Any] = {
            "n_neighbors": self.n_neighbors,
            "metric": self.metric,
            "device": "cpu",
            "random_state": 0,
        }
        return SpectralClustering(self.n_clusters, **arguments)

    def _graph_bytes(self, shape: Shape) -> int:
        """Neighbours with keys, distances and factors of the rows; then they, and how edges both ways are merged."""
        unit_rows = self.copies(shape, self.metric == "cosine")
        searching = shape.n * (self._degree(shape) * (16 + shape.itemsize) + 2 * shape.itemsize + 1)
        merging = shape.n * self._degree(shape) * (53 + 2 * shape.itemsize)
        return max(searching + self.copies(shape), merging) + unit_rows

    def _eigenvector_bytes(self, shape: Shape) -> int:
        n, k = shape.n, self.n_clusters
        is_flat = shape.d <= FLAT
        edges = self._degree(shape) * (1.2 if is_flat else 1.5)
        embedding = 24 * k  # found, put together, and of length one
        if n <= max(DENSE, 4 * k):
            return int(n * (3 * EDGE_BYTES * edges + 24 * n + embedding))
        if is_flat:  # the graph, its component, similarities, Laplacian, and that shifted
            factors = 0.4 * self._degree(shape) * n.bit_length()
            return int(n * (5 * EDGE_BYTES * edges + FACTOR_BYTES * factors + embedding))
        basis = 8 * (max(2 * k + 1, 40) + 4)
        return int(n * (3 * EDGE_BYTES * edges + basis + embedding))

    def _degree(self, shape: Shape) -> int:
        return min(self.n_neighbors, max(1, shape.n - 1))


@dataclass(frozen=True, kw_only=True)
class DBSCANWork(WholeWork):
    """``DBSCAN``. How many boxes of points lie apart is up to the points."""

    name: ClassVar[str] = "dbscan"

    eps: float
    min_samples: int
    metric: str = "euclidean"

    def check(self, shape: Shape) -> None:
        super().check(shape)
        check_positive(self.eps, "eps")
        read_count(self.min_samples, "min_samples")
        check_metric(self.metric, METRICS[:2])

    def added_bytes(self, shape: Shape) -> int:
        """Rows in the order of the leaves, once more by columns, their boxes; five numbers and two marks a row.

        While they are sorted, rows of length one under cosine, their numbers and keys.
        """
        searching = self.copies(shape, 2) + 42 * shape.n
        sorting = self.copies(shape, 2 + (self.metric == "cosine")) + (8 + shape.itemsize) * shape.n
        return max(searching, sorting) + shape.n * (shape.d // 4) + KERNEL_BYTES

    def flops(self, shape: Shape) -> float:
        """At most: of all pairs to count, of half of them to join, of all to look up."""
        return 7.5 * float(shape.n) ** 2 * shape.d

    def seconds(self, rows: RowSource) -> float:
        """An extrapolation: of pairs of boxes that do not lie apart, and a linear rest."""
        model = DBSCAN(eps=self.eps, min_samples=self.min_samples, metric=self.metric, device="cpu")
        return timing.grown_seconds(len(rows), lambda size: timing.by_chance(rows, size), model.fit)
