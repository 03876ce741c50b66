"""Terms over graphs: spectral embedding, siamese contrast, a graph network that learns the target distribution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdc.kernels._checks import check_positive
from fastdc.kernels.graph import EdgeList, laplacian_loss
from fastdc.kernels.mutual_information import vat_kl
from fastdc.kernels.neighbors import knn
from fastdc.kernels.student_t import target_distribution
from fastdc.networks import GraphCentroids, layer_outputs
from fastdc.training import Batch, Term


class SpectralRelaxation(Term):
    r"""SpectralNet's loss over the edges of a batch: Σ w_ij ‖y_i - y_j‖² / Σ w_ij, y being the orthonormal form of z.

    The gradient goes through the orthogonalisation, so that it does not shrink z. The paper's sees a constant map,
    found from other rows; steps of Adam, which are as long for small gradients, then shrink z to where they are noise.
    The paper divides by m², which makes losses so small that Adam's epsilon counts.

    Parameters
    ----------
    n_neighbors : int
        Edges of each row to others of the batch; all where there are fewer. Their weights are exp(-d² / σ_i σ_j), σ_i
        the distance to the neighbour in the middle of them: with one scale for all rows it costs nothing to cut off
        one that lies apart.
    space : nn.Module, optional
        Distances are those of its outputs; without it those of the rows themselves. It is not trained.
    """

    name = "spectral"

    def __init__(self, n_neighbors: int, space: nn.Module | None = None) -> None:
        super().__init__()
        self.n_neighbors = n_neighbors
        self.space = (space,)  # no submodule of this term, which would train it

    def forward(self, batch: Batch) -> Tensor:
        edges, weights = self._edges(batch.x)
        return laplacian_loss(orthonormal(batch.z), edges, weights) / weights.sum().clamp(min=1e-30)

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
        scale = distances[:, (n_neighbors - 1) // 2].clamp(min=torch.finfo(distances.dtype).tiny ** 0.5)
        scaled = distances.square() / (scale[:, None] * scale[indices])
        return edges, torch.exp(-scaled).flatten()


def orthonormal(z: Tensor) -> Tensor:
    """Combinations of the columns of z that are orthonormal, times the root of the number of rows; differentiable.

    By a Cholesky factor of the products of columns, in float64. A ridge of 1e-10 of their mean keeps columns that
    depend on each other from raising.
    """
    rows = z.double()
    moments = rows.T @ rows / len(rows)
    mean = moments.detach().diagonal().mean()
    factor = torch.linalg.cholesky(moments + torch.eye(len(moments)).to(moments) * (1e-10 * mean + (mean == 0)))
    return torch.linalg.solve_triangular(factor, rows.T, upper=False).T.to(z.dtype)


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


class GraphTarget(Term):
    """KL(P || Z) of SDCN: Z is what the graph network says of all rows, P the target of the centers.

    The embedding of the batch is computed here, layer by layer, for the terms that come after.

    Parameters
    ----------
    head : GraphCentroids
    """

    name = "graph"

    def __init__(self, head: GraphCentroids) -> None:
        super().__init__()
        self.head = head

    def forward(self, batch: Batch) -> Tensor:
        outputs = layer_outputs(batch.network.get_submodule("encoder"), batch.x)
        batch.z = outputs[-1]
        with torch.no_grad():
            p = target_distribution(self.head.assign(batch.z.detach()))
        logits = self.head.classify(batch.x, outputs)
        return vat_kl(p.clamp(min=torch.finfo(p.dtype).tiny).log(), logits)
