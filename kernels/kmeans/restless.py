"""How many distances bounds will leave to be made, forecast on a few rows, and which centers move too far for them."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

MOST_ROWS, MOST_DISTANCES, RATE = 256, 2**22, 256  # of the sample; it has one row in so many
SHARES = (0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)  # of the centers that may be restless
WORTH = 0.8  # the forecast that a new choice of restless centers must bring, over that of the last one


class Forecast:
    """Gaps between rows and groups of centers, on a sample of the rows.

    A group whose bound lies ``gap`` above the distance to the own center and whose centers move by ``move`` a pass is
    looked at once in ``gap / move`` passes. Centers that all rows look at are left out of their group's move.
    """

    def __init__(self, x: Any, home: NDArray) -> None:
        rows = min(len(x), max(16, min(MOST_ROWS, MOST_DISTANCES // len(home), len(x) // RATE)))
        places = torch.linspace(0, len(x) - 1, rows, dtype=torch.float64).long()
        self.sample = x[places].float()
        self.home = torch.from_numpy(home)
        self.n_groups = int(home.max()) + 1
        self.share_of = torch.bincount(self.home) / len(home)

    def choose(self, centers: Tensor, before: Tensor, restless: NDArray) -> tuple[float, NDArray]:
        """The share of distances to be made, and (n_clusters,) which centers all rows shall look at.

        ``restless`` is the choice before, kept where another is not clearly better. NaN where nothing can be said.
        """
        gaps = self._gaps(centers.float())
        moves = (centers.double() - before.double()).norm(dim=1).float()
        kept, chosen = self._share(gaps, moves, torch.from_numpy(restless)), restless
        best = kept
        ranks = moves.argsort(descending=True).argsort()
        for share in SHARES:
            candidate = ranks < int(share * len(centers))
            forecast = self._share(gaps, moves, candidate)
            if forecast < min(best, WORTH * kept):
                best, chosen = forecast, candidate.numpy()
        return best, chosen

    def _gaps(self, centers: Tensor) -> Tensor:
        """(rows, groups): how much farther than the own center the nearest other center of each group is."""
        distances = torch.cdist(self.sample, centers)
        own = distances.min(dim=1)
        distances.scatter_(1, own.indices[:, None], torch.inf)
        nearest = distances.new_full((len(distances), self.n_groups), torch.inf)
        nearest.scatter_reduce_(1, self.home.expand_as(distances), distances, "amin")
        return nearest - own.values[:, None]

    def _share(self, gaps: Tensor, moves: Tensor, restless: Tensor) -> float:
        still = moves.masked_fill(restless, 0.0)
        farthest = still.new_zeros(self.n_groups).scatter_reduce_(0, self.home, still, "amax")
        looks = (farthest / gaps).clamp(max=1.0).nanmean(dim=0) @ self.share_of
        return float(restless.float().mean() + looks)
