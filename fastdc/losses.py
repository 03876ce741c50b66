"""``nn.Module`` faces of the differentiable ops, for training code of one's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdc.kernels.sinkhorn import swapped_prediction_loss
from fastdc.kernels.student_t import dec_loss


class DECLoss(nn.Module):
    """KL(P || Q) with cluster centers as its parameter: :func:`fastdc.dec_loss` for a training loop.

    Parameters
    ----------
    centers : Tensor of shape (n_clusters, n_latent)
        Where the centers start, from k-means in the embedding for instance.
    alpha, power, frequency_power : float
        As in :func:`fastdc.dec_loss`.

    Examples
    --------
    >>> import torch
    >>> criterion = DECLoss(torch.tensor([[0.0], [4.0]]))
    >>> loss = criterion(torch.tensor([[0.0], [1.0], [4.0]]))
    >>> loss.backward()
    >>> criterion.centers.grad.shape
    torch.Size([2, 1])
    """

    def __init__(self, centers: Tensor, alpha: float = 1.0, power: float = 2.0, frequency_power: float = 1.0) -> None:
        super().__init__()
        self.centers = nn.Parameter(centers.detach().clone())
        self.alpha, self.power, self.frequency_power = alpha, power, frequency_power

    def forward(
        self,
        z: Tensor,
        target: Tensor | None = None,
        *,
        target_z: Tensor | None = None,
        target_centers: Tensor | None = None,
        frequency: Tensor | None = None,
    ) -> Tensor:
        """The loss of the rows ``z``; the target is one of the four of :func:`fastdc.dec_loss`."""
        return dec_loss(
            z,
            self.centers,
            target=target,
            target_x=target_z,
            target_centers=target_centers,
            frequency=frequency,
            alpha=self.alpha,
            power=self.power,
            frequency_power=self.frequency_power,
        )


class SwAVLoss(nn.Module):
    """The swapped prediction of SwAV with prototypes as its parameter: :func:`fastdc.swapped_prediction_loss`.

    Parameters
    ----------
    n_features, n_prototypes : int
        Of the embeddings, and how many prototypes there are; they start as random directions.
    temperature, epsilon, n_iters
        As in :func:`fastdc.swapped_prediction_loss`.
    normalize : bool
        Whether embeddings and prototypes are given length one first, as in SwAV.

    Examples
    --------
    >>> import torch
    >>> criterion = SwAVLoss(8, 5)
    >>> loss = criterion(torch.randn(20, 8), torch.randn(20, 8))
    >>> loss.backward()
    >>> criterion.prototypes.grad.shape
    torch.Size([5, 8])
    """

    def __init__(
        self,
        n_features: int,
        n_prototypes: int,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        n_iters: int = 3,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(nn.functional.normalize(torch.randn(n_prototypes, n_features)))
        self.temperature, self.epsilon, self.n_iters = temperature, epsilon, n_iters
        self.normalize = normalize

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss of the embeddings of two views of the same samples."""
        prototypes: Tensor = self.prototypes
        if self.normalize:
            z1, z2, prototypes = (nn.functional.normalize(t, dim=1) for t in (z1, z2, prototypes))
        return swapped_prediction_loss(z1, z2, prototypes, self.temperature, self.epsilon, self.n_iters)
