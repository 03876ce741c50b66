"""The Gaussian mixture as the prior of a variational autoencoder: the docstring is the specification."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdc.kernels._autograd import refuse_transforms
from fastdc.kernels._backend import choose
from fastdc.kernels._group import check_group, shares_of
from fastdc.kernels._precision import working_dtype
from fastdc.kernels.gaussian_mixture import custom_ops
from fastdc.kernels.gaussian_mixture.checks import check_latent
from fastdc.kernels.gaussian_mixture.reference import vade_loss_reference


def vade_loss(
    z: Tensor,
    mu: Tensor,
    log_var: Tensor,
    means: Tensor,
    log_vars: Tensor,
    logits: Tensor,
    *,
    detach_responsibilities: bool = False,
    group: Any = None,
    backend: str | None = None,
) -> Tensor:
    r"""The divergence in VaDE's objective: of q(z, c | x) from a mixture prior, its responsibilities of the sample z.

    .. math::
        L = \frac{1}{n} \sum_i \Big[ \sum_c \gamma_{ic} \Big( \frac12 \sum_d \Big( \log \sigma_{cd}^2
        + \frac{s_{id}^2 + (m_{id} - \mu_{cd})^2}{\sigma_{cd}^2} \Big) + \log \frac{\gamma_{ic}}{\pi_c} \Big)
        - \frac12 \sum_d (1 + \log s_{id}^2) \Big]

    with :math:`\gamma_{ic} \propto \pi_c \mathcal{N}(z_i; \mu_c, \sigma_c^2)`, where
    :math:`\log \mathcal{N} = -\frac12 \sum_d (\log 2 \pi + \log \sigma_{cd}^2 + (z_{id} - \mu_{cd})^2 / \sigma_{cd}^2)`
    with every half kept. Minus the evidence bound is L plus the reconstruction error of a row. Same as, without any
    (n_samples, n_components, n_features) intermediate::

        log_pi, scale = logits.log_softmax(0), (log_vars / 2).exp()
        log_gamma = (log_pi + torch.distributions.Normal(means, scale).log_prob(z[:, None]).sum(2)).log_softmax(1)
        spread = (mu[:, None] - means) ** 2 + log_var.exp()[:, None]
        expected = (log_vars + spread * (-log_vars).exp()).sum(2) / 2
        loss = (log_gamma.exp() * (expected + log_gamma - log_pi)).sum(1) - (1 + log_var).sum(1) / 2
        loss = loss.mean()

    Parameters
    ----------
    z : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Samples of the posterior, ``mu + (log_var / 2).exp() * torch.randn_like(mu)``. Any strides.
    mu, log_var : Tensor of shape (n_samples, n_features)
        Mean m and log variance of the encoder's posterior.
    means, log_vars : Tensor of shape (n_components, n_features)
        Of the mixture's components. Dtypes may differ.
    logits : Tensor of shape (n_components,)
        Of the mixture's weights: :math:`\pi` is their softmax. Of given weights pass the logarithms.
    detach_responsibilities : bool
        Whether the gammas are constants: then z gets no gradient from here, and means and variances none through
        the gammas.
    group : torch.distributed.ProcessGroup, optional
        Over whose processes the rows are spread, each with any number of them, in eager mode. Each process returns
        W / N times the sum over its own rows, with W processes and N rows in all, so that the average over the
        processes, which ``DistributedDataParallel`` makes of the gradients too, is what one process with all rows
        gets.
    backend : {None, "reference", "numba", "triton"}
        None chooses by device (see ``fastdc.explain``); a name forces it or raises ``BackendError``.

    Returns
    -------
    loss : Tensor, zero-dimensional, float32 (float64 where an input is)
        Mean over rows; with a group as said there.

    Notes
    -----
    Gradients: to z, mu, log_var, means, log_vars and logits, computed in the forward pass, each in its input's
    dtype; a second derivative raises.
    Memory: the gradients; on CPUs 520 bytes a component and 2 KB a feature for each thread, on GPUs three numbers a
    row.
    Precision: computed in float32 or wider of differences z - mean and mu - z; sums over rows in float64.
    The logarithms of the weights and variances cancel out of the loss but for those in the density of z, and are
    left out.
    Limits: log_var and -log_vars up to 88 in float32; a row that is not finite makes the loss NaN.
    Determinism: same bits for any number of threads on CPUs; on GPUs sums are made in a fixed order.

    References
    ----------
    Jiang, Zheng, Tan, Tang, Zhou. Variational Deep Embedding. IJCAI 2017, eq. (12) without the reconstruction, and
    eq. (16) for the responsibilities.

    Examples
    --------
    >>> import torch
    >>> mu, log_var, means = torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(3, 2)
    >>> vade_loss(mu, mu, log_var, means, torch.zeros(3, 2), torch.zeros(3)).item()
    0.0
    """
    check_latent(z, mu, log_var, means, log_vars, logits)
    check_group(group)
    name = choose("vade_loss", z, backend)
    detach, dtype = bool(detach_responsibilities), working_dtype(z, mu, log_var, means, log_vars, logits)
    leaves = z, mu, log_var, means, log_vars, torch.log_softmax(logits.to(dtype), dim=0)
    rows: float = z.shape[0]
    if group is not None:
        shares = shares_of(z.shape[0], group, z.device)
        rows = shares.total / len(shares.counts)
    if name == "reference":
        return vade_loss_reference(*leaves, detach) / rows
    refuse_transforms("vade_loss", *leaves)
    return custom_ops.vade_loss(name, list(leaves), detach) / rows
