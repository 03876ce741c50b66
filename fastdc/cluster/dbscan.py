"""DBSCAN as a scikit-learn estimator over arrays and tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from sklearn.base import BaseEstimator, ClusterMixin

from fastdc._input import give_back, read_count, read_sample_weight
from fastdc.cluster._whole import files_for_sources, read_whole
from fastdc.kernels._copies import copy_rows
from fastdc.kernels.density import density_clusters
from fastdc.persistence import Saveable


@dataclass(eq=False, repr=False, kw_only=True)
class DBSCAN(Saveable, ClusterMixin, BaseEstimator):
    """Dense regions as clusters, the rest as noise: the labels of scikit-learn's DBSCAN, without lists of neighbours.

    Parameters
    ----------
    eps : float
        Points at most this far apart are neighbours. Above 0.
    min_samples : int
        Neighbours that make a point a core, itself among them.
    metric : {"euclidean", "cosine"}
        "cosine" is 1 minus the cosine; a row of zeros is at distance 1 from every other.
    device : str or torch.device, optional
        None computes where a tensor lies, and otherwise on the GPU if there is one.
    backend : {None, "reference", "numba", "triton"}
        None chooses by device.
    check_finite : bool
        Raise where X holds NaN or infinity. Without the check such rows are noise.

    Attributes
    ----------
    labels_ : array of shape (n_samples,), int32
        Clusters are numbered in the order of their first core; noise is -1. A point that is near several clusters but
        no core belongs to the first of them.
    core_sample_indices_ : array of shape (n_core_samples,), int64
        Rising.
    components_ : array of shape (n_core_samples, n_features)
        A copy of the cores.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    The same numbers as scikit-learn's: pairs at the boundary of ``eps`` are measured in float64, where scikit-learn
    does so too (``algorithm="kd_tree"`` or ``"ball_tree"``; its "brute" and its cosine round as products do).
    Memory: beside X two copies of it and 57 bytes a row; never a list of neighbours, however large ``eps`` is.
    Time: boxes of 64 points that lie apart are skipped, in few dimensions nearly all; in many dimensions every pair
    is measured, n_samples² n_features operations in three passes.
    The rows of a source take little memory: those that cannot be seen where they lie, and copies of 64 MB and more, are
    in temporary files (the environment variable TMPDIR says where).

    References
    ----------
    Ester, Kriegel, Sander, Xu. A density-based algorithm for discovering clusters in large spatial databases with
    noise. KDD 1996.

    Examples
    --------
    >>> import numpy as np
    >>> from fastdc import DBSCAN
    >>> X = np.array([[1.0, 2.0], [2.0, 2.0], [2.0, 3.0], [8.0, 7.0], [8.0, 8.0], [25.0, 80.0]])
    >>> DBSCAN(eps=3.0, min_samples=2).fit(X).labels_
    array([ 0,  0,  0,  1,  1, -1], dtype=int32)
    """

    eps: float = field(default=0.5, kw_only=False)
    min_samples: int = field(default=5, kw_only=False)
    metric: str = "euclidean"
    device: str | torch.device | None = None
    backend: str | None = None
    check_finite: bool = True

    @files_for_sources
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> DBSCAN:
        """Find the clusters.

        Parameters
        ----------
        X : array-like or RowSource of shape (n_samples, n_features)
            Computed in its own precision, float32 or float64.
        y : ignored
        sample_weight : array-like of shape (n_samples,), optional
            A point counts for so many; a negative weight keeps its neighbours from being cores.

        Returns
        -------
        self : fitted estimator

        Raises
        ------
        ValueError, TypeError
            For bad parameters and bad data.
        """
        min_samples = read_count(self.min_samples, "min_samples")
        if isinstance(self.eps, bool) or not 0 < self.eps < float("inf"):
            raise ValueError(f"eps must be a finite number above 0, got {self.eps}")
        x = read_whole(X, self)
        weight = read_sample_weight(sample_weight, x[:, :1].double(), signed=True)
        found = density_clusters(x, float(self.eps), min_samples, weight, self.metric, backend=self.backend)
        cores = found.is_core.nonzero()[:, 0]
        self.labels_ = give_back(found.labels.to(torch.int32), X)
        self.core_sample_indices_ = give_back(cores, X)
        self.components_ = give_back(copy_rows(x, cores), X)
        return self

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit, and the label of each row, int32."""
        return self.fit(X, sample_weight=sample_weight).labels_
