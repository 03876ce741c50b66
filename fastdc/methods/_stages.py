"""Small stages that methods of several families share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdc._input import read_count
from fastdc.kernels.neighbors import mine_neighbors
from fastdc.networks import MappedCentroids
from fastdc.training import Batch, Stage, Trainer
from fastdc.views import NeighborViews, Transform


class Mine(Stage):
    """Find the nearest rows of each, in the embedding or in the data; later stages take them by :meth:`views`.

    Parameters
    ----------
    n_neighbors : int
        All where there are fewer.
    metric : {"euclidean", "cosine", "inner_product"}
    transform : callable, optional
        Applied to both views.
    embedded : bool
        Whether distances are those of the embedding.
    """

    def __init__(
        self, n_neighbors: int, metric: str, transform: Transform | None = None, embedded: bool = True
    ) -> None:
        self.n_neighbors = read_count(n_neighbors, "n_neighbors")
        self.metric, self.transform, self.embedded = metric, transform, embedded
        self.memory: dict[str, Tensor] = {}

    def run(self, trainer: Trainer) -> None:
        points = trainer.embed() if self.embedded else trainer.data
        if len(points) > 1:
            self.memory["indices"] = mine_neighbors(
                points, min(self.n_neighbors, len(points) - 1), metric=self.metric
            ).indices

    def views(self, batch: Batch, data: Tensor) -> Sequence[Tensor]:
        """The rows of a batch and a neighbour of each; the row itself where none was found."""
        indices = self.memory.get("indices")
        if indices is None:
            indices = torch.arange(len(data), device=batch.rows.device)[:, None]
        return NeighborViews(indices, self.transform)(batch, data)


@dataclass
class Whiten(Stage):
    """Set the head's map such that the embeddings of all rows are orthonormal, around their mean or around 0."""

    head: MappedCentroids
    center: bool = True

    def run(self, trainer: Trainer) -> None:
        self.head.whiten(trainer.embed(), self.center)
