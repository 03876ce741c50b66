"""The definition in plain torch: any device, float64 too. Written to be read, not to be fast.

Byte counts are for n points and d features.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastdc.kernels.neighbors.points import keys_of

CHUNK_BYTES = 1 << 26  # of the differences of one chunk of rows


class ReferenceSearch:
    """Rows x (n, d), near each other up to a squared distance."""

    def __init__(self, x: Tensor, limit: float) -> None:
        self.x, self.limit = x, limit

    def counts(self, weights: Tensor | None) -> Tensor:
        """Rows within the radius of each, itself among them: int64; with weights (n,) their float64 sums."""
        if weights is None:
            return torch.cat([near.sum(dim=1) for _, near in self._near()])  # reads n² bytes
        return torch.cat([near.double() @ weights.double() for _, near in self._near()])  # writes and reads 8 n²

    def clusters(self, is_core: Tensor) -> Tensor:
        """The number of each row's set of cores, -1 for a row within the radius of none."""
        n = len(self.x)
        lowest = torch.where(is_core, torch.arange(n, device=self.x.device), n)
        while True:  # the lowest core that is reached in 1, 2, 4 … steps; at most n passes
            reached = self._lowest_near(lowest)
            reached = torch.where(is_core, reached, n)
            reached = torch.where(is_core, reached[reached.clamp(max=n - 1)], n)
            if torch.equal(reached, lowest):
                break
            lowest = reached
        firsts = torch.unique(lowest[is_core])  # rising: the order of the numbers
        found = torch.where(is_core, lowest, self._lowest_near(lowest))
        return torch.where(found < n, torch.searchsorted(firsts, found), -1)

    def _lowest_near(self, values: Tensor) -> Tensor:
        """The least of the values (n,) of the rows within the radius of each."""
        most = len(self.x)
        return torch.cat([torch.where(near, values, most).amin(dim=1) for _, near in self._near()])  # writes 8 n²

    def _near(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, near (chunk, n)) of chunk after chunk."""
        n, d = self.x.shape
        chunk = max(1, CHUNK_BYTES // (8 * n * d))
        for start in range(0, n, chunk):
            part = self.x[start : start + chunk]
            yield start, keys_of(part[:, None, :], self.x[None, :, :], "euclidean") <= self.limit  # writes 16 n² d
