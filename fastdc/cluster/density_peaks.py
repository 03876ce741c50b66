"""Clustering by density peaks as a scikit-learn estimator over arrays and tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin
from torch import Tensor

from fastdc._input import give_back, read_count, read_seed
from fastdc.cluster._denser import nearest_denser
from fastdc.cluster._whole import files_for_sources, finite_rows, read_whole, spread
from fastdc.kernels.density import radius_counts
from fastdc.kernels.neighbors import Neighbors, knn
from fastdc.kernels.neighbors.points import METRICS, check_metric
from fastdc.persistence import Saveable

SAMPLE = 2000  # points whose distances stand for all, where a cutoff is chosen
SHARE = 0.02  # of all points that are within the cutoff, on average; the paper says 1 to 2 %


@dataclass(eq=False, repr=False, kw_only=True)
class DensityPeaks(Saveable, ClusterMixin, BaseEstimator):
    """Centers are points that are dense and far from any denser one; others follow their nearest denser point.

    Parameters
    ----------
    n_clusters : int
        At most the number of samples.
    density : {"knn", "cutoff"}
        "knn": exp(-m / M), m a point's mean squared distance to its neighbours and M the mean of m; smooth, without
        ties. "cutoff": how many other points lie within ``cutoff``, eq. (1) of the paper.
    n_neighbors : int
        Of each point; all others where there are fewer. With "cutoff" it only decides how many points find a denser
        one at once.
    cutoff : float, optional
        None takes the distance within which 2 % of all points lie, estimated from 2,000 of them.
    metric : {"euclidean", "cosine"}
    algorithm : {"auto", "exact", "lists", "faiss", "hnsw", "ivf"}
        Of the search for neighbours (see ``fastdc.knn``).
    device : str or torch.device, optional
        None computes where a tensor lies, and otherwise on the GPU if there is one.
    backend : {None, "reference", "numba", "triton"}
        None chooses by device.
    check_finite : bool
        Raise where X holds NaN or infinity. Without the check such rows get label -1.
    random_state : int, numpy RandomState or Generator, optional
        Of the points that ``cutoff=None`` looks at; nothing else is drawn.

    Attributes
    ----------
    labels_ : array of shape (n_samples,), int32
        Of centers by falling ``density_ * delta_``.
    center_indices_ : array of shape (n_clusters,), int64
    density_, delta_ : arrays of shape (n_samples,)
        The decision graph: rho, and the distance to the nearest denser point, for the densest the largest distance.
    nearest_denser_ : array of shape (n_samples,), int64
        That point; of equally dense points the lower index counts as denser. The densest points at itself.
    cutoff_ : float
        That was used; 0 with "knn".
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    Memory: the neighbours, about 40 bytes each, and two copies of X; never n_samples x n_samples.
    Time: the search for neighbours, and for each point that is denser than all its neighbours (few) a search among
    all denser ones.
    The rows of a source take little memory: those that cannot be seen where they lie, and copies of 64 MB and more, are
    in temporary files (the environment variable TMPDIR says where).

    References
    ----------
    Rodriguez, Laio. Clustering by fast search and find of density peaks. Science, 2014.
    Du, Ding, Jia. Study on density peaks clustering based on k-nearest neighbors and principal component analysis.
    Knowledge-Based Systems, 2016 (densities by neighbours).

    Examples
    --------
    >>> import numpy as np
    >>> from fastdc import DensityPeaks
    >>> X = np.array([[0.0], [0.1], [0.3], [5.0], [5.1], [5.2]])
    >>> model = DensityPeaks(2, n_neighbors=2).fit(X)
    >>> model.labels_
    array([1, 1, 1, 0, 0, 0], dtype=int32)
    >>> model.center_indices_
    array([4, 1])
    """

    n_clusters: int = field(default=8, kw_only=False)
    density: str = "knn"
    n_neighbors: int = 20
    cutoff: float | None = None
    metric: str = "euclidean"
    algorithm: str = "auto"
    device: str | torch.device | None = None
    backend: str | None = None
    check_finite: bool = True
    random_state: Any = None

    @files_for_sources
    def fit(self, X: Any, y: Any = None) -> DensityPeaks:
        """Find the clusters.

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
        n_neighbors = read_count(self.n_neighbors, "n_neighbors")
        if self.density not in ("knn", "cutoff"):
            raise ValueError(f"density must be 'knn' or 'cutoff', got {self.density!r}")
        if self.cutoff is not None and not 0 < self.cutoff < float("inf"):
            raise ValueError(f"cutoff must be None or a finite number above 0, got {self.cutoff}")
        check_metric(self.metric, METRICS[:2])
        seed = read_seed(self.random_state)
        x, finite = finite_rows(read_whole(X, self), check=not self.check_finite)
        read_count(n_clusters, "n_clusters", high=len(x), high_name="n_samples")
        near = self._neighbors(x, min(n_neighbors, len(x) - 1))
        cutoff = 0.0
        if self.density == "knn":
            density = _knn_density(near)
        else:
            cutoff = float(self.cutoff) if self.cutoff is not None else _choose_cutoff(x, self.metric, seed)
            density = (radius_counts(x, cutoff, metric=self.metric, backend=self.backend) - 1).double()
        denser = nearest_denser(x, density, near, self.metric)
        centers, labels = _follow(density, denser.indices, denser.distances, n_clusters)
        rows = torch.arange(len(x), device=x.device) if finite is None else finite.nonzero()[:, 0]
        self.labels_ = give_back(spread(labels.to(torch.int32), finite, -1), X)
        self.center_indices_ = give_back(rows[centers], X)
        self.density_ = give_back(spread(density, finite, torch.nan), X)
        self.delta_ = give_back(spread(denser.distances, finite, torch.nan), X)
        self.nearest_denser_ = give_back(spread(rows[denser.indices], finite, -1), X)
        self.cutoff_ = cutoff
        return self

    def _neighbors(self, x: Tensor, n_neighbors: int) -> Neighbors:
        if n_neighbors == 0:
            return Neighbors(x.new_empty(1, 0), torch.empty(1, 0, dtype=torch.int64, device=x.device))
        return knn(x, n_neighbors, None, self.metric, self.algorithm, backend=self.backend)


