"""Losses over all pairs of rows of a batch."""

from __future__ import annotations

from torch import Tensor, nn

from fastdc.kernels._checks import check_positive
from fastdc.kernels.pairwise import pairwise_bce, soft_nearest_neighbor_loss, triplet_loss
from fastdc.kernels.pairwise.losses import Margin, Mining, check_margin, check_thresholds


class PairwiseBCELoss(nn.Module):
    """Deep adaptive clustering: :func:`fastdc.pairwise_bce` for a training loop.

    Parameters
    ----------
    upper, lower : float, lower <= upper
        Similarities from which pairs are positive and below which they are negative; set the attributes anew to
        narrow them from epoch to epoch, as DAC does.
    eps : float > 0
        Keeps the logarithms finite.

    Examples
    --------
    >>> import torch
    >>> loss = PairwiseBCELoss()(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    >>> abs(round(loss.item(), 4))
    0.0
    """

    def __init__(self, upper: float = 0.95, lower: float = 0.455, eps: float = 1e-6) -> None:
        super().__init__()
        self.upper, self.lower = check_thresholds(upper, lower)
        self.eps = check_positive(eps, "eps")

    def forward(self, f: Tensor, labels: Tensor | None = None, chosen_by: Tensor | None = None) -> Tensor:
        """The loss of softmax outputs (n_samples, n_clusters); labels or outputs of other rows may choose the pairs."""
        return pairwise_bce(f, labels, self.upper, self.lower, chosen_by=chosen_by, eps=self.eps)


class SoftNearestNeighborLoss(nn.Module):
    """Entanglement of classes: :func:`fastdc.soft_nearest_neighbor_loss` for a training loop.

    Parameters
    ----------
    temperature : float > 0
        Of the squared distances that count as near.

    Examples
    --------
    >>> import torch
    >>> loss = SoftNearestNeighborLoss()(torch.tensor([[0.0], [1.0], [1.0]]), torch.tensor([0, 0, 1]))
    >>> round(loss.item(), 4)
    1.0032
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = check_positive(temperature, "temperature")

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """The loss of rows (n_samples, n_features) and their int64 labels (n_samples,)."""
        return soft_nearest_neighbor_loss(x, labels, self.temperature)


class TripletLoss(nn.Module):
    """Batch-hard or all triplets: :func:`fastdc.triplet_loss` for a training loop.

    Parameters
    ----------
    margin : "soft" or float >= 0
    mining : {"hard", "all"}

    Examples
    --------
    >>> import torch
    >>> TripletLoss(margin=0.5)(torch.tensor([[0.0], [2.0], [3.0], [7.0]]), torch.tensor([0, 0, 1, 1]))
    tensor(1.2500)
    """

    def __init__(self, margin: Margin = "soft", mining: Mining = "hard") -> None:
        super().__init__()
        check_margin(margin, mining)
        self.margin, self.mining = margin, mining

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """The loss of embeddings (n_samples, n_features) and their int64 labels (n_samples,)."""
        return triplet_loss(x, labels, self.margin, self.mining)
