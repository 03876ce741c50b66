"""Search by FAISS. Its answers are candidates: distances are measured anew, by differences in float64."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastdc.kernels._backend import BackendError
from fastdc.kernels._checks import check_finite
from fastdc.kernels.neighbors.choice import LARGEST_K_ON_GPU
from fastdc.kernels.neighbors.points import metric_rows
from fastdc.kernels.neighbors.rescore import best_of

LINKS, BUILD_BEAM, SEARCH_BEAM = 32, 100, 64  # of the graph of hnsw
WIDEST_BEAM = 4096
LEAST_A_LIST = 39  # points that faiss wants for each list of ivf
LEAST_PROBES, PROBED_SHARE = 16, 8  # lists of ivf that a query looks into: one in eight, 16 at least
TRAINING_ROWS_A_LIST = 64  # on GPUs, where faiss trains from host memory
SCRATCH_BYTES = 256 << 20  # of GPU memory that faiss works in, for the length of a call


def knn_faiss(
    x: Tensor, queries: Tensor | None, n_neighbors: int, metric: str, algorithm: str
) -> tuple[Tensor, Tensor]:
    """distances (m, n_neighbors), float32, and indices; -1 where a search found fewer."""
    check_finite(("x", x), ("queries", queries))
    points = metric_rows(x, metric, torch.float32).contiguous()
    rows = points if queries is None else metric_rows(queries, metric, torch.float32).contiguous()
    wanted = min(n_neighbors + (queries is None), len(points))  # the row itself is found too
    faiss = load_faiss(on_gpu=points.is_cuda)
    found = search_gpu if points.is_cuda else search_cpu
    candidates = found(faiss, points, rows, wanted, metric, algorithm)
    return best_of(candidates, rows, points, queries is None, n_neighbors, metric)


def load_faiss(on_gpu: bool) -> ModuleType:
    """faiss; for GPUs with its functions that take torch's tensors."""
    faiss = importlib.import_module("faiss")
    if on_gpu:
        if not hasattr(faiss, "StandardGpuResources"):
            raise BackendError("knn: this faiss has no GPU part; install faiss-gpu, or use algorithm 'exact'")
        importlib.import_module("faiss.contrib.torch_utils")
    return faiss


def search_cpu(faiss: Any, points: Tensor, rows: Tensor, wanted: int, metric: str, algorithm: str) -> Tensor:
    """Candidates (m, wanted), on as many threads as torch has; torch's memory is read where it lies."""
    with _threads_of_torch(faiss):
        index = _make_index(faiss, points, wanted, _code(faiss, metric), algorithm)
        return torch.from_numpy(index.search(rows.numpy(), wanted)[1])


class PointIndex:
    """What an algorithm of FAISS makes of points on a CPU, once, for queries that come a block at a time.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), finite
    n_neighbors : int
        The most that will be asked for.
    metric, algorithm
        As in :func:`fastdc.kernels.neighbors.knn`; not "exact".
    """

    def __init__(self, x: Tensor, n_neighbors: int, metric: str, algorithm: str) -> None:
        self.metric, self.faiss, self.algorithm = metric, load_faiss(on_gpu=False), algorithm
        self.points = metric_rows(x, metric, torch.float32).contiguous()
        with _threads_of_torch(self.faiss):
            self.index = _make_index(self.faiss, self.points, n_neighbors, _code(self.faiss, metric), algorithm)

    @property
    def widest(self) -> int:
        """The most that a query can look at: lists of "ivf", the beam of "hnsw"; 0 of "faiss", which looks at all."""
        if self.algorithm == "ivf":
            return self.index.nlist
        return WIDEST_BEAM if self.algorithm == "hnsw" else 0

    def look_at(self, width: int) -> None:
        """How much of the index each query looks at from now on, up to ``widest``: the more, the higher the recall."""
        if self.algorithm == "ivf":
            self.index.nprobe = width
        else:
            self.index.hnsw.efSearch = width

    def search(self, queries: Tensor, n_neighbors: int) -> tuple[Tensor, Tensor]:
        """distances (m, n_neighbors), float32, measured by differences, and indices; -1 where fewer were found."""
        rows = metric_rows(queries, self.metric, torch.float32).contiguous()
        with _threads_of_torch(self.faiss):
            candidates = torch.from_numpy(self.index.search(rows.numpy(), n_neighbors)[1])
        return best_of(candidates, rows, self.points, False, n_neighbors, self.metric)


@contextmanager
def _threads_of_torch(faiss: Any) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def search_gpu(faiss: Any, points: Tensor, rows: Tensor, wanted: int, metric: str, algorithm: str) -> Tensor:
    """The same on a GPU, on torch's current stream; points and queries are handed over where they lie.

    Only the sample of points from which "ivf" learns its lists passes through host memory, inside faiss.
    """
    code = _code(faiss, metric)
    with torch.cuda.device_of(points):
        resources = faiss.StandardGpuResources()
        resources.setTempMemory(SCRATCH_BYTES)
        resources.setPinnedMemory(0)
        with faiss.contrib.torch_utils.using_stream(resources):
            if algorithm == "faiss":
                return faiss.knn_gpu(resources, rows, points, wanted, metric=code)[1]
            return _make_gpu_index(faiss, resources, points, code).search(rows, wanted)[1]


def _code(faiss: Any, metric: str) -> int:
    return faiss.METRIC_L2 if metric == "euclidean" else faiss.METRIC_INNER_PRODUCT


def _make_index(faiss: Any, points: Tensor, wanted: int, code: int, algorithm: str) -> Any:
    """An index that holds the points."""
    n, d = points.shape
    array = points.numpy()
    if algorithm == "faiss":
        index = faiss.IndexFlat(d, code)
    elif algorithm == "hnsw":
        index = faiss.IndexHNSWFlat(d, LINKS, code)
        index.hnsw.efConstruction = BUILD_BEAM
        index.hnsw.efSearch = max(SEARCH_BEAM, 2 * wanted)
        if torch.are_deterministic_algorithms_enabled():  # threads add points in no fixed order
            faiss.omp_set_num_threads(1)
    else:
        n_lists, n_probes = _lists(n)
        quantizer = faiss.IndexFlat(d, code)
        index = faiss.IndexIVFFlat(quantizer, d, n_lists, code)
        index.nprobe = n_probes
        index.train(array)
    index.add(array)
    return index


def _make_gpu_index(faiss: Any, resources: Any, points: Tensor, code: int) -> Any:
    """An index by lists that holds the points, on their device."""
    n, d = points.shape
    n_lists, n_probes = _lists(n)
    config = faiss.GpuIndexIVFFlatConfig()
    config.device = points.get_device()
    index = faiss.GpuIndexIVFFlat(resources, d, n_lists, code, config)
    index.nprobe = min(n_probes, LARGEST_K_ON_GPU)
    index.train(points[:: max(1, n // (TRAINING_ROWS_A_LIST * n_lists))].contiguous())
    index.add(points)
    return index


def _lists(n: int) -> tuple[int, int]:
    """How many lists ivf cuts n points into, and how many of them a query looks into."""
    n_lists = max(1, min(int(4 * n**0.5), n // LEAST_A_LIST))
    return n_lists, min(n_lists, max(LEAST_PROBES, n_lists // PROBED_SHARE))
