"""Which algorithm finds neighbours: the one decision that ``knn`` makes, and its explanation."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import torch
from torch import Tensor

from fastdc.kernels._backend import BackendError
from fastdc.kernels._precision import working_dtype

ALGORITHMS = ("exact", "lists", "faiss", "hnsw", "ivf")
# Products of numbers up to which exact search is taken. Measured on two cores with 65,536 and 131,072 points of 16 and
# 64 features, hnsw (recall 0.88 to 0.997) took 2.2 to 5.8 times as long as exact search. Where exact search grows with
# n^2 and hnsw with n log n, they draw level at 2^42 to 2^43, and here hnsw takes a half to a third of the time; lists
# takes far less. Yet what takes minutes is exact, where nothing else is asked for.
LARGEST_EXACT = 1 << 46
FEWEST_QUERIES = 1 << 16  # below, building a graph costs more than it saves
LARGEST_K_ON_GPU = 2048  # of faiss, of neighbours and of probed lists alike


class AlgorithmChoice(NamedTuple):
    """One line of :func:`explain_algorithms`."""

    algorithm: str
    chosen: bool
    reason: str


def has_faiss() -> bool:
    return importlib.util.find_spec("faiss") is not None


def choose_algorithm(
    x: Tensor,
    n_neighbors: int,
    queries: Tensor | None = None,
    algorithm: str = "auto",
    metric: str = "euclidean",
    *,
    faiss: bool | None = None,
) -> str:
    """The algorithm that runs; ``faiss`` says whether it imports, None looks.

    Raises
    ------
    ValueError
        If the name is not an algorithm.
    BackendError
        If an algorithm was asked for that cannot run on these tensors or in this process.
    """
    if algorithm not in ("auto", *ALGORITHMS):
        raise ValueError(f"algorithm must be 'auto' or one of {ALGORITHMS}, got {algorithm!r}")
    if algorithm != "auto":
        obstacle = _obstacle(algorithm, x, n_neighbors, queries, metric, faiss)
        if obstacle:
            raise BackendError(f"knn: algorithm {algorithm!r} cannot run: {obstacle}")
        return algorithm
    if _is_large(x, queries):
        for name in ("lists", "hnsw"):
            if not _obstacle(name, x, n_neighbors, queries, metric, faiss):
                return name
    return "exact"


def explain_algorithms(
    x: Tensor,
    n_neighbors: int = 15,
    queries: Tensor | None = None,
    algorithm: str = "auto",
    metric: str = "euclidean",
    *,
    faiss: bool | None = None,
) -> list[AlgorithmChoice]:
    """Each algorithm of ``knn`` for such a call, whether it is chosen, and why.

    The answer comes from the functions that the call itself uses.

    >>> import torch
    >>> [c.algorithm for c in explain_algorithms(torch.zeros(100, 2)) if c.chosen]
    ['exact']
    """
    obstacles = {name: _obstacle(name, x, n_neighbors, queries, metric, faiss) for name in ALGORITHMS}
    if algorithm in ALGORITHMS and obstacles[algorithm]:
        chosen = ""
    else:
        chosen = choose_algorithm(x, n_neighbors, queries, algorithm, metric, faiss=faiss)
    rows = []
    for name in ALGORITHMS:
        if obstacles[name]:
            reason = obstacles[name]
        elif algorithm != "auto":
            reason = "asked for" if name == algorithm else f"{algorithm!r} is asked for"
        else:
            reason = _reason(name, chosen, _is_large(x, queries))
        rows.append(AlgorithmChoice(name, name == chosen, reason))
    return rows


def _reason(name: str, chosen: str, large: bool) -> str:
    products = f"2^{LARGEST_EXACT.bit_length() - 1} products of numbers"
    if name != chosen:
        return "'exact' is faster here" if name == "faiss" and not large else f"'auto' takes {chosen!r} at this size"
    if chosen != "exact":
        return f"exact search takes more than {products}; approximate, distances are true"
    return f"exact; search takes more than {products}" if large else f"exact search takes at most {products}"


def _is_large(x: Tensor, queries: Tensor | None) -> bool:
    n, d = x.shape
    m = n if queries is None else queries.shape[0]
    return m >= FEWEST_QUERIES and m * n * d > LARGEST_EXACT


def _obstacle(
    algorithm: str, x: Tensor, n_neighbors: int, queries: Tensor | None, metric: str, faiss: bool | None
) -> str:
    """Why an algorithm cannot run; empty if it can."""
    if algorithm == "exact":
        return ""
    if algorithm == "lists":
        return _obstacle_of_lists(x, queries, metric)
    if not (has_faiss() if faiss is None else faiss):
        return "faiss does not import; install it with `pip install faiss-cpu`, or use 'exact'"
    dtype = working_dtype(x) if queries is None else working_dtype(x, queries)
    if dtype == torch.float64:
        return "faiss computes in float32; pass x.float(), or use 'exact'"
    if x.device.type not in ("cpu", "cuda"):
        return f"faiss needs CPU or CUDA tensors, x is on {x.device}; use 'exact'"
    if x.device.type == "cuda" and algorithm == "hnsw":
        return f"{algorithm!r} needs CPU tensors; move x with x.cpu(), or use 'ivf', 'faiss' or 'exact'"
    if x.device.type == "cuda" and n_neighbors >= LARGEST_K_ON_GPU:
        return f"faiss finds fewer than {LARGEST_K_ON_GPU} neighbours on GPUs, {n_neighbors} are wanted; use 'exact'"
    return ""


def _obstacle_of_lists(x: Tensor, queries: Tensor | None, metric: str) -> str:
    if queries is not None:
        return "it seeks the neighbours of x among x itself, and queries are given; use 'ivf', 'hnsw' or 'exact'"
    if metric == "inner_product":
        return "what has a large product with the same point need not be near; use 'ivf', 'hnsw' or 'exact'"
    if x.device.type != "cpu":
        return f"it needs CPU tensors, x is on {x.device}; use 'ivf' or 'exact'"
    return ""
