"""``kmeans_plusplus``: its docstring is the specification."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from fastdc.kernels import _checks
from fastdc.kernels._backend import choose
from fastdc.kernels._checks import check_points, check_vector
from fastdc.kernels.kmeans import custom_ops


class KMeansPlusPlus(NamedTuple):
    """Initial centers and the rows that they are."""

    centers: Tensor
    indices: Tensor


def kmeans_plusplus(
    x: Tensor,
    n_clusters: int,
    *,
    sample_weight: Tensor | None = None,
    n_candidates: int | None = None,
    random_state: Any = None,
    check_finite: bool = False,
    backend: str | None = None,
) -> KMeansPlusPlus:
    r"""Initial centers by greedy k-means++: rows drawn in proportion to their squared distance.

    The first center is any row. Each further one is the best of ``n_candidates`` rows drawn with probability

    .. math:: \Pr(i) \propto w_i \min_{j \text{ chosen}} \|x_i - c_j\|^2 ,

    best being the one that leaves the smallest sum of these terms.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Rows that are not finite are never chosen.
    n_clusters : int
        At most n_samples.
    sample_weight : Tensor of shape (n_samples,), optional
        Finite, 0 or above. None is one for each row.
    n_candidates : int, optional
        None is 2 + int(log(n_clusters)), as in scikit-learn; 1 is plain k-means++.
    random_state : None, int, numpy.random.Generator or numpy.random.RandomState
        An int gives the same centers each time; None fresh ones. Global random states are left alone, and a
        generator advances by one draw.
    check_finite, backend
        As in :func:`nearest_center`.

    Returns
    -------
    centers : Tensor of shape (n_clusters, n_features), dtype of x
        A copy of the chosen rows.
    indices : Tensor of shape (n_clusters,), int64
        Which rows they are. Distinct rows as long as there are distinct ones left; then copies of chosen
        ones.

    Notes
    -----
    Memory: a distance for each row. One pass over the rows a center, for all its candidates.
    Precision: distances by differences (exactly 0 between copies); sums and draws in float64, so that every
    row can be drawn beyond 2^24 rows. Determinism: the same indices for any number of threads on CPUs.

    References
    ----------
    Arthur, Vassilvitskii. k-means++: the advantages of careful seeding. SODA 2007.

    Examples
    --------
    >>> import torch
    >>> kmeans_plusplus(torch.tensor([[0.0], [0.0], [7.0]]), 2, random_state=0).centers.sort(0).values
    tensor([[0.],
            [7.]])
    """
    check_points(x)
    n_clusters = _check_count(n_clusters, "n_clusters")
    if n_clusters > x.shape[0]:
        raise ValueError(f"n_clusters={n_clusters} must be at most n_samples={x.shape[0]}; ask for fewer clusters")
    if n_candidates is None:
        n_candidates = 2 + int(math.log(n_clusters))
    n_candidates = _check_count(n_candidates, "n_candidates")
    if sample_weight is not None:
        check_vector(sample_weight, x.shape[0], "sample_weight", x, "rows")
        sample_weight = sample_weight.detach()
    if check_finite:
        _checks.check_finite(("x", x), ("sample_weight", sample_weight))
    seed = _seed(random_state)
    name = choose("kmeans_plusplus", x, backend)
    x = x.detach()
    indices = custom_ops.kmeans_plusplus(name, x, sample_weight, n_clusters, n_candidates, seed)
    return KMeansPlusPlus(x[indices], indices)


def _check_count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)


def _seed(random_state: Any) -> int:
    """A seed of 0 or above, or -1 for fresh entropy."""
    if random_state is None:
        return -1
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31 - 1))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, bool) or not isinstance(random_state, int | np.integer) or random_state < 0:
        raise ValueError(
            f"random_state must be None, an integer of at least 0, or a numpy Generator or RandomState, got "
            f"{random_state!r}"
        )
    return int(random_state)
