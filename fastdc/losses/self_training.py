"""Losses of self-training on one's own confident assignments."""

from __future__ import annotations

from torch import Tensor, nn

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
