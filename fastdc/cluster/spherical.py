"""Spherical k-means: directions instead of places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdc._input import give_back
from fastdc.cluster.kmeans import KMeans
from fastdc.kernels.kmeans import center_update


@dataclass(eq=False, repr=False, kw_only=True)
class SphericalKMeans(KMeans):
    """K-means by cosine: rows and centers are scaled to length one, and each row goes to the most similar center.

    Parameters are those of :class:`KMeans`. So are the attributes, with these meanings:

    Attributes
    ----------
    cluster_centers_ : array of shape (n_clusters, n_features)
        Each of length one.
    inertia_ : float
        Weighted sum of squared distances between the scaled rows and their centers: 2 (1 - cosine) for a row.

    Notes
    -----
    A new center is the mean direction of its rows, scaled to length one; it stays where it was if they cancel.
    A row of zeros is as similar to every center, with cosine 0: it gets label 0, adds 1 to the inertia and moves no
    center.
    Memory: X once more, scaled.

    References
    ----------
    Dhillon, Modha. Concept decompositions for large sparse text data using clustering. Machine Learning, 2001.

    Examples
    --------
    >>> import numpy as np
    >>> from fastdc import SphericalKMeans
    >>> X = np.array([[1.0, 0.1], [9.0, 0.0], [0.1, 1.0], [0.0, 5.0]])
    >>> model = SphericalKMeans(2, random_state=0).fit(X)
    >>> bool(model.labels_[0] == model.labels_[1] != model.labels_[2] == model.labels_[3])
    True
    """

    def transform(self, X: Any) -> Any:
        """Cosine distance, 1 - cosine, of each row of ``X`` to each center, of shape (n_samples, n_clusters)."""
        x, centers = self._read(X)
        return give_back((1.0 - x @ centers.to(x.dtype).T).clamp(0.0, 2.0), X)

    def _prepared(self, x: Any) -> Any:
        """Rows of length one; rows of zeros stay."""
        if not isinstance(x, Tensor):
            raise TypeError(
                "SphericalKMeans reads arrays and tensors, not row sources; KMeans over rows that were scaled to "
                "length one when they were saved gives the same clusters"
            )
        largest = x.abs().amax(dim=1, keepdim=True)  # first, so that squares neither overflow nor vanish
        scaled = torch.where(largest > 0, x / torch.where(largest > 0, largest, 1.0), x)
        return torch.nn.functional.normalize(scaled, dim=1)

    def _settled(self, x: Tensor, labels: Tensor) -> Tensor:
        return torch.where((x == 0).all(dim=1), 0, labels)  # centers are of length one up to rounding

    def _updated(self, sums: Tensor, counts: Tensor, centers: Tensor) -> Tensor:
        means = center_update(sums, counts, centers.to(sums.dtype))
        length = torch.linalg.vector_norm(means, dim=1, keepdim=True)
        turned = torch.where(length > 1e-12, means / length.clamp(min=1e-12), centers.to(sums.dtype))
        return turned.to(centers.dtype)
