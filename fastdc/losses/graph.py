"""Losses over the neighbours of a graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdc.kernels._checks import check_not_negative
from fastdc.kernels.graph import EdgeList, heat_weights, laplacian_loss, neighbor_consistency_loss


class LaplacianLoss(nn.Module):
    """Energy of embeddings on a graph: :func:`fastdc.laplacian_loss` for a training loop.

    Parameters
    ----------
    reduction : {"sum", "mean"}
        "mean" divides by the number of edges.

    Examples
    --------
    >>> import torch
    >>> LaplacianLoss()(torch.tensor([[0.0], [2.0]]), torch.tensor([[0, 1], [1, 0]]))
    tensor(8.)
    """

    def __init__(self, reduction: str = "sum") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, z: Tensor, edges: Tensor | EdgeList, weights: Tensor | None = None) -> Tensor:
        """The loss of embeddings (n_samples, n_features) on edges (2, n_edges)."""
        return laplacian_loss(z, edges, weights, self.reduction)


class LocalityPreservingLoss(nn.Module):
    """Locality-preserving constraint of DEN over one graph of all rows, prepared once.

    :func:`fastdc.locality_preserving_loss`, its weights and edges being buffers of the module: they follow it to
    a device and are not part of its state.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        The points whose neighbourhoods are to be kept.
    edges : int64 Tensor of shape (2, n_edges)
        Neighbours, such as the k nearest of each point.
    bandwidth : float, optional
        Of the heat kernel; the mean squared length of the edges without.
    reduction : {"sum", "mean"}
        "mean" divides by the number of edges.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[0.0], [1.0]])
    >>> LocalityPreservingLoss(x, torch.tensor([[0], [1]]), bandwidth=1.0)(2 * x)
    tensor(1.4715)
    """

    def __init__(self, x: Tensor, edges: Tensor, bandwidth: float | None = None, reduction: str = "sum") -> None:
        super().__init__()
        self.reduction = reduction
        graph = EdgeList.prepare(edges, x.shape[0])
        with torch.no_grad():
            weights = heat_weights(x, graph, bandwidth)
        for name, tensor in {**graph._asdict(), "weights": weights}.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        """The loss of embeddings (n_samples, n_features) of all the rows."""
        graph = EdgeList(*(self.get_buffer(name) for name in EdgeList._fields))
        return laplacian_loss(z, graph, self.get_buffer("weights"), self.reduction)


class SCANLoss(nn.Module):
    """SCAN's loss of predictions at rows and at one neighbour of each: :func:`fastdc.neighbor_consistency_loss`.

    Parameters
    ----------
    entropy_weight : float
        Of the even use of clusters; the paper takes 5.
    from_logits : bool
        Whether logits come, as in the authors' code, or probabilities.

    Examples
    --------
    >>> import torch
    >>> logits = torch.tensor([[9.0, -9.0], [-9.0, 9.0]])
    >>> round(SCANLoss()(logits, logits).item(), 4)
    -3.4657
    """

    def __init__(self, entropy_weight: float = 5.0, from_logits: bool = True) -> None:
        super().__init__()
        self.entropy_weight = check_not_negative(entropy_weight, "entropy_weight")
        self.from_logits = from_logits

    def forward(self, anchor: Tensor, neighbor: Tensor) -> Tensor:
        """The loss of predictions, each (n_samples, n_clusters)."""
        return neighbor_consistency_loss(anchor, neighbor, self.entropy_weight, from_logits=self.from_logits)
