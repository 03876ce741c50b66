"""One torch operator an implementation, with shapes for tracing. These ops have no gradients.

Operators are opaque to ``torch.compile``, so kernels may loop in Python; the kernels themselves are imported
when first called. Eager calls go to the kernels directly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdc.kernels._eager import is_eager
from fastdc.kernels._precision import working_dtype
from fastdc.kernels.kmeans.reference import kmeans_plusplus_reference
from fastdc.kernels.kmeans.seeding import draw_uniforms, seed_centers, usable_weights

COMPILED = ("numba", "triton")


def _kernels(backend: str) -> Any:
    if backend == "numba":
        from fastdc.kernels.kmeans import numba_kernel

        return numba_kernel
    from fastdc.kernels.kmeans import triton_kernel

    return triton_kernel


def nearest_center(backend: str, x: Tensor, centers: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    run = _kernels(backend).nearest_center if is_eager(x, centers) else NEAREST[backend]
    return run(x, centers, precision)


def kmeans_step(
    backend: str,
    x: Tensor,
    centers: Tensor,
    sample_weight: Tensor | None,
    previous_labels: Tensor | None,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    eager = is_eager(x, centers, sample_weight, previous_labels)
    run = _kernels(backend).kmeans_step if eager else STEP[backend]
    return run(x, centers, sample_weight, previous_labels, precision)


def kmeans_plusplus(
    backend: str, x: Tensor, sample_weight: Tensor | None, n_clusters: int, n_candidates: int, seed: int
) -> Tensor:
    if is_eager(x, sample_weight):
        return _chosen_rows(backend, x, sample_weight, n_clusters, n_candidates, seed)
    return PLUSPLUS[backend](x, sample_weight, n_clusters, n_candidates, seed)


def _chosen_rows(
    backend: str, x: Tensor, sample_weight: Tensor | None, n_clusters: int, n_candidates: int, seed: int
) -> Tensor:
    """Indices (n_clusters,) of the initial centers."""
    weights = usable_weights(x, sample_weight)
    uniforms = draw_uniforms(n_clusters, n_candidates, seed)
    if backend == "reference":
        return kmeans_plusplus_reference(x, weights, torch.from_numpy(uniforms).to(x.device))
    seeding = _kernels(backend).Seeding(x, weights)
    on_host = np.empty(0) if weights is None else weights.cpu().numpy()
    return torch.from_numpy(seed_centers(seeding, on_host, len(x), uniforms)).to(x.device)


def _register_nearest(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::nearest_center_{backend}", mutates_args=())
    def nearest(x: Tensor, centers: Tensor, precision: str) -> tuple[Tensor, Tensor]:
        return _kernels(backend).nearest_center(x, centers, precision)

    @nearest.register_fake
    def _(x: Tensor, centers: Tensor, precision: str) -> tuple[Tensor, Tensor]:
        n = x.shape[0]
        return x.new_empty((n,), dtype=torch.int64), x.new_empty((n,), dtype=working_dtype(x, centers))

    return nearest


def _register_step(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::kmeans_step_{backend}", mutates_args=())
    def step(
        x: Tensor,
        centers: Tensor,
        sample_weight: Tensor | None,
        previous_labels: Tensor | None,
        precision: str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return _kernels(backend).kmeans_step(x, centers, sample_weight, previous_labels, precision)

    @step.register_fake
    def _(
        x: Tensor,
        centers: Tensor,
        sample_weight: Tensor | None,
        previous_labels: Tensor | None,
        precision: str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return (
            x.new_empty((x.shape[0],), dtype=torch.int64),
            x.new_empty(centers.shape, dtype=torch.float64),
            x.new_empty((centers.shape[0],), dtype=torch.float64),
            x.new_empty((), dtype=torch.float64),
            x.new_empty((), dtype=torch.int64),
        )

    return step


def _register_plusplus(backend: str) -> Any:
    """The reference is an operator too: what it draws is not for a tracer to see."""

    @torch.library.custom_op(f"fastdc::kmeans_plusplus_{backend}", mutates_args=())
    def plusplus(x: Tensor, sample_weight: Tensor | None, n_clusters: int, n_candidates: int, seed: int) -> Tensor:
        return _chosen_rows(backend, x, sample_weight, n_clusters, n_candidates, seed)

    @plusplus.register_fake
    def _(x: Tensor, sample_weight: Tensor | None, n_clusters: int, n_candidates: int, seed: int) -> Tensor:
        return x.new_empty((n_clusters,), dtype=torch.int64)

    return plusplus


NEAREST = {backend: _register_nearest(backend) for backend in COMPILED}
STEP = {backend: _register_step(backend) for backend in COMPILED}
PLUSPLUS = {backend: _register_plusplus(backend) for backend in ("reference", *COMPILED)}
