"""Subspace clustering as a scikit-learn estimator: points as combinations of one another, and a spectral cut."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin
from torch import Tensor

from fastdc._input import give_back, read_count, read_seed
from fastdc.cluster._spectral import graph_clusters, link_smallest
from fastdc.cluster._whole import files_for_sources, finite_rows, read_whole, spread
from fastdc.kernels.self_expression import (
    SelfExpression,
    low_rank_self_expression,
    orthogonal_matching_pursuit,
    ridge_self_expression,
)
from fastdc.kernels.self_expression.reference import unit_rows
from fastdc.persistence import Saveable

METHODS = ("omp", "ridge", "low_rank")
BLOCK_NUMBERS = 1 << 24  # coefficients that are held at a time


@dataclass(eq=False, repr=False, kw_only=True)
class SubspaceClustering(Saveable, ClusterMixin, BaseEstimator):
    """Points that lie near several subspaces, by the codes of each point over the others.

    Parameters
    ----------
    n_clusters : int
        At most the number of samples.
    method : {"omp", "ridge", "low_rank"}
        Where the codes come from: orthogonal matching pursuit (SSC-OMP), the ridge regression of each point on the
        others (LSR), or the low-rank closed form (LRR, LRSC). Of the last two the ``n_nonzero`` largest coefficients
        of each point are kept.
    n_nonzero : int
        Coefficients of a code: about the dimension of a subspace for "omp", some more for the others.
    regularization : float
        Of "ridge" above 0, of "low_rank" 0 or above (0 for data without noise).
    tol : float
        Of "omp": a residual of this length needs no further point.
    normalize : bool
        Whether rows are scaled to length one first.
    n_init : int
        Runs of k-means on the eigenvectors.
    device : str or torch.device, optional
        None computes where a tensor lies, and otherwise on the GPU if there is one.
    backend : {None, "reference", "numba"}
        Of "omp".
    check_finite : bool
        Raise where X holds NaN or infinity. Without the check such rows get label -1.
    random_state : int, numpy RandomState or Generator, optional
        The same integer gives the same result. Global random states are left as they were.

    Attributes
    ----------
    labels_ : array of shape (n_samples,), int32
    n_components_ : int
        Of the graph of absolute coefficients abs(C) + abs(C)ᵀ. Where there are more than clusters, the smallest are
        put together, with a warning: raise ``n_nonzero``.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    Memory: about 60 bytes for each sample and coefficient, a block of 64 MB of coefficients, and factors of
    n_samples x min(n_samples, n_features) for "ridge" and "low_rank"; never n_samples x n_samples.
    Subspaces go through the origin: subtract an offset first where there is one.
    The rows of a source take little memory: those that cannot be seen where they lie, and copies of 64 MB and more, are
    in temporary files (the environment variable TMPDIR says where).

    References
    ----------
    You, Robinson, Vidal. Scalable sparse subspace clustering by orthogonal matching pursuit. CVPR 2016.
    Lu et al. Robust and efficient subspace segmentation via least squares regression. ECCV 2012.
    Favaro, Vidal, Ravichandran. A closed form solution to robust subspace estimation and clustering. CVPR 2011.

    Examples
    --------
    >>> import numpy as np
    >>> from fastdc import SubspaceClustering
    >>> X = np.array([[1.0, 1.0], [-2.0, -2.0], [1.0, -1.0], [3.0, -3.0], [0.5, 0.5]])
    >>> SubspaceClustering(2, n_nonzero=1).fit(X).labels_
    array([0, 0, 1, 1, 0], dtype=int32)
    """

    n_clusters: int = field(default=8, kw_only=False)
    method: str = "omp"
    n_nonzero: int = 10
    regularization: float = 0.1
    tol: float = 0.0
    normalize: bool = True
    n_init: int = 10
    device: str | torch.device | None = None
    backend: str | None = None
    check_finite: bool = True
    random_state: Any = None

    @files_for_sources
    def fit(self, X: Any, y: Any = None) -> SubspaceClustering:
        """Find the subspaces' points.

        Parameters
        ----------
        X : array-like or RowSource of shape (n_samples, n_features)
        y : ignored

        Returns
        -------
        self : fitted estimator

        Raises
        ------
        ValueError, TypeError
            For bad parameters and bad data.
        """
        n_clusters = read_count(self.n_clusters, "n_clusters")
        n_nonzero, n_init = read_count(self.n_nonzero, "n_nonzero"), read_count(self.n_init, "n_init")
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {METHODS}, got {self.method!r}")
        seed = read_seed(self.random_state)
        x, finite = finite_rows(read_whole(X, self), check=not self.check_finite)
        read_count(n_clusters, "n_clusters", high=len(x), high_name="n_samples")
        codes = abs(self._codes(x, n_nonzero))
        found = graph_clusters(
            codes + codes.T, n_clusters, link_smallest, eigen_solver="lanczos", n_init=n_init, seed=seed
        )
        self.n_components_ = found.n_components
        self.labels_ = give_back(spread(torch.from_numpy(found.labels), finite, -1), X)
        return self

    def _codes(self, x: Tensor, n_nonzero: int) -> Any:
        """Coefficients of each point as a sparse matrix, float64, none on the diagonal."""
        if self.method == "omp":
            codes = orthogonal_matching_pursuit(x, n_nonzero, self.tol, normalize=self.normalize, backend=self.backend)
            return _to_scipy(codes.crow_indices(), codes.col_indices(), codes.values())
        if self.normalize:
            x = unit_rows(x)
        expression = ridge_self_expression if self.method == "ridge" else low_rank_self_expression
        return _largest(expression(x, self.regularization), min(n_nonzero, len(x)))


def _largest(codes: SelfExpression, n_kept: int) -> Any:
    """The largest coefficients of each row, a block of rows at a time."""
    n = len(codes.left)
    block = max(1, BLOCK_NUMBERS // n)
    columns, values = [], []
    for start in range(0, n, block):
        rows = codes.rows(start, min(start + block, n))
        kept = rows.abs().topk(n_kept, dim=1).indices.sort(dim=1).values
        columns.append(kept)
        values.append(rows.gather(1, kept))
    indptr = torch.arange(0, n * n_kept + 1, n_kept)
    return _to_scipy(indptr, torch.cat(columns).flatten(), torch.cat(values).flatten())


def _to_scipy(indptr: Tensor, columns: Tensor, values: Tensor) -> Any:
    from scipy.sparse import csr_array

    n = len(indptr) - 1
    parts = (values.cpu().numpy().astype(np.float64), columns.cpu().numpy(), indptr.cpu().numpy())
    codes = csr_array(parts, shape=(n, n))
    codes.eliminate_zeros()
    return codes
