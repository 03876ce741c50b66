"""A score of data that comes in chunks: nothing grows with the number of samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdc._input import read_points
from fastdc.kernels.contingency import as_integers
from fastdc.kernels.kmeans import nearest_center
from fastdc.kernels.pairwise import center_distances

ROWS = 1 << 18  # of samples whose distances are held at a time


class StreamingSilhouette:
    r"""Simplified silhouette of samples that come in chunks, for tens of millions of them.

    .. math:: \frac{1}{n} \sum_i \frac{b_i - a_i}{\max(a_i, b_i)}

    with a the distance of a sample to its own center and b that to the nearest other one.

    Parameters
    ----------
    centers : array-like or Tensor of shape (n_clusters, n_features)
        At least two.

    Notes
    -----
    Chunks are read in the dtype and on the device of the centers. The sum is float64: how samples are cut into
    chunks changes its last digits at most.

    References
    ----------
    Hruschka, Campello, de Castro. Evolving clusters in gene-expression data. Information Sciences 2006.

    Examples
    --------
    >>> from fastdc.metrics import StreamingSilhouette
    >>> score = StreamingSilhouette([[0.5], [4.5]])
    >>> for chunk in ([[0.0], [1.0]], [[4.0], [5.0]]):
    ...     score.update(chunk)
    >>> round(score.compute(), 4)
    0.873
    """

    def __init__(self, centers: Any) -> None:
        self.centers = read_points(centers)
        if len(self.centers) < 2:
            raise ValueError(f"centers must have at least two rows, got {len(self.centers)}; one cluster has no other")
        self.total, self.n_samples = 0.0, 0

    def update(self, x: Any, labels: Any = None) -> None:
        """Add a chunk (n, n_features). ``labels`` (n,) are row numbers of centers; None is the nearest center."""
        points = read_points(x, dtype=self.centers.dtype, device=self.centers.device)
        numbers = None if labels is None else read_labels(labels, points)
        for first in range(0, len(points), ROWS):
            part = points[first : first + ROWS]
            if numbers is None:
                own, other = center_distances(part, self.centers, nearest_center(part, self.centers).labels)
            else:
                own, other = center_distances(part, self.centers, numbers[first : first + ROWS])
            largest = torch.maximum(own, other)
            self.total += float(torch.where(largest == 0, 0.0, (other - own) / largest).sum(dtype=torch.float64))
        self.n_samples += len(points)

    def merge(self, *others: StreamingSilhouette) -> None:
        """Add what others, with the same centers, have seen."""
        self.total += sum(other.total for other in others)
        self.n_samples += sum(other.n_samples for other in others)

    def compute(self) -> float:
        """The mean over all samples seen."""
        if self.n_samples == 0:
            raise ValueError("compute() needs at least one chunk of samples; call update(x) first")
        return self.total / self.n_samples


def read_labels(labels: Any, points: Tensor) -> Tensor:
    """Integer labels, one a row of the points, on their device."""
    numbers = as_integers(labels, "labels")
    if len(numbers) != len(points):
        raise ValueError(f"x has {len(points)} rows but labels has {len(numbers)}; give each sample one label")
    return numbers.to(points.device).long()
