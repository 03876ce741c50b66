"""The definition in plain torch: any device, float64 too. Written to be read, not to be fast.

Byte counts are for m queries, n points and d features.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastdc.kernels._precision import working_dtype
from fastdc.kernels.neighbors.points import distances_of, is_finite_row, keys_of, metric_rows

CHUNK_BYTES = 1 << 26  # of the differences of one chunk of queries


def knn_reference(x: Tensor, queries: Tensor | None, n_neighbors: int, metric: str) -> tuple[Tensor, Tensor]:
    """distances (m, n_neighbors) and indices, nearest first, of equally near points the lowest index first."""
    dtype = working_dtype(x) if queries is None else working_dtype(x, queries)
    points = metric_rows(x, metric, dtype)
    rows = points if queries is None else metric_rows(queries, metric, dtype)
    found_keys, found = [], []
    for keys in _keys_of_chunks(rows, points, queries is None, metric):
        keys, order = keys.sort(dim=1, stable=True)  # moves 16 m n log n
        keys, order = keys[:, :n_neighbors], order[:, :n_neighbors]
        found_keys.append(keys)
        found.append(torch.where(keys.isfinite(), order, -1))
    keys = torch.where(is_finite_row(rows)[:, None], torch.cat(found_keys), torch.nan)
    return distances_of(keys, metric, dtype), torch.cat(found)


def radius_reference(x: Tensor, queries: Tensor | None, radius: float, metric: str) -> tuple[Tensor, Tensor, Tensor]:
    """indptr (m + 1), indices and distances of the points within the radius, by rising index."""
    dtype = working_dtype(x) if queries is None else working_dtype(x, queries)
    points = metric_rows(x, metric, dtype)
    rows = points if queries is None else metric_rows(queries, metric, dtype)
    limit = largest_key(radius, metric)
    counts, indices, found_keys = [], [], []
    for keys in _keys_of_chunks(rows, points, queries is None, metric):
        within = keys <= limit
        counts.append(within.sum(dim=1))
        indices.append(within.nonzero()[:, 1])
        found_keys.append(keys[within])
    total = torch.cat(counts).cumsum(0)
    indptr = torch.cat([total.new_zeros(1), total])
    return indptr, torch.cat(indices), distances_of(torch.cat(found_keys), metric, dtype)


def largest_key(radius: float, metric: str) -> float:
    return radius * radius if metric == "euclidean" else radius


def _keys_of_chunks(rows: Tensor, points: Tensor, is_self: bool, metric: str) -> Iterator[Tensor]:
    """Keys (chunk, n) of some rows with all points, chunk after chunk; infinite where there is no neighbour."""
    n, d = points.shape
    chunk = max(1, CHUNK_BYTES // (8 * n * d))
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        keys = keys_of(part[:, None, :], points[None, :, :], metric)  # writes 16 m n d, reads as much
        keys = torch.where(keys.isfinite(), keys, torch.inf)
        if is_self:
            own = torch.arange(start, start + len(part), device=rows.device)
            keys[torch.arange(len(part), device=rows.device), own] = torch.inf
        yield keys
