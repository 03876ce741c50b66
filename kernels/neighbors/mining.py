"""Neighbours mined for SCAN: the docstring is the specification."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fastdc.kernels._checks import check_labels
from fastdc.kernels.neighbors.op import knn

ROWS_A_CHUNK = 1 << 16  # rows whose neighbours' labels are compared at a time


class MinedNeighbors(NamedTuple):
    """Each row's neighbours, and how pure they are."""

    indices: Tensor
    purity: float | None


def mine_neighbors(
    x: Tensor,
    n_neighbors: int = 20,
    labels: Tensor | None = None,
    metric: str = "cosine",
    algorithm: str = "auto",
    *,
    backend: str | None = None,
) -> MinedNeighbors:
    r"""The nearest neighbours of each embedding that SCAN trains with (section 2.1), and their purity.

    Same as::

        indices = knn(x, n_neighbors, metric="cosine").indices
        purity = (labels[indices] == labels[:, None]).double().mean()

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Embeddings of the pretext task, finite; under "cosine" of any length.
    n_neighbors : int
        From 1 to n_samples - 1. The paper's is 20.
    labels : Tensor of shape (n_samples,), int64, optional
        True classes. They are only measured against, and choose nothing.
    metric, algorithm, backend
        As in :func:`knn`. The paper's embeddings are of length one, where "cosine", "euclidean" and
        "inner_product" find the same.

    Returns
    -------
    indices : Tensor of shape (n_samples, n_neighbors), int64
        Nearest first; a row itself is not among them, by its index. A copy of it elsewhere is.
    purity : float, or None without labels
        The mean share of neighbours of a row's own class, from 0 to 1.

    Notes
    -----
    Determinism, precision and memory as :func:`knn`. An approximate search may find fewer than wanted; places
    left free hold -1 and count as neighbours of another class.

    Raises
    ------
    ValueError
        Also where x holds NaN or infinity, since such a row has no neighbours to train with.

    References
    ----------
    Van Gansbeke, Vandenhende, Georgoulis, Proesmans, Van Gool. SCAN: learning to classify images without
    labels. ECCV, 2020, section 2.1.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> mined = mine_neighbors(x, 1, labels=torch.tensor([0, 0, 1, 1]))
    >>> mined.indices[:, 0].tolist(), mined.purity
    ([1, 0, 3, 2], 1.0)
    """
    indices = knn(x, n_neighbors, None, metric, algorithm, check_finite=True, backend=backend).indices
    if labels is None:
        return MinedNeighbors(indices, None)
    check_labels(labels, len(x), "labels", x)
    n_same = 0
    for start in range(0, len(indices), ROWS_A_CHUNK):
        part = indices[start : start + ROWS_A_CHUNK]
        same = labels[part.clamp(min=0)] == labels[start : start + ROWS_A_CHUNK, None]
        n_same += int((same & (part >= 0)).sum())
    return MinedNeighbors(indices, n_same / indices.numel())
