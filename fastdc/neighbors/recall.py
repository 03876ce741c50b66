"""What share of the true neighbours a search finds, and how wide it must look to find enough."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastdc.kernels.neighbors.near_lists import NearLists
from fastdc.kernels.neighbors.search import PointIndex

MIN_RECALL = 0.95  # that is wanted where nothing else is said
CHECKED = 1000  # queries whose neighbours are searched exactly too
NARROWEST, WIDER = 4, 1.5  # what a query looks at first of all, and how much more it does next

Found = tuple[Tensor, Tensor]  # distances and indices


class Sample:
    """Some queries and their true neighbours.

    Parameters
    ----------
    rows : array of shape (m,), int64
        Numbers of the queries, rising.
    true : Tensor of shape (m, n_neighbors)
        Distances of their nearest points, nearest first.
    sign : {1, -1}
        -1 where more is nearer.
    """

    def __init__(self, rows: np.ndarray, true: Tensor, sign: int) -> None:
        self.rows, self.sign = rows, sign
        self.last = true[:, -1:].double().cpu() * sign
        self.near = torch.full(true.shape, torch.inf, dtype=torch.float64)

    def see(self, first: int, distances: Tensor) -> None:
        """Distances that were found for queries from number ``first`` on; those of the sample are kept."""
        here = torch.from_numpy((self.rows >= first) & (self.rows < first + len(distances)))
        self.near[here] = distances.cpu()[torch.from_numpy(self.rows)[here] - first].double() * self.sign

    def recall(self) -> float:
        """Share of the distances that it has seen that are no larger than the true ones."""
        return float((self.near <= self.last).double().mean())

    def least_recall_of(self, distances: Tensor) -> float:
        """That of all queries at least, in all likelihood, by distances (m, n_neighbors) of its own."""
        self.near = distances.double().cpu() * self.sign
        shares = (self.near <= self.last).double().mean(dim=1)
        return float(shares.mean() - 2 * shares.std(correction=0) / len(shares) ** 0.5)


def drawn(n: int, seed: int) -> np.ndarray:
    """Numbers of some of n queries, rising."""
    return np.sort(np.random.default_rng(seed).choice(n, min(n, CHECKED), replace=False))


def widen(index: PointIndex | NearLists, find: Callable[[], Tensor], sample: Sample, min_recall: float) -> None:
    """Have queries look at more and more of an index, until ``find``, the distances of the sample, are near enough.

    Near enough that the recall of all queries is ``min_recall`` in all likelihood.

    Warns
    -----
    UserWarning
        Where that is not so at the widest.
    """
    width, recall = float(NARROWEST), 0.0
    while recall < min_recall:
        index.look_at(min(round(width), index.widest))
        recall = sample.least_recall_of(find())
        if recall < min_recall and width >= index.widest:
            warnings.warn(
                f"{index.algorithm} finds {sample.recall():.3f} of the true neighbours at the most, not surely "
                f"min_recall={min_recall}; algorithm 'ivf' can find all",
                stacklevel=3,
            )
            return
        width *= WIDER
