"""``kmeans_parallel``: its docstring is the specification."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdc.kernels import _checks
from fastdc.kernels._checks import check_points, check_positive, check_vector
from fastdc.kernels.kmeans.op import nearest_center
from fastdc.kernels.kmeans.plusplus import KMeansPlusPlus, _check_count, _seed, kmeans_plusplus
from fastdc.kernels.kmeans.seeding import usable_weights


def kmeans_parallel(
    x: Tensor,
    n_clusters: int,
    *,
    sample_weight: Tensor | None = None,
    oversampling: float = 2.0,
    n_rounds: int = 5,
    random_state: Any = None,
    check_finite: bool = False,
    backend: str | None = None,
) -> KMeansPlusPlus:
    r"""Initial centers by k-means‖, scalable k-means++: a few passes over the rows instead of one a center.

    In each round every row is drawn by itself, with probability

    .. math:: \Pr(i) = \min(1, \ell\, w_i d_i^2 / \sum_m w_m d_m^2), \quad \ell = \mathrm{oversampling} \cdot k

    where d is the distance to the nearest row drawn so far. The rows drawn, each weighing as much as the rows
    nearest to it, are then reduced to ``n_clusters`` by :func:`kmeans_plusplus`.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Rows that are not finite are never chosen.
    n_clusters : int
        At most n_samples.
    sample_weight : Tensor of shape (n_samples,), optional
        Finite, 0 or above. None is one for each row.
    oversampling : float > 0
        Rows drawn in a round, on average, for each cluster.
    n_rounds : int
        Passes over the rows.
    random_state, check_finite, backend
        As in :func:`kmeans_plusplus`.

    Returns
    -------
    centers : Tensor of shape (n_clusters, n_features), dtype of x
        A copy of the chosen rows.
    indices : Tensor of shape (n_clusters,), int64
        Which rows they are.

    Notes
    -----
    Memory: 33 bytes a row, and the rows drawn: about n_rounds * oversampling * n_clusters.
    Where no more rows are drawn than clusters are wanted, as with few distinct rows, :func:`kmeans_plusplus`
    chooses among all.
    Precision: masses and draws in float64. Determinism: the same indices for any number of threads on CPUs.

    References
    ----------
    Bahmani, Moseley, Vattani, Kumar, Vassilvitskii. Scalable k-means++. PVLDB 2012, algorithm 2.

    Examples
    --------
    >>> import torch
    >>> kmeans_parallel(torch.tensor([[0.0], [0.0], [7.0]]), 2, random_state=0).centers.sort(0).values
    tensor([[0.],
            [7.]])
    """
    check_points(x)
    n_clusters, n_rounds = _check_count(n_clusters, "n_clusters"), _check_count(n_rounds, "n_rounds")
    oversampling = check_positive(oversampling, "oversampling")
    if n_clusters > x.shape[0]:
        raise ValueError(f"n_clusters={n_clusters} must be at most n_samples={x.shape[0]}; ask for fewer clusters")
    if sample_weight is not None:
        check_vector(sample_weight, x.shape[0], "sample_weight", x, "rows")
        sample_weight = sample_weight.detach()
    if check_finite:
        _checks.check_finite(("x", x), ("sample_weight", sample_weight))
    seed = _seed(random_state)
    random = np.random.default_rng(None if seed < 0 else seed)
    x = x.detach()
    weights = usable_weights(x, sample_weight)
    drawn, mass = _draw(x, weights, oversampling * n_clusters, n_rounds, random, backend)
    options: dict[str, Any] = {"random_state": random, "backend": backend}
    if len(drawn) <= n_clusters:
        return kmeans_plusplus(x, n_clusters, sample_weight=sample_weight, **options)
    chosen = drawn[kmeans_plusplus(x[drawn], n_clusters, sample_weight=mass, **options).indices]
    return KMeansPlusPlus(x[chosen], chosen)


def _draw(
    x: Tensor, weights: Tensor | None, wanted: float, n_rounds: int, random: np.random.Generator, backend: str | None
) -> tuple[Tensor, Tensor]:
    """Indices of the rows drawn, in order, and the weight of the rows nearest to each."""
    n = x.shape[0]
    each = torch.ones(n, dtype=torch.float64, device=x.device) if weights is None else weights
    running = each.cumsum(0)
    first = torch.searchsorted(running, random.random() * running[-1], right=True).clamp(max=n - 1)
    added = first.reshape(1)
    drawn = added
    closest = torch.full((n,), math.inf, dtype=torch.float64, device=x.device)
    owner = torch.zeros(n, dtype=torch.int64, device=x.device)
    for round_number in range(n_rounds + 1):
        found = nearest_center(x, x[added], backend=backend)
        nearer = (found.labels >= 0) & (found.sq_dists < closest)
        owner = torch.where(nearer, found.labels + (len(drawn) - len(added)), owner)
        closest = torch.where(nearer, found.sq_dists.double(), closest)
        if round_number == n_rounds:
            break
        cost = torch.where(each > 0, each * closest, 0.0)
        uniforms = torch.from_numpy(random.random(n)).to(x.device)
        added = (uniforms * cost.sum() < wanted * cost).nonzero()[:, 0]
        if len(added) == 0:  # every row lies on one that was drawn
            break
        drawn = torch.cat([drawn, added])
    mass = torch.zeros(len(drawn), dtype=torch.float64, device=x.device).index_add(0, owner, each)
    return drawn, mass
