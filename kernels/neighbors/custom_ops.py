"""One torch operator an implementation, with shapes for tracing. These ops have no gradients.

Operators are opaque to ``torch.compile``; the kernels themselves are imported when first called. Eager calls go
to the kernels directly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdc.kernels._eager import is_eager
from fastdc.kernels._precision import working_dtype

COMPILED = ("numba", "triton")


def _kernels(backend: str) -> Any:
    if backend == "numba":
        from fastdc.kernels.neighbors import numba_kernel

        return numba_kernel
    from fastdc.kernels.neighbors import triton_kernel

    return triton_kernel


def knn(
    backend: str, x: Tensor, queries: Tensor | None, n_neighbors: int, metric: str, precision: str
) -> tuple[Tensor, Tensor]:
    run = _kernels(backend).knn if is_eager(x, queries) else KNN[backend]
    return run(x, queries, n_neighbors, metric, precision)


def knn_by(x: Tensor, queries: Tensor | None, n_neighbors: int, metric: str, algorithm: str) -> tuple[Tensor, Tensor]:
    if is_eager(x, queries):
        return _search(x, queries, n_neighbors, metric, algorithm)
    return KNN_BY(x, queries, n_neighbors, metric, algorithm)


def radius_neighbors(
    backend: str, x: Tensor, queries: Tensor | None, radius: float, metric: str, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    run = _kernels(backend).radius_neighbors if is_eager(x, queries) else RADIUS[backend]
    return run(x, queries, radius, metric, precision)


def _search(x: Tensor, queries: Tensor | None, n_neighbors: int, metric: str, algorithm: str) -> tuple[Tensor, Tensor]:
    if algorithm == "lists":
        from fastdc.kernels.neighbors.near_lists import knn_lists

        return knn_lists(x, n_neighbors, metric)
    from fastdc.kernels.neighbors.search import knn_faiss

    return knn_faiss(x, queries, n_neighbors, metric, algorithm)


def _empty_results(x: Tensor, queries: Tensor | None, n_neighbors: int) -> tuple[Tensor, Tensor]:
    dtype = working_dtype(x) if queries is None else working_dtype(x, queries)
    shape = (x.shape[0] if queries is None else queries.shape[0], n_neighbors)
    return x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=torch.int64)


def _register_knn(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::knn_{backend}", mutates_args=())
    def nearest(
        x: Tensor, queries: Tensor | None, n_neighbors: int, metric: str, precision: str
    ) -> tuple[Tensor, Tensor]:
        return _kernels(backend).knn(x, queries, n_neighbors, metric, precision)

    @nearest.register_fake
    def _(x: Tensor, queries: Tensor | None, n_neighbors: int, metric: str, precision: str) -> tuple[Tensor, Tensor]:
        return _empty_results(x, queries, n_neighbors)

    return nearest


def _register_knn_by() -> Any:
    @torch.library.custom_op("fastdc::knn_by", mutates_args=())
    def nearest(
        x: Tensor, queries: Tensor | None, n_neighbors: int, metric: str, algorithm: str
    ) -> tuple[Tensor, Tensor]:
        return _search(x, queries, n_neighbors, metric, algorithm)

    @nearest.register_fake
    def _(x: Tensor, queries: Tensor | None, n_neighbors: int, metric: str, algorithm: str) -> tuple[Tensor, Tensor]:
        return _empty_results(x, queries, n_neighbors)

    return nearest


def _register_radius(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::radius_neighbors_{backend}", mutates_args=())
    def within(
        x: Tensor, queries: Tensor | None, radius: float, metric: str, precision: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _kernels(backend).radius_neighbors(x, queries, radius, metric, precision)

    @within.register_fake
    def _(
        x: Tensor, queries: Tensor | None, radius: float, metric: str, precision: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        n_pairs = torch.library.get_ctx().new_dynamic_size()
        m = x.shape[0] if queries is None else queries.shape[0]
        dtype = working_dtype(x) if queries is None else working_dtype(x, queries)
        indptr = x.new_empty((m + 1,), dtype=torch.int64)
        return indptr, x.new_empty((n_pairs,), dtype=torch.int64), x.new_empty((n_pairs,), dtype=dtype)

    return within


KNN = {backend: _register_knn(backend) for backend in COMPILED}
RADIUS = {backend: _register_radius(backend) for backend in COMPILED}
KNN_BY = _register_knn_by()