def _knn_density(near: Neighbors) -> Tensor:
    """exp(-m / mean of m), m the mean squared distance of each to its neighbours; float64."""
    if near.distances.shape[1] == 0:
        return near.distances.new_ones(1, dtype=torch.float64)
    spreads = near.distances.double().square().mean(dim=1)
    mean = spreads.mean()
    return torch.exp(-spreads / torch.where(mean > 0, mean, 1.0))


def _choose_cutoff(x: Tensor, metric: str, seed: int) -> float:
    """The distance within which lies the usual share of some points drawn by chance."""
    n = min(len(x), SAMPLE)
    if n == 1:
        return 1.0
    rows = np.random.default_rng(seed).choice(len(x), n, replace=False)
    sample = x[torch.from_numpy(rows).to(x.device)]
    within = max(1, round(SHARE * (n - 1)))
    cutoff = float(knn(sample, within, None, metric).distances[:, -1].double().mean())
    return cutoff if cutoff > 0 else 1.0  # where all are equal


def _follow(density: Tensor, denser: Tensor, delta: Tensor, n_clusters: int) -> tuple[Tensor, Tensor]:
    """Centers (n_clusters,) by falling density * delta, and each point's label: that of its nearest denser point."""
    by_density = density.sort(descending=True, stable=True).indices  # of equal products the densest comes first
    products = (density * delta.double())[by_density]
    centers = by_density[products.sort(descending=True, stable=True).indices[:n_clusters]]
    towards = denser.clone()
    towards[centers] = centers
    while True:  # 1, 2, 4 … steps
        further = towards[towards]
        if torch.equal(further, towards):
            break
        towards = further
    numbers = torch.empty_like(denser)
    numbers[centers] = torch.arange(n_clusters, device=centers.device)
    return centers, numbers[towards]
