"""What estimators with ``cluster_centers_`` share: where they start, and what they say of rows."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from fastdc._input import give_back, read_count, read_points, read_sample_weight
from fastdc.cluster.sharded import ShardedRows
from fastdc.cluster.streaming import StreamedRows, read_rows, streamed_step
from fastdc.kernels.kmeans import kmeans_parallel, kmeans_plusplus, kmeans_step, nearest_center
from fastdc.persistence import Saveable

RANDOM_RESTARTS = 10  # of init="random"; k-means++ starts well enough to run once


class CenterModel(Saveable, ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """Labels, distances and scores from centers, and ways to start."""

    n_clusters: int
    init: Any
    n_init: Any
    device: Any
    backend: str | None
    check_finite: bool
    cluster_centers_: Any

    def predict(self, X: Any) -> Any:
        """Nearest center of each row of ``X``, int32."""
        x, centers = self._read(X)
        if isinstance(x, StreamedRows):
            return give_back(x.labels(centers, self.backend), X)
        labels = self._settled(x, nearest_center(x, centers, backend=self.backend).labels)
        return give_back(labels.to(torch.int32), X)

    def transform(self, X: Any) -> Any:
        """Distance of each row of ``X`` to each center, of shape (n_samples, n_clusters)."""
        x, centers = self._read(X)
        if not isinstance(x, StreamedRows):
            return give_back(_distances(x, centers), X)
        distances = torch.empty((len(x), len(centers)), dtype=x.dtype, device=x.device)
        return give_back(x.fill(distances, lambda rows: _distances(rows, centers)), X)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """The negative inertia of ``X``: the higher the better the centers fit."""
        x, centers = self._read(X)
        weight = read_sample_weight(sample_weight, x)
        step = streamed_step if isinstance(x, StreamedRows) else kmeans_step
        return -float(step(x, centers, sample_weight=weight, backend=self.backend).inertia)

    def _prepared(self, x: Any) -> Any:
        """Rows as the model sees them."""
        return x

    def _settled(self, x: Tensor, labels: Tensor) -> Tensor:
        """Labels as users see them."""
        return labels

    def _rows(self, X: Any, reset: bool = False) -> Any:
        """A tensor of the rows of ``X``, or those of a row source, streamed."""
        return self._prepared(read_rows(X, self, reset=reset))

    def _read(self, X: Any) -> tuple[Any, Tensor]:
        """Rows like those of fit, and the centers beside them."""
        check_is_fitted(self)
        x = self._rows(X)
        return x, torch.as_tensor(self.cluster_centers_, device=x.device)

    def _n_runs(self) -> int:
        if not isinstance(self.init, str):
            if self.n_init not in ("auto", 1):
                warnings.warn(
                    f"init gives the centers to start from, so there is one run, not n_init={self.n_init}",
                    RuntimeWarning,
                    stacklevel=4,
                )
            return 1
        if isinstance(self.n_init, str):
            if self.n_init != "auto":
                raise ValueError(f"n_init must be 'auto' or an integer, got {self.n_init!r}")
            return RANDOM_RESTARTS if self.init == "random" else 1
        return read_count(self.n_init, "n_init")

    def _start(self, x: Any, weight: Tensor | None, n_clusters: int, random: np.random.Generator) -> Tensor:
        """Centers to begin a run with."""
        if not isinstance(self.init, str):
            centers = read_points(self.init, dtype=x.dtype, device=x.device)
            if centers.shape != (n_clusters, x.shape[1]):
                raise ValueError(
                    f"init has shape {tuple(centers.shape)}, wanted are (n_clusters, n_features) = "
                    f"{(n_clusters, x.shape[1])}"
                )
            return self._prepared(centers)
        if self.init in ("k-means++", "k-means||"):
            choose_rows = kmeans_plusplus if self.init == "k-means++" else kmeans_parallel
            seed = int(random.integers(2**31 - 1))
            if isinstance(x, StreamedRows):
                x, weight = x.sample(n_clusters, weight, seed)
            return choose_rows(x, n_clusters, sample_weight=weight, random_state=seed, backend=self.backend).centers
        if self.init == "random" and isinstance(x, ShardedRows):
            return x[x.draw(n_clusters, weight, int(random.integers(2**31 - 1)), least=n_clusters)]
        if self.init == "random":
            chance = None if weight is None else weight.double().cpu().numpy()
            if chance is not None and np.count_nonzero(chance) < n_clusters:
                raise ValueError(
                    f"n_clusters={n_clusters} must be at most {np.count_nonzero(chance)}, the samples of positive "
                    "weight, with init='random'"
                )
            chance = None if chance is None else chance / chance.sum()
            rows = random.choice(len(x), n_clusters, replace=False, p=chance)
            return x[torch.from_numpy(rows).to(x.device)]
        raise ValueError(f"init must be 'k-means++', 'k-means||', 'random' or an array of centers, got {self.init!r}")

    @property
    def _n_features_out(self) -> int:
        return self.cluster_centers_.shape[0]


def _distances(x: Tensor, centers: Tensor) -> Tensor:
    """(n, n_clusters) in the dtype of x, by differences: a product would cancel."""
    dtype = torch.promote_types(x.dtype, centers.dtype)
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(x.to(dtype), centers.to(dtype), compute_mode=mode).to(x.dtype)
