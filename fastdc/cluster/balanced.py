"""K-means whose clusters have a largest size, as a scikit-learn estimator over arrays and tensors."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from fastdc._input import give_back, read_count, read_seed
from fastdc.cluster._centers import CenterModel
from fastdc.cluster._whole import files_for_sources, finite_rows, read_whole, spread
from fastdc.cluster.kmeans import KMeans
from fastdc.kernels.kmeans import balanced_assignment
from fastdc.kernels.pairwise import cluster_dispersion


@dataclass(eq=False, repr=False, kw_only=True)
class BalancedKMeans(CenterModel):
    """K-means with at most ``capacity`` rows a cluster: rows are assigned by an auction, centers are their means.

    Parameters
    ----------
    n_clusters : int
        At most the number of samples.
    capacity : int, optional
        The most rows of a cluster. None is ceil(n_samples / n_clusters): sizes then differ by as little as they can
        where that divides, and no cluster is larger otherwise.
    init, n_init
        Of the plain k-means whose centers are started from, as in :class:`KMeans`.
    max_iter : int
        Most iterations.
    tol : float
        The relative fall of the inertia below which a run ends.
    gap : float
        Assignments cost at most this share more than the best ones within the capacities.
    device : str or torch.device, optional
        None computes where a tensor lies, and otherwise on the GPU if there is one. Assignments are made on the CPU.
    backend : {None, "reference", "numba", "triton"}
        Of means and distances.
    check_finite : bool
        Raise where X holds NaN or infinity. Without the check such rows get label -1.
    random_state : int, numpy RandomState or Generator, optional
        The same integer gives the same result. Global random states are left as they were.

    Attributes
    ----------
    labels_ : array of shape (n_samples,), int32
        Within the capacity. (``predict`` gives the nearest center, which knows of none.)
    cluster_centers_ : array of shape (n_clusters, n_features)
        Means of the rows of each label, in the dtype of X.
    inertia_ : float
        Sum of squared distances to the centers of the labels.
    n_iter_ : int
    history_ : list of dict
        ``iteration``, ``inertia``, and the ``gap`` of the assignment.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    Results are the same bits for any number of threads. Memory: 48 bytes a row beside X; never n_samples x n_clusters.
    The rows of a source take little memory: those that cannot be seen where they lie, and copies of 64 MB and more, are
    in temporary files (the environment variable TMPDIR says where).

    References
    ----------
    Malinen, Fränti. Balanced k-means for clustering. S+SSPR 2014.

    Examples
    --------
    >>> import numpy as np
    >>> from fastdc import BalancedKMeans
    >>> X = np.array([[0.0], [1.0], [2.0], [9.0]])
    >>> np.bincount(BalancedKMeans(2, random_state=0).fit(X).labels_)
    array([2, 2])
    """

    n_clusters: int = field(default=8, kw_only=False)
    capacity: int | None = None
    init: Any = "k-means++"
    n_init: Any = "auto"
    max_iter: int = 50
    tol: float = 1e-4
    gap: float = 1e-3
    device: str | torch.device | None = None
    backend: str | None = None
    check_finite: bool = True
    random_state: Any = None

    @files_for_sources
    def fit(self, X: Any, y: Any = None) -> BalancedKMeans:
        """Find the centers.

        Parameters
        ----------
        X : array-like or RowSource of shape (n_samples, n_features)
            Computed in its own precision, float32 or float64.
        y : ignored

        Returns
        -------
        self : fitted estimator

        Raises
        ------
        ValueError, TypeError
            For bad parameters and bad data.

        Warns
        -----
        ConvergenceWarning
            If the inertia still fell by more than ``tol`` in the last iteration.
        """
        n_clusters, max_iter = read_count(self.n_clusters, "n_clusters"), read_count(self.max_iter, "max_iter")
        if not self.tol >= 0:
            raise ValueError(f"tol must be 0 or above, got {self.tol}")
        if not 0 < self.gap < 1:
            raise ValueError(f"gap must be between 0 and 1, got {self.gap}")
        x, finite = finite_rows(read_whole(X, self), check=not self.check_finite)
        read_count(n_clusters, "n_clusters", high=len(x), high_name="n_samples")
        capacity = -(-len(x) // n_clusters) if self.capacity is None else read_count(self.capacity, "capacity")
        if capacity * n_clusters < len(x):
            raise ValueError(
                f"capacity={capacity} leaves room for {capacity * n_clusters} rows of {len(x)}; it must be at least "
                f"{-(-len(x) // n_clusters)}, or None"
            )
        centers = self._plain_centers(x, n_clusters)
        history: list[dict[str, Any]] = []
        labels, converged = torch.empty(0), False
        for iteration in range(1, max_iter + 1):
            found = balanced_assignment(x, centers, capacity, tol=float(self.gap))
            clusters = cluster_dispersion(x, found.labels, n_clusters, backend=self.backend)
            inertia = float(clusters.sq_distances.sum())
            if history and not inertia < history[-1]["inertia"]:
                converged = True  # rounding and the gap can make it rise: what was before is kept
                break
            labels = found.labels
            is_empty = clusters.counts[:, None] == 0
            centers = torch.where(is_empty, centers, clusters.centers.to(centers.dtype))
            history.append({"iteration": iteration, "inertia": inertia, "gap": float(found.gap)})
            if len(history) > 1 and history[-2]["inertia"] - inertia <= self.tol * inertia:
                converged = True
                break
        if not converged:
            warnings.warn(
                f"the inertia still fell after max_iter={max_iter} iterations; raise max_iter or tol",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.labels_ = give_back(spread(labels.to(torch.int32), finite, -1), X)
        self.cluster_centers_ = give_back(centers, X)
        self.inertia_ = history[-1]["inertia"]
        self.n_iter_ = len(history)
        self.history_ = history
        return self

    def _plain_centers(self, x: Tensor, n_clusters: int) -> Tensor:
        random_state = np.random.default_rng(read_seed(self.random_state))
        kmeans = KMeans(n_clusters, init=self.init, n_init=self.n_init, backend=self.backend, random_state=random_state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # rows may repeat
            return kmeans.fit(x).cluster_centers_
