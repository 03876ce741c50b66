"""The nearest of the points that are denser, without a matrix of distances."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastdc.kernels._copies import copy_rows
from fastdc.kernels.neighbors import Neighbors, knn

FEW = 256  # points among which all pairs are compared at once


class Denser(NamedTuple):
    """For each point the nearest that is denser, and the distance; for the densest itself and the largest distance."""

    indices: Tensor
    distances: Tensor


def nearest_denser(x: Tensor, density: Tensor, near: Neighbors, metric: str) -> Denser:
    """Of equally dense points the one of lower index counts as denser.

    Most find it among their neighbours ``near``, which rise in distance. The others ask all denser points: with points
    sorted by density, those of the second half ask the first half, and each half is treated alike.
    """
    n = len(x)
    if n == 1:
        return Denser(torch.zeros(1, dtype=torch.int64, device=x.device), x.new_zeros(1))
    order = density.sort(descending=True, stable=True).indices
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(n, device=x.device)
    is_denser = (ranks[near.indices.clamp(min=0)] < ranks[:, None]) & (near.indices >= 0)
    first = is_denser.int().argmax(dim=1, keepdim=True)
    found = is_denser.gather(1, first)[:, 0]
    indices = torch.where(found, near.indices.gather(1, first)[:, 0], -1)
    distances = torch.where(found, near.distances.gather(1, first)[:, 0], torch.inf)
    left = ranks[~found].sort().values
    best = _Search(copy_rows(x, order), metric, left)
    best.run(0, n)
    asked = order[left]
    indices[asked], distances[asked] = order[best.places], best.distances
    densest = order[:1]
    farthest = _largest_distance(x, x[densest], metric)
    indices[densest] = densest
    distances[densest] = torch.inf
    finite = distances[distances.isfinite()]
    distances[densest] = max(farthest, float(finite.max()) if len(finite) else 0.0)
    return Denser(indices, distances)


class _Search:
    """Points x sorted by falling density, and the places ``left`` (rising) that look for the nearest before them."""

    def __init__(self, x: Tensor, metric: str, left: Tensor) -> None:
        self.x, self.metric, self.left = x, metric, left
        self.places = torch.zeros_like(left)
        self.distances = torch.full(left.shape, torch.inf, dtype=x.dtype, device=x.device)

    def run(self, start: int, stop: int) -> None:
        """Points ``start`` … ``stop`` ask those of their own that come before them."""
        bounds = torch.tensor([start, (start + stop) // 2, stop], device=self.left.device)
        low, middle, high = torch.searchsorted(self.left, bounds).tolist()
        if low == high or stop - start < 2:
            return
        if stop - start <= FEW:
            self._ask_all(start, stop, slice(low, high))
            return
        half = (start + stop) // 2
        self.run(start, half)
        if middle < high:
            here = slice(middle, high)
            near = knn(self.x[start:half], 1, self.x[self.left[here]], self.metric)
            self._keep(here, start + near.indices[:, 0], near.distances[:, 0])
        self.run(half, stop)

    def _ask_all(self, start: int, stop: int, here: slice) -> None:
        near = knn(self.x[start:stop], stop - start, self.x[self.left[here]], self.metric)
        before = start + near.indices < self.left[here, None]
        first = before.int().argmax(dim=1, keepdim=True)
        distances = torch.where(before.any(dim=1), near.distances.gather(1, first)[:, 0], torch.inf)
        self._keep(here, start + near.indices.gather(1, first)[:, 0], distances)

    def _keep(self, here: slice, places: Tensor, distances: Tensor) -> None:
        nearer = distances < self.distances[here]
        self.places[here] = torch.where(nearer, places, self.places[here])
        self.distances[here] = torch.where(nearer, distances.to(self.distances), self.distances[here])


def _largest_distance(x: Tensor, row: Tensor, metric: str) -> float:
    """From one row (1, n_features) to any other."""
    return float(knn(row, 1, x, metric).distances.max())
