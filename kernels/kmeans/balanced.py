"""``balanced_assignment``: its docstring is the specification."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastdc.kernels._checks import check_centers, check_finite, check_points, check_positive, check_vector
from fastdc.kernels._eager import is_eager


class BalancedAssignment(NamedTuple):
    """Labels within the capacities, and how far they can be from the best ones."""

    labels: Tensor
    cost: Tensor
    gap: Tensor
    prices: Tensor


def balanced_assignment(
    x: Tensor, centers: Tensor, capacity: int | Tensor | None = None, *, tol: float = 1e-3
) -> BalancedAssignment:
    r"""Nearest centers under hard capacities: the transportation problem of balanced k-means.

    .. math:: \min_{\mathrm{label}} \sum_i \|x_i - c_{\mathrm{label}_i}\|^2 \quad
              \text{with at most } \mathrm{capacity}_j \text{ rows of label } j

    Same as, without any matrix of rows and centers, and up to ``tol``::

        sq_dists = (x[:, None] - centers).square().sum(2)
        places = torch.arange(n_clusters).repeat_interleave(capacity)  # column of each place
        _, chosen = scipy.optimize.linear_sum_assignment(sq_dists[:, places])
        labels = places[chosen]

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Points, finite. Any strides.
    centers : Tensor of shape (n_clusters, n_features)
        Finite. May differ from x in floating dtype.
    capacity : int, or Tensor of shape (n_clusters,) of integers, optional
        The most rows of each cluster, 0 or above. None is ceil(n_samples / n_clusters) for each.
    tol : float > 0
        The search ends when the gap is at most this.

    Returns
    -------
    labels : Tensor of shape (n_samples,), int64
    cost : Tensor, float64, zero-dimensional
        Sum of squared distances to the centers of the labels.
    gap : Tensor, float64, zero-dimensional
        (cost - bound) / cost, the bound being the dual value at the prices: no labels within the capacities cost
        less than (1 - gap) cost. Not above ``tol``, save where rounding stops the search: where squared distances
        are more than 1e12 times the cost of a row.
    prices : Tensor of shape (n_clusters,), float64
        Of a place in each cluster, the cheapest being 0. A cluster with free places is one of the cheapest, up to
        rounding and ``tol``. Rows prefer their own center, up to the same, once its price is added to squared
        distances; so prices assign further rows.

    Raises
    ------
    ValueError
        If the capacities together are below n_samples, and where an input is not finite.

    Notes
    -----
    Method: an auction with decreasing increments over prices of the centers; places that stay free are bidders
    too, so that capacities may exceed the rows.
    Gradients: none; the results are detached.
    Devices: bids change the prices one after another, so the auction runs on one thread of the CPU; tensors of
    another device are copied there, and the results back.
    Memory: 48 bytes a row, 64 numbers a center, and x once more where it is not contiguous float32 or float64.
    Precision: squared distances by differences or as exact, in float32 or wider; prices, cost and gap in float64.
    Determinism: same bits for any number of threads.

    References
    ----------
    Bertsekas, Castañon. The auction algorithm for the transportation problem. Annals of Operations Research, 1989.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    >>> balanced_assignment(x, torch.tensor([[1.0], [8.0]])).labels
    tensor([0, 0, 1, 1])
    """
    check_points(x)
    check_centers(centers, x)
    tol = check_positive(tol, "tol")
    capacities = _capacities(capacity, x, centers)
    arguments = (x.detach(), centers.detach(), capacities, tol)
    run = _solve if is_eager(x, centers, capacities) else BALANCED
    return BalancedAssignment(*run(*arguments))


def _capacities(capacity: int | Tensor | None, x: Tensor, centers: Tensor) -> Tensor:
    n, k = x.shape[0], centers.shape[0]
    if isinstance(capacity, Tensor):
        check_vector(capacity, k, "capacity", x, "clusters")
        if capacity.dtype.is_floating_point or capacity.dtype.is_complex or capacity.dtype == torch.bool:
            raise TypeError(f"capacity must hold integers, got {capacity.dtype}; convert it with capacity.long()")
        return capacity.long()
    if capacity is None:
        capacity = -(-n // k)
    elif isinstance(capacity, bool) or not isinstance(capacity, int):
        raise TypeError(f"capacity must be an integer, a tensor of integers or None, got {type(capacity).__name__}")
    return torch.full((k,), capacity, dtype=torch.int64, device=x.device)


def _solve(x: Tensor, centers: Tensor, capacities: Tensor, tol: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from fastdc.kernels.kmeans import numba_balanced

    check_finite(("x", x), ("centers", centers))
    if bool((capacities < 0).any()):
        raise ValueError(f"capacity must be 0 or above, got {int(capacities.min())}")
    room = int(capacities.clamp(max=x.shape[0]).sum())
    if room < x.shape[0]:
        raise ValueError(
            f"capacity has room for {room} rows but x has {x.shape[0]}; raise it, or leave it None for "
            "ceil(n_samples / n_clusters)"
        )
    found = numba_balanced.balanced_assignment(x.cpu(), centers.cpu(), capacities.cpu(), tol)
    labels, cost, gap, prices = (t.to(x.device) for t in found)
    return labels, cost, gap, prices


@torch.library.custom_op("fastdc::balanced_assignment", mutates_args=())
def BALANCED(x: Tensor, centers: Tensor, capacities: Tensor, tol: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _solve(x, centers, capacities, tol)


@BALANCED.register_fake
def _(x: Tensor, centers: Tensor, capacities: Tensor, tol: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = torch.float64
    labels = x.new_empty((x.shape[0],), dtype=torch.int64)
    scalars = x.new_empty((), dtype=wide), x.new_empty((), dtype=wide)
    return labels, *scalars, x.new_empty((centers.shape[0],), dtype=wide)
