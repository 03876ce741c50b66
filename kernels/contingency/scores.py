"""Agreement scores from one table. Counts stay exact integers as long as the score allows it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastdc.kernels.contingency.matching import best_cells
from fastdc.kernels.contingency.numba_kernel import expected_mutual_information_numba
from fastdc.kernels.contingency.table import ContingencyTable

LARGEST_INT64_ROOT = 3_037_000_499  # its square still fits into int64

MEANS: dict[str, Callable[[float, float], float]] = {
    "arithmetic": lambda u, v: (u + v) / 2,
    "geometric": lambda u, v: math.sqrt(u * v),
    "min": min,
    "max": max,
}


class Summary(NamedTuple):
    """The non-zero cells (rows, columns, counts) and the margins of a table; every size is above zero."""

    rows: np.ndarray
    columns: np.ndarray
    counts: np.ndarray
    class_sizes: np.ndarray
    cluster_sizes: np.ndarray
    classes: np.ndarray
    clusters: np.ndarray
    n_samples: int


class Information(NamedTuple):
    """Mutual information and both entropies, in nats."""

    mutual: float
    class_entropy: float
    cluster_entropy: float


def summary_of(table: ContingencyTable) -> Summary:
    """Drops empty rows and columns, and moves what is left to the CPU."""
    classes, clusters = table.classes.cpu().numpy(), table.clusters.cpu().numpy()
    if table.counts.is_sparse:
        coalesced = table.counts.coalesce()
        rows, columns = coalesced.indices().cpu().numpy()
        counts = coalesced.values().cpu().numpy()
        class_sizes, cluster_sizes = (
            _sizes(rows, counts, len(classes)),
            _sizes(columns, counts, len(clusters)),
        )
    else:
        dense = table.counts.cpu().numpy()
        cells = np.flatnonzero(dense)
        rows, columns = np.divmod(cells, max(1, len(clusters)))
        counts = dense.ravel()[cells]
        class_sizes, cluster_sizes = dense.sum(1), dense.sum(0)
    rows, class_sizes, classes = _used(rows, class_sizes, classes)
    columns, cluster_sizes, clusters = _used(columns, cluster_sizes, clusters)
    n_samples = int(counts.sum())
    return Summary(rows, columns, counts, class_sizes, cluster_sizes, classes, clusters, n_samples)


def _sizes(positions: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
    sizes = np.zeros(size, dtype=np.int64)
    np.add.at(sizes, positions, counts)
    return sizes


def _used(positions: np.ndarray, sizes: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, ...]:
    """(positions among the ids that occur, their sizes, those ids)."""
    used = sizes > 0
    if used.all():
        return positions, sizes, ids
    return (np.cumsum(used) - 1)[positions], sizes[used], ids[used]


def best_matching(s: Summary) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, columns, counts) of the one-to-one matching with the largest sum, without its empty cells."""
    cells = best_cells(s.rows, s.columns, s.counts, (len(s.class_sizes), len(s.cluster_sizes)))
    return s.rows[cells], s.columns[cells], s.counts[cells]


def accuracy(s: Summary) -> float:
    return int(best_matching(s)[2].sum()) / s.n_samples if s.n_samples else 1.0


def purity(s: Summary) -> float:
    largest = np.zeros(len(s.cluster_sizes), dtype=np.int64)
    np.maximum.at(largest, s.columns, s.counts)
    return int(largest.sum()) / s.n_samples if s.n_samples else 1.0


def information(s: Summary) -> Information:
    class_entropy, cluster_entropy = (
        _entropy(s.class_sizes, s.n_samples),
        _entropy(s.cluster_sizes, s.n_samples),
    )
    if min(len(s.class_sizes), len(s.cluster_sizes)) <= 1:
        return Information(0.0, class_entropy, cluster_entropy)
    ratio = (s.counts / s.class_sizes[s.rows]) * (s.n_samples / s.cluster_sizes[s.columns])
    terms = s.counts / s.n_samples * np.log(ratio)
    terms[np.abs(terms) < np.finfo(np.float64).eps] = 0.0  # rounding of independent cells must not add up
    mutual = min(max(float(terms.sum()), 0.0), class_entropy, cluster_entropy)
    return Information(mutual, class_entropy, cluster_entropy)


