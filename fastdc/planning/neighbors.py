"""What nearest neighbours take, as ``fastdc knn`` and ``save_knn`` write them to a file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fastdc._input import read_count
from fastdc.data import RowSource
from fastdc.data.stream import BUFFERS
from fastdc.kernels.kmeans import nearest_center
from fastdc.kernels.neighbors import choose_algorithm, knn
from fastdc.kernels.neighbors.near_lists import TRAINING_ROWS, TRAINING_STEPS, WIDTH, NearLists, list_count
from fastdc.kernels.neighbors.op import check_n_neighbors
from fastdc.kernels.neighbors.points import METRICS, check_metric
from fastdc.kernels.neighbors.rescore import CHUNK_BYTES
from fastdc.kernels.neighbors.search import LINKS, PointIndex
from fastdc.neighbors.recall import CHECKED
from fastdc.neighbors.to_disk import QUERY_ROWS, cut_rows
from fastdc.planning import timing
from fastdc.planning.memory import KERNEL_BYTES, Shape
from fastdc.planning.work import Work, most_that_fits

TRIED_QUERIES = 1024
PAIR_BYTES = 200  # of two lists that have met
LISTED_ROWS = 1 << 15  # that are put into lists for a trial
LINK_BYTES = 4 * 2 * LINKS + 24  # of hnsw, a point: links of its lowest level, and where they and others are


@dataclass(frozen=True, kw_only=True)
class NeighborsWork(Work):
    """``save_knn``; ``search_memory`` is what it is told that an exact search may take."""

    name: ClassVar[str] = "knn"

    n_neighbors: int = 15
    metric: str = "euclidean"
    algorithm: str = "auto"
    search_memory: int = 1 << 30
    n_queries: int | None = None  # None: the points themselves

    def can_stream(self, shape: Shape) -> bool:
        return self._chosen(shape) == "exact"

    def check(self, shape: Shape) -> None:
        check_metric(self.metric, METRICS)
        check_n_neighbors(self.n_neighbors, shape.n, self.n_queries is None)
        read_count(self.search_memory, "search_memory")
        self._chosen(shape)
        super().check(shape)

    def bytes(self, shape: Shape) -> int:
        """An exact search reads parts of the points, the others hold them all."""
        is_held = self._chosen(shape) != "exact" and not shape.is_mapped
        return self.added_bytes(shape) + (shape.n * shape.row_bytes if is_held else 0)

    def added_bytes(self, shape: Shape) -> int:
        if self._chosen(shape) == "exact":
            return self._exact_bytes(shape, self._asked(shape)) + KERNEL_BYTES
        return self._index_bytes(shape) + KERNEL_BYTES

    def flops(self, shape: Shape) -> float:
        """Of all pairs; approximate algorithms look at fewer."""
        return 2.0 * shape.n * self._asked(shape) * shape.d

    def seconds(self, rows: RowSource) -> float:
        """An extrapolation: of the points each query is compared with, as many as there are points.

        "lists" and "ivf" also learn their lists, n^1.5 operations.
        """
        shape = Shape.of(rows)
        algorithm, asked = self._chosen(shape), self._asked(shape)
        if algorithm == "hnsw":
            raise ValueError(
                "the seconds of algorithm 'hnsw' cannot be told from a small trial, since its graph slows down as it "
                "outgrows the caches; plan algorithm 'exact' or 'ivf', or time hnsw on a tenth of the rows"
            )
        if algorithm == "exact":
            return self._exact_seconds(rows, asked)
        if algorithm == "lists":
            return self._lists_seconds(rows) + self._exact_seconds(rows, min(asked, 2 * CHECKED))
        build = timing.grown(lambda size: self._tried(rows, size, algorithm)[0], len(rows), (1.0, 1.5))
        search = timing.grown(lambda size: self._tried(rows, size, algorithm)[1], len(rows), (0.0, 1.0))
        return build + asked * search + self._exact_seconds(rows, min(asked, CHECKED))

    def instead(self, shape: Shape, available: int) -> Iterator[str]:
        if self._chosen(shape) != "exact":
            if replace(self, algorithm="exact").bytes(shape) <= available:
                yield "algorithm exact, which reads the points a part at a time"
            return
        most = most_that_fits(self, "search_memory", shape, available)
        if most:
            yield f"a search that is told to take {most:,} bytes, which reads the points more often"

    def _exact_seconds(self, rows: RowSource, asked: int) -> float:
        shape = Shape.of(rows)
        query_rows, part_rows = self._cut(shape)
        queries = timing.middle_of(rows, min(query_rows, TRIED_QUERIES))

        def search(points: Tensor) -> None:
            knn(points, min(self._wanted(shape), len(points)), queries, self.metric, "exact")

        searching = timing.grown_seconds(
            len(rows), lambda size: timing.middle_of(rows, size), search, powers=(0.0, 1.0)
        )
        passes = -(-asked // query_rows)
        reading = len(rows) * timing.reading_a_row(rows, min(len(rows), part_rows, timing.MOST))
        return max(asked / len(queries) * searching, passes * reading) + reading

    def _lists_seconds(self, rows: RowSource) -> float:
        """To place each row in a list, and to have lists of some rows meet that are as long as those of all will be.

        Each meets as many as ``knn`` has it meet. How many a wanted recall needs, some of the rows cannot tell: where
        clusters hold many lists, it may be three times as many, and take twice as long.
        """
        n, n_lists = len(rows), list_count(len(rows))
        some = timing.middle_of(rows, min(n, LISTED_ROWS))
        centers = timing.some_of(some, n_lists)
        placing = timing.line_of(some[:TRIED_QUERIES], lambda x: nearest_center(x, centers)).a_row
        shares = max(1, len(some) * n_lists // n)
        NearLists(some[:TRIED_QUERIES], self.n_neighbors, self.metric).look_at(1)  # compiles
        lists = NearLists(some, self.n_neighbors, self.metric, shares)
        started = time.perf_counter()
        lists.look_at(min(WIDTH, lists.widest))
        lists.neighbors()
        meeting = (time.perf_counter() - started) / len(some)
        return n * (placing + meeting) + TRAINING_STEPS * TRAINING_ROWS * n_lists * placing

    def _tried(self, rows: RowSource, size: int, algorithm: str) -> tuple[float, float]:
        """Seconds to build an index of so many points, and of a query."""
        points = timing.middle_of(rows, size)
        queries = points[:TRIED_QUERIES]
        started = time.perf_counter()
        index = PointIndex(points, self.n_neighbors + 1, self.metric, algorithm)
        built = time.perf_counter()
        index.search(queries, self.n_neighbors + 1)
        return built - started, (time.perf_counter() - built) / len(queries)

    def _exact_bytes(self, shape: Shape, asked: int) -> int:
        """While a part of the points is searched: its factors, offsets and norms, those of a block of queries, and its
        keys, distances and indices beside those found so far; or while both are sorted.
        """
        query_rows, part_rows = self._cut(shape)
        queries, part = min(asked, query_rows), min(shape.n, part_rows)
        n_parts = -(-shape.n // part)
        row = shape.row_bytes * (2 if self.metric == "cosine" else 1) + 2 * shape.itemsize + 1
        read = 0 if shape.is_mapped else shape.row_bytes
        pair = 8 + shape.itemsize
        searching = part * row + queries * (row + self._wanted(shape) * (8 + pair + pair * (n_parts > 1)))
        sorting = queries * self._wanted(shape) * (6 * pair if n_parts > 1 else 17 + pair)
        return max(searching, sorting) + read * (queries + min(BUFFERS, n_parts) * part)

    def _index_bytes(self, shape: Shape) -> int:
        """A copy of the points, links or lists; of a block of queries the differences from their candidates."""
        if self._chosen(shape) == "lists":
            return self._lists_bytes(shape)
        extra = {"hnsw": LINK_BYTES, "ivf": 8 + 8}.get(self._chosen(shape), 0)
        rows = shape.row_bytes * (2 if self.metric == "cosine" else 1)
        queries = min(QUERY_ROWS, self._asked(shape))
        differences = min(CHUNK_BYTES, queries * self._wanted(shape) * shape.d * 8)
        return shape.n * (rows + extra) + queries * self._wanted(shape) * 40 + 7 * differences // 2

    def _lists_bytes(self, shape: Shape) -> int:
        """The points in another order and their factors; orders and norms; keys, indices, and at the end both anew.

        Beside these the rows that lists are learnt from, and the pairs of lists.
        """
        rows = shape.row_bytes * (3 if self.metric == "cosine" else 2)
        of_a_list = 2 * TRAINING_ROWS * shape.row_bytes + WIDTH * PAIR_BYTES
        return shape.n * (rows + 29 + self.n_neighbors * 33) + list_count(shape.n) * of_a_list

    def _cut(self, shape: Shape) -> tuple[int, int]:
        is_mapped = shape.is_mapped
        return cut_rows(shape.d, shape.itemsize, self._wanted(shape), self.search_memory, is_mapped, is_mapped)

    def _asked(self, shape: Shape) -> int:
        return shape.n if self.n_queries is None else self.n_queries

    def _wanted(self, shape: Shape) -> int:
        """Neighbours that are searched for: a row finds itself too."""
        return min(shape.n, self.n_neighbors + (self.n_queries is None))

    def _chosen(self, shape: Shape) -> str:
        dtype = torch.float64 if shape.itemsize == 8 else torch.float32
        points = torch.empty(1, dtype=dtype).expand(shape.n, shape.d)
        queries = None if self.n_queries is None else points[:1].expand(self.n_queries, shape.d)
        return choose_algorithm(points, self.n_neighbors, queries, self.algorithm, self.metric)
