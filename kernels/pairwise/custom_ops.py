"""One torch operator an implementation, with shapes for tracing and gradients.

Operators are opaque to ``torch.compile``, so kernels may loop in Python; the kernels themselves are imported
when first called. Eager calls that need no gradient go to the kernels directly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdc.kernels._autograd import register_gradients
from fastdc.kernels._eager import is_eager, without_gradient
from fastdc.kernels._precision import working_dtype

COMPILED = ("numba", "triton")


def _kernels(backend: str) -> Any:
    if backend == "numba":
        from fastdc.kernels.pairwise import numba_kernel

        return numba_kernel
    from fastdc.kernels.pairwise import triton_kernel

    return triton_kernel


def _losses(backend: str) -> Any:
    if backend == "numba":
        from fastdc.kernels.pairwise import numba_losses

        return numba_losses
    from fastdc.kernels.pairwise import triton_losses

    return triton_losses


def call(op: str, backend: str, *arguments: Any) -> Any:
    """An operator without gradients."""
    if is_eager(*(a for a in arguments if isinstance(a, Tensor))):
        return getattr(_kernels(backend), op)(*arguments)
    return CLUSTERS[op, backend](*arguments)


def require_numbered(labels: Tensor, n_clusters: int) -> None:
    """Raise where a label is not in 0 ... n_clusters - 1: kernels use labels as indices."""
    if not is_eager(labels):
        return  # the operators look themselves
    if n_clusters < 1:
        raise ValueError(f"n_clusters must be 1 or above, got {n_clusters}")
    low, high = torch.stack(labels.aminmax()).tolist()  # waits for a GPU once
    if low < 0 or high >= n_clusters:
        raise ValueError(
            f"labels must lie in 0 ... {n_clusters - 1} for {n_clusters} clusters, got {low} ... {high}; "
            "number them with torch.unique(labels, return_inverse=True)[1]"
        )


def _register_silhouette(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::silhouette_coefficients_{backend}", mutates_args=())
    def silhouette(x: Tensor, labels: Tensor, n_clusters: int) -> Tensor:
        require_numbered(labels, n_clusters)
        return _kernels(backend).silhouette_coefficients(x, labels, n_clusters)

    @silhouette.register_fake
    def _(x: Tensor, labels: Tensor, n_clusters: int) -> Tensor:
        return x.new_empty(x.shape[0], dtype=working_dtype(x))

    return silhouette


def _register_hardest(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::hardest_pairs_{backend}", mutates_args=())
    def hardest(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _kernels(backend).hardest_pairs(x, labels)

    @hardest.register_fake
    def _(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dtypes = (torch.int64, torch.int64, working_dtype(x), working_dtype(x))
        positive, negative, far, near = (x.new_empty(x.shape[0], dtype=dtype) for dtype in dtypes)
        return positive, negative, far, near

    return hardest


def _register_centers(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::center_distances_{backend}", mutates_args=())
    def distances(x: Tensor, centers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        require_numbered(labels, centers.shape[0])
        return _kernels(backend).center_distances(x, centers, labels)

    @distances.register_fake
    def _(x: Tensor, centers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        dtype = working_dtype(x, centers)
        return x.new_empty(x.shape[0], dtype=dtype), x.new_empty(x.shape[0], dtype=dtype)

    return distances


def _register_dispersion(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::cluster_dispersion_{backend}", mutates_args=())
    def dispersion(x: Tensor, labels: Tensor, n_clusters: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        require_numbered(labels, n_clusters)
        return _kernels(backend).cluster_dispersion(x, labels, n_clusters)

    @dispersion.register_fake
    def _(x: Tensor, labels: Tensor, n_clusters: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        centers = x.new_empty(n_clusters, x.shape[1], dtype=torch.float64)
        sums = x.new_empty(n_clusters, dtype=torch.float64)
        return labels.new_empty(n_clusters), centers, sums, torch.empty_like(sums)

    return dispersion


_REGISTER: dict[str, Callable[[str], Any]] = {
    "silhouette_coefficients": _register_silhouette,
    "hardest_pairs": _register_hardest,
    "center_distances": _register_centers,
    "cluster_dispersion": _register_dispersion,
}
CLUSTERS = {(op, backend): register(backend) for op, register in _REGISTER.items() for backend in COMPILED}


# --- losses


def pairwise_bce(
    backend: str, unit: Tensor, labels: Tensor | None, chooser: Tensor | None, limits: list[float]
) -> Tensor:
    """Of rows of length one; limits: upper, lower, eps."""
    if without_gradient(unit) and is_eager(unit, labels, chooser):
        return _losses(backend).pairwise_bce(unit, labels, chooser, limits, False)[0]
    return BCE[backend](unit, labels, chooser, limits, torch.is_grad_enabled() and unit.requires_grad)[0]


def soft_nearest_neighbor_loss(backend: str, x: Tensor, labels: Tensor, temperature: float) -> Tensor:
    if without_gradient(x) and is_eager(x, labels):
        return _losses(backend).soft_nearest_neighbor_loss(x, labels, temperature, False)[0]
    return NEIGHBORS[backend](x, labels, temperature, torch.is_grad_enabled() and x.requires_grad)[0]


def triplet_loss_all(x: Tensor, labels: Tensor, margin: float) -> Tensor:
    """On CPUs."""
    if without_gradient(x) and is_eager(x, labels):
        return _triplets(x, labels, margin, False)[0]
    return triplet_loss_all_numba(x, labels, margin, torch.is_grad_enabled() and x.requires_grad)[0]


def _triplets(x: Tensor, labels: Tensor, margin: float, need: bool) -> tuple[Tensor, Tensor]:
    from fastdc.kernels.pairwise import numba_triplets

    return numba_triplets.triplet_loss_all(x.detach(), labels, margin, need)


def _loss_and_gradient(x: Tensor, need: bool) -> tuple[Tensor, Tensor]:
    dtype = working_dtype(x)
    return x.new_empty((), dtype=dtype), x.new_empty((x.shape[0] if need else 0, x.shape[1]), dtype=dtype)


def _register_bce(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::pairwise_bce_{backend}", mutates_args=())
    def bce(
        unit: Tensor, labels: Tensor | None, chooser: Tensor | None, limits: list[float], need: bool
    ) -> tuple[Tensor, Tensor]:
        return _losses(backend).pairwise_bce(unit.detach(), labels, chooser, limits, need)

    @bce.register_fake
    def _(
        unit: Tensor, labels: Tensor | None, chooser: Tensor | None, limits: list[float], need: bool
    ) -> tuple[Tensor, Tensor]:
        return _loss_and_gradient(unit, need)

    register_gradients(bce, n_tensors=3)
    return bce


def _register_neighbors(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::soft_nearest_neighbor_loss_{backend}", mutates_args=())
    def neighbors(x: Tensor, labels: Tensor, temperature: float, need: bool) -> tuple[Tensor, Tensor]:
        return _losses(backend).soft_nearest_neighbor_loss(x.detach(), labels, temperature, need)

    @neighbors.register_fake
    def _(x: Tensor, labels: Tensor, temperature: float, need: bool) -> tuple[Tensor, Tensor]:
        return _loss_and_gradient(x, need)

    register_gradients(neighbors, n_tensors=2)
    return neighbors


@torch.library.custom_op("fastdc::triplet_loss_all_numba", mutates_args=())
def triplet_loss_all_numba(x: Tensor, labels: Tensor, margin: float, need: bool) -> tuple[Tensor, Tensor]:
    return _triplets(x, labels, margin, need)


@triplet_loss_all_numba.register_fake
def _(x: Tensor, labels: Tensor, margin: float, need: bool) -> tuple[Tensor, Tensor]:
    return _loss_and_gradient(x, need)


register_gradients(triplet_loss_all_numba, n_tensors=2)
BCE = {backend: _register_bce(backend) for backend in COMPILED}
NEIGHBORS = {backend: _register_neighbors(backend) for backend in COMPILED}
