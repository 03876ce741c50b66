"""Nearest neighbours of more points than fit in memory: rows from a source, results to a file, a block at a time."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fastdc._files import atomic_write
from fastdc._input import as_tensor, choose_device, read_count, read_seed, require_finite
from fastdc.data import RowSource, as_row_source, iter_chunks
from fastdc.kernels.neighbors import choose_algorithm, knn
from fastdc.kernels.neighbors.near_lists import WIDTH, NearLists
from fastdc.kernels.neighbors.op import check_n_neighbors
from fastdc.kernels.neighbors.points import METRICS, check_metric
from fastdc.kernels.neighbors.search import PointIndex
from fastdc.neighbors.recall import MIN_RECALL, Found, Sample, drawn, widen

QUERY_ROWS = 1 << 15
COPIES = 3  # of rows that a search holds; as many more where they must be read into buffers


class SavedNeighbors(NamedTuple):
    """What :func:`save_knn` wrote, by which algorithm, and what share of the true neighbours it found (a sample)."""

    path: Path
    n_queries: int
    n_neighbors: int
    algorithm: str
    recall: float
    seconds: float


def save_knn(
    X: Any,
    path: str | os.PathLike[str],
    n_neighbors: int = 15,
    *,
    queries: Any = None,
    metric: str = "euclidean",
    algorithm: str = "auto",
    min_recall: float | None = MIN_RECALL,
    memory: int = 1 << 30,
    device: torch.device | str | None = None,
    check_finite: bool = True,
    random_state: Any = 0,
    verbose: int = 0,
) -> SavedNeighbors:
    """Write the nearest points of each query; without queries, of each point among all others.

    Parameters
    ----------
    X : array-like, path or RowSource of shape (n_samples, n_features)
        What neighbours are sought among.
    path : path
        ``.npz``: arrays ``indices`` and ``distances`` of shape (n_queries, n_neighbors), nearest first, as of
        :func:`fastdc.neighbors.knn`. ``.npy``: the indices alone. It appears whole or not at all.
    n_neighbors : int
    queries : array-like, path or RowSource of shape (n_queries, n_features), optional
    metric : {"euclidean", "cosine", "inner_product"}
    algorithm : {"auto", "exact", "lists", "faiss", "hnsw", "ivf"}
        As in :func:`fastdc.neighbors.knn`; all but "exact" run on the CPU.
    min_recall : float or None
        Share of the true neighbours that "lists", "hnsw" and "ivf" shall find: queries look at more and more of the
        points, until 1,000 of them find so many, and two standard errors more. None looks at as much as
        :func:`fastdc.neighbors.knn` does, whatever the recall.
    memory : int
        Bytes that rows and results of "exact" may take; rows that are mapped from a file do not count. The others
        hold all points, an index of them, and "lists" 28 bytes a neighbour.
    device : str or torch.device, optional
        Of "exact".
    check_finite : bool
        Raise where an entry is NaN or infinite, in a pass before the search.
    random_state : int, numpy RandomState or Generator, optional
        Of the queries that recall is measured on.
    verbose : int
        1 shows progress, rate and time left on standard error.

    Returns
    -------
    SavedNeighbors
        ``recall`` is 1 for "exact", else measured on 1,000 queries, drawn apart from those of ``min_recall``: the share
        of their found neighbours that are as near as the true ones.

    Raises
    ------
    ValueError, TypeError, BackendError
        For bad arguments and bad data, before anything is written.

    Warns
    -----
    UserWarning
        If "hnsw" cannot reach ``min_recall``.

    Notes
    -----
    Indices are int32 where that holds them. "exact" gives the neighbours of ``knn``; of points in different parts of
    X that are equally far in the precision of the result, the one of lower index comes first. It measures each pair
    from both sides, which ``knn`` of all points at once does not; the smaller ``memory``, the longer it takes.
    Disk: the file, and for ``.npz`` the distances once more until it is done.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "graph.npz"
    >>> save_knn(np.array([[0.0], [1.0], [3.0]]), path, 1).recall
    1.0
    >>> np.load(path)["indices"].tolist(), np.load(path)["distances"].tolist()
    ([[1], [0], [1]], [[1.0], [1.0], [2.0]])
    """
    started = time.perf_counter()
    target = Path(path)
    if target.suffix not in (".npz", ".npy"):
        raise ValueError(f"path must end in .npz (indices and distances) or .npy (indices), got {target}")
    points = as_row_source(X)
    asked = points if queries is None else as_row_source(queries)
    if asked.shape[1] != points.shape[1]:
        raise ValueError(f"queries have {asked.shape[1]} features, X has {points.shape[1]}; both must have as many")
    check_metric(metric, METRICS)
    check_n_neighbors(n_neighbors, len(points), queries is None)
    memory, seed = read_count(memory, "memory"), read_seed(random_state)
    if min_recall is not None and not 0 < min_recall <= 1:
        raise ValueError(f"min_recall must be above 0 and at most 1, or None, got {min_recall}")
    algorithm = choose_algorithm(
        _outline(points), n_neighbors, None if queries is None else _outline(asked), algorithm, metric
    )
    for source in (points,) if queries is None else (points, asked):
        if check_finite or algorithm != "exact":
            _require_finite(source)
    job = _Job(points, asked, queries is None, n_neighbors, metric, memory, choose_device(device))
    sample = None if algorithm == "exact" else job.sample(seed)
    found = job.found(algorithm, min_recall, seed + 1)
    with (
        _open_results(target, (len(asked), n_neighbors), len(points), job.dtype) as write,
        tqdm(total=len(asked), desc=f"knn, {algorithm}", unit=" rows", unit_scale=True, disable=not verbose) as bar,
    ):
        for start, distances, indices in found:
            write(distances.cpu().numpy(), indices.cpu().numpy())
            if sample is not None:
                sample.see(start, distances)
            bar.update(len(indices))
    recall = 1.0 if sample is None else sample.recall()
    return SavedNeighbors(target, len(asked), n_neighbors, algorithm, recall, time.perf_counter() - started)


def cut_rows(
    n_features: int, itemsize: int, wanted: int, memory: int, queries_mapped: bool, points_mapped: bool
) -> tuple[int, int]:
    """Rows of a block of queries and of a part of the points, for an exact search in so many bytes of memory."""
    row = COPIES * n_features * itemsize
    query = row * (1 if queries_mapped else 2) + 5 * wanted * (8 + itemsize)  # two lists, both joined and sorted
    query_rows = int(min(QUERY_ROWS, max(64, memory // 4 // query)))
    point = row * (1 if points_mapped else 2) + 9
    return query_rows, int(max(wanted, 64, (memory - query_rows * query) // point))


class _Job:
    """One call: how rows are cut, and searches of a block of queries."""

    def __init__(
        self,
        points: RowSource,
        asked: RowSource,
        is_self: bool,
        n_neighbors: int,
        metric: str,
        memory: int,
        device: torch.device,
    ) -> None:
        self.points, self.asked, self.is_self, self.metric, self.device = points, asked, is_self, metric, device
        self.n_neighbors = n_neighbors
        self.wanted = min(n_neighbors + is_self, len(points))  # a row finds itself too
        self.dtype = np.result_type(points.dtype, asked.dtype)
        are_mapped = [source.view(0, 1) is not None for source in (asked, points)]
        cut = cut_rows(points.shape[1], self.dtype.itemsize, self.wanted, memory, *are_mapped)
        self.query_rows, self.part_rows = cut

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Queries, read between passes over the points: a source is read by one thread at a time."""
        for start in range(0, len(self.asked), self.query_rows):
            rows = self.asked.rows(start, min(start + self.query_rows, len(self.asked)))
            yield start, as_tensor(rows).to(self.device)

    def exact(self, block: Tensor) -> Found:
        """The ``wanted`` nearest points of each row of a block, from one part of the points after another."""
        found: Found | None = None
        with closing(iter_chunks(self.points, self.part_rows, device=self.device)) as parts:  # type: ignore[type-var]
            for first, part in parts:
                distances, indices = knn(part, min(self.wanted, len(part)), block, self.metric, "exact")
                indices = torch.where(indices >= 0, indices + first, -1)
                found = (distances, indices) if found is None else self._nearer(found, (distances, indices))
        assert found is not None, "there are points"
        return found

    def found(self, algorithm: str, min_recall: float | None, seed: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Distances and indices of a block of queries at a time, and the number of its first."""
        if algorithm == "lists":
            yield from self._in_lists(min_recall, seed)
            return
        search = self.exact if algorithm == "exact" else self._in_index(algorithm, min_recall, seed)
        for start, block in self.blocks():
            yield start, *self.others(*search(block), torch.arange(start, start + len(block)))

    def _in_index(self, algorithm: str, min_recall: float | None, seed: int) -> Callable[[Tensor], Found]:
        """A search of the ``wanted`` nearest points of each row of a block, as wide as a sample needs."""
        index = PointIndex(as_tensor(np.asarray(self.points)), self.wanted, self.metric, algorithm)

        def search(block: Tensor) -> Found:
            return index.search(block.cpu(), self.wanted)

        if min_recall is not None and index.widest:
            sample = self.sample(seed)
            block, rows = self._asked_rows(sample.rows), torch.from_numpy(sample.rows)
            widen(index, lambda: self.others(*search(block), rows)[0], sample, min_recall)
        return search

    def _in_lists(self, min_recall: float | None, seed: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        points = as_tensor(np.asarray(self.points))
        if min_recall is None:
            lists = NearLists(points, self.n_neighbors, self.metric)
            lists.look_at(min(WIDTH, lists.widest))
        else:
            sample = self.sample(seed)  # takes memory that is free again before there are lists
            lists = NearLists(points, self.n_neighbors, self.metric)
            widen(lists, lambda: lists.distances(torch.from_numpy(sample.rows)), sample, min_recall)
        distances, indices = lists.neighbors()
        for start in range(0, len(indices), QUERY_ROWS):
            yield start, distances[start : start + QUERY_ROWS], indices[start : start + QUERY_ROWS]

    def sample(self, seed: int) -> Sample:
        rows = drawn(len(self.asked), seed)
        true = self.others(*self.exact(self._asked_rows(rows)), torch.from_numpy(rows))[0]
        return Sample(rows, true, self._sign)

    def _asked_rows(self, rows: np.ndarray) -> Tensor:
        return as_tensor(self.asked.take(rows)).to(self.device)

    def others(self, distances: Tensor, indices: Tensor, rows: Tensor) -> Found:
        """Without the rows themselves, given their numbers; the last goes where a row is not in its list."""
        if not self.is_self:
            return distances, indices
        beyond = (indices == rows.to(indices.device)[:, None]).cumsum(dim=1)[:, : self.n_neighbors] > 0
        columns = torch.arange(self.n_neighbors, device=indices.device) + beyond.long()
        return distances.gather(1, columns), indices.gather(1, columns)

    @property
    def _sign(self) -> int:
        return -1 if self.metric == "inner_product" else 1

    def _nearer(self, a: Found, b: Found) -> Found:
        distances, indices = (torch.cat(pair, dim=1) for pair in zip(a, b))
        order = (distances * self._sign).sort(dim=1, stable=True).indices[:, : self.wanted]
        return distances.gather(1, order), indices.gather(1, order)


@contextmanager
def _open_results(
    target: Path, shape: tuple[int, int], n_points: int, dtype: np.dtype
) -> Iterator[Callable[[np.ndarray, np.ndarray], None]]:
    """A function that takes the distances and indices of each block in turn."""
    whole = np.dtype(np.int32 if n_points <= np.iinfo(np.int32).max else np.int64)
    with atomic_write(target) as file:
        if target.suffix == ".npy":
            put = _begin_array(file, shape, whole)
            yield lambda distances, indices: put(indices)
            return
        with (
            zipfile.ZipFile(file, "w") as archive,
            tempfile.TemporaryFile(dir=target.resolve().parent) as aside,
        ):
            with archive.open("indices.npy", "w", force_zip64=True) as member:
                put, put_aside = _begin_array(member, shape, whole), _begin_array(aside, shape, dtype)

                def write(distances: np.ndarray, indices: np.ndarray) -> None:
                    put(indices)
                    put_aside(distances)

                yield write
            aside.seek(0)
            with archive.open("distances.npy", "w", force_zip64=True) as member:
                shutil.copyfileobj(aside, member, 1 << 24)


def _begin_array(file: Any, shape: tuple[int, int], dtype: np.dtype) -> Callable[[np.ndarray], None]:
    """Write the head of a ``.npy``; a function that adds rows."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)

    def put(rows: np.ndarray) -> None:
        file.write(np.ascontiguousarray(rows, dtype).data)

    return put


def _outline(source: RowSource) -> Tensor:
    """A tensor of the shape and dtype of a source, without memory."""
    return torch.empty(1, dtype=getattr(torch, str(source.dtype))).expand(source.shape)


def _require_finite(source: RowSource) -> None:
    with closing(iter_chunks(source, QUERY_ROWS)) as chunks:  # type: ignore[type-var]
        for start, x in chunks:
            require_finite(x, first_row=start)
