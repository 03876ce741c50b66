"""Terms over neighbours: spectral embedding, siamese contrast."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdc.kernels._checks import check_positive
from fastdc.kernels.graph import EdgeList, laplacian_loss
from fastdc.kernels.neighbors import knn
from fastdc.networks import MappedCentroids
from fastdc.training import Batch, Term


class SpectralRelaxation(Term):
    r"""SpectralNet's loss: Σ w_ij ‖y_i - y_j‖² / Σ w_ij over the edges of a batch, y being orthonormal over another.

    The paper divides by m², which makes losses so small that Adam's epsilon counts. Before each step the head's map is
    set such that the embeddings of as many other rows, drawn anew, are orthonormal (the paper's orthogonalisation
    step); the gradient then takes the map for a constant.

    Parameters
    ----------
    head : MappedCentroids
    n_neighbors : int
        Edges of each row to others of the batch; all where there are fewer. Their weights are exp(-d² / 2σ²), σ the
        median distance to the neighbour in the middle of them.
    space : nn.Module, optional
        Distances are those of its outputs; without it those of the rows themselves. It is not trained.
    """

    name = "spectral"

    def __init__(self, head: MappedCentroids, n_neighbors: int, space: nn.Module | None = None) -> None:
        super().__init__()
        self.head, self.n_neighbors = head, n_neighbors
        self.space = (space,)  # no submodule of this term, which would train it

    def forward(self, batch: Batch) -> Tensor:
        others = torch.randperm(len(batch.data), device=batch.x.device)[: len(batch.x)]
        with torch.no_grad():
            self.head.whiten(batch.network.encode(batch.data[others]), center=False)  # type: ignore[operator]
        edges, weights = self._edges(batch.x)
        return laplacian_loss(batch.through(self.head), edges, weights) / weights.sum().clamp(min=1e-30)

    @torch.no_grad()
    def _edges(self, x: Tensor) -> tuple[EdgeList, Tensor]:
        """Edges to the nearest rows, and their weights."""
        (space,) = self.space
        points = x if space is None else space(x)
        n_neighbors = min(self.n_neighbors, len(x) - 1)
        if n_neighbors == 0:
            none = torch.empty(2, 0, dtype=torch.int64, device=x.device)
            return EdgeList.prepare(none, len(x)), x.new_empty(0)
        distances, indices = knn(points, n_neighbors)
        sources = torch.arange(len(x), device=x.device).repeat_interleave(n_neighbors)
        edges = EdgeList.prepare(torch.stack([sources, indices.flatten()]), len(x))
        sigma = distances[:, (n_neighbors - 1) // 2].median().clamp(min=torch.finfo(distances.dtype).tiny)
        return edges, torch.exp(-0.5 * (distances / sigma).square()).flatten()


class SiameseContrast(Term):
    """Neighbours are drawn together, random pairs pushed apart up to a margin (Hadsell et al., CVPR 2006).

    Of a batch with two views, the rows and a neighbour of each.

    Parameters
    ----------
    network : nn.Module
        What is trained.
    margin : float
    """

    name = "siamese"

    def __init__(self, network: nn.Module, margin: float = 1.0) -> None:
        super().__init__()
        self.network, self.margin = network, check_positive(margin, "margin")

    def forward(self, batch: Batch) -> Tensor:
        anchor, neighbor = (self.network(view.x) for view in batch.views)
        other = anchor[torch.randperm(len(anchor), device=anchor.device)]
        near = (anchor - neighbor).square().sum(1)
        far = torch.linalg.vector_norm(anchor - other, dim=1)
        return (near + (self.margin - far).clamp(min=0).square()).mean()