def _entropy(sizes: np.ndarray, n_samples: int) -> float:
    if len(sizes) <= 1:
        return 0.0
    shares = sizes / n_samples
    return float(-(shares * np.log(shares)).sum())


def normalized_mutual_info(s: Summary, info: Information, average_method: str) -> float:
    mean = _mean(info, average_method)
    if len(s.class_sizes) == len(s.cluster_sizes) <= 1:
        return 1.0
    return info.mutual / mean if info.mutual > 0.0 else 0.0


def adjusted_mutual_info(s: Summary, info: Information, average_method: str) -> float:
    mean = _mean(info, average_method)
    if len(s.counts) == len(s.class_sizes) == len(s.cluster_sizes):  # one partition, named twice
        return 1.0
    if min(len(s.class_sizes), len(s.cluster_sizes)) == 1:
        return 0.0
    expected = expected_mutual_information_numba(s.class_sizes, s.cluster_sizes)
    return _away_from_zero(info.mutual - expected) / _away_from_zero(mean - expected)


def _mean(info: Information, average_method: str) -> float:
    if average_method not in MEANS:
        raise ValueError(f"average_method must be one of {tuple(MEANS)}, got {average_method!r}")
    return MEANS[average_method](info.class_entropy, info.cluster_entropy)


def _away_from_zero(value: float) -> float:
    """At least eps in size, with the sign kept: a difference that rounding made zero must not give 0 / 0."""
    eps = float(np.finfo(np.float64).eps)
    return min(value, -eps) if value < 0 else max(value, eps)


def homogeneity_completeness(s: Summary, info: Information) -> tuple[float, float]:
    homogeneous = info.mutual / info.class_entropy if info.class_entropy else 1.0
    complete = info.mutual / info.cluster_entropy if info.cluster_entropy else 1.0
    return homogeneous, complete


def f_measure(homogeneous: float, complete: float, beta: float) -> float:
    if homogeneous + complete == 0.0:
        return 0.0
    return (1 + beta) * homogeneous * complete / (beta * homogeneous + complete)


class Pairs(NamedTuple):
    """Ordered pairs of samples: together in both partitions, in one only, in neither. Exact."""

    both: int
    class_only: int
    cluster_only: int
    neither: int


def pairs(s: Summary) -> Pairs:
    squares = _sum_of_squares(s.counts, s.n_samples)
    class_only = _sum_of_squares(s.class_sizes, s.n_samples) - squares
    cluster_only = _sum_of_squares(s.cluster_sizes, s.n_samples) - squares
    neither = s.n_samples**2 - class_only - cluster_only - squares
    return Pairs(squares - s.n_samples, class_only, cluster_only, neither)


def _sum_of_squares(counts: np.ndarray, n_samples: int) -> int:
    if n_samples <= LARGEST_INT64_ROOT:
        return int(np.dot(counts, counts))
    return sum(count * count for count in counts.tolist())


def adjusted_rand_index(s: Summary) -> float:
    both, class_only, cluster_only, neither = pairs(s)
    if class_only == cluster_only == 0:
        return 1.0
    chance = (both + class_only) * (class_only + neither) + (both + cluster_only) * (cluster_only + neither)
    return 2 * (both * neither - class_only * cluster_only) / chance


def pair_f_measure(s: Summary, beta: float) -> float:
    both, class_only, cluster_only, _ = pairs(s)
    if both == class_only == cluster_only == 0:
        return 1.0
    weighted = (1 + beta**2) * both
    return weighted / (weighted + beta**2 * class_only + cluster_only)
