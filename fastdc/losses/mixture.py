"""Losses of variational autoencoders whose prior is a mixture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastdc.kernels._checks import check_points, check_vector
from fastdc.kernels.gaussian_mixture import gmm_responsibilities, vade_loss


class VaDELoss(nn.Module):
    """The divergence in VaDE's objective with the mixture as its parameters: :func:`fastdc.vade_loss`.

    Add the reconstruction error of a row, summed over its features, and the sum is minus the evidence bound.

    Parameters
    ----------
    means : Tensor of shape (n_components, n_features)
        Where the components start, as those of a Gaussian mixture of the embeddings.
    covariances : Tensor of shape (n_components, n_features), optional
        Their variances; ones if not given.
    weights : Tensor of shape (n_components,), optional
        Above 0, up to a factor; equal if not given.
    detach_responsibilities : bool
        As in :func:`fastdc.vade_loss`.
    group : torch.distributed.ProcessGroup, optional
        As in :func:`fastdc.vade_loss`. Not part of ``state_dict``.

    Attributes
    ----------
    means, log_vars, logits : Parameter
        ``weights`` is the softmax of ``logits``.

    Examples
    --------
    >>> import torch
    >>> criterion = VaDELoss(torch.tensor([[-2.0], [2.0]]))
    >>> mu, log_var = torch.tensor([[-2.0], [1.5]]), torch.zeros(2, 1)
    >>> z = mu + (log_var / 2).exp() * torch.randn(2, 1)
    >>> criterion(z, mu, log_var).backward()
    >>> criterion.means.grad.shape
    torch.Size([2, 1])
    """

    def __init__(
        self,
        means: Tensor,
        covariances: Tensor | None = None,
        weights: Tensor | None = None,
        detach_responsibilities: bool = False,
        group: Any = None,
    ) -> None:
        super().__init__()
        check_points(means, "means")
        if covariances is None:
            covariances = torch.ones_like(means)
        if covariances.shape != means.shape:
            raise ValueError(
                f"covariances must have the shape of means, {tuple(means.shape)}, got {tuple(covariances.shape)}"
            )
        weights = torch.ones_like(means[:, 0]) if weights is None else weights
        check_vector(weights, means.shape[0], "weights", means, "components")
        for name, value in (("covariances", covariances), ("weights", weights)):
            if not bool((value > 0).all()):
                raise ValueError(f"{name} must be above 0, got {float(value.min())}")
        self.means = nn.Parameter(means.detach().clone())
        self.log_vars = nn.Parameter(covariances.detach().log().to(means.dtype))
        self.logits = nn.Parameter(weights.detach().log().to(means.dtype))
        self.detach_responsibilities, self.group = detach_responsibilities, group

    @property
    def weights(self) -> Tensor:
        """Of the components, adding up to 1; detached."""
        return self.logits.detach().softmax(0)

    def forward(self, z: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
        """The mean over rows; z is a sample of the posterior with mean mu and log variance log_var."""
        return vade_loss(
            z,
            mu,
            log_var,
            self.means,
            self.log_vars,
            self.logits,
            detach_responsibilities=self.detach_responsibilities,
            group=self.group,
        )

    @torch.no_grad()
    def predict_proba(self, z: Tensor) -> Tensor:
        """Responsibilities (n_samples, n_components) of rows z, the posterior's means for instance."""
        return gmm_responsibilities(z, self.means, self.log_vars.exp(), self.weights).responsibilities
