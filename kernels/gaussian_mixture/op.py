"""Responsibilities, densities, one pass of EM, and the M-step: the docstrings are the specification."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdc.kernels import _checks
from fastdc.kernels._backend import choose
from fastdc.kernels._checks import check_not_negative, check_points, check_vector
from fastdc.kernels._group import check_group, sum_over
from fastdc.kernels.gaussian_mixture import custom_ops
from fastdc.kernels.gaussian_mixture.checks import check_covariances, check_mixture
from fastdc.kernels.gaussian_mixture.reference import gmm_rows_reference, gmm_step_reference
from fastdc.kernels.gaussian_mixture.update import gmm_update_torch


class GMMResponsibilities(NamedTuple):
    """Posterior probabilities of the components, and the log density of each row."""

    responsibilities: Tensor
    log_density: Tensor


class GMMLogDensity(NamedTuple):
    """The log density of each row, and its most probable component."""

    log_density: Tensor
    labels: Tensor


class GMMStep(NamedTuple):
    """What one pass over the rows yields. ``merge`` adds up those of chunks under the same parameters."""

    log_likelihood: Tensor
    counts: Tensor
    sums: Tensor
    scatters: Tensor
    n_invalid: Tensor

    @staticmethod
    def merge(parts: Iterable[GMMStep]) -> GMMStep:
        """The step over all rows from those of chunks: every field is a sum over rows."""
        chunks = list(parts)
        if not chunks:
            raise ValueError("merge() needs the result of at least one chunk, got none")
        return GMMStep(*(torch.stack(field).sum(dim=0) for field in zip(*chunks)))


class GMMParameters(NamedTuple):
    """In the order in which the ops take them."""

    means: Tensor
    covariances: Tensor
    weights: Tensor


def gmm_responsibilities(
    x: Tensor,
    means: Tensor,
    covariances: Tensor,
    weights: Tensor,
    covariance_type: str = "diag",
    *,
    check_finite: bool = False,
    backend: str | None = None,
) -> GMMResponsibilities:
    r"""Posterior probabilities of the components of a Gaussian mixture: the E-step.

    .. math:: \gamma_{ij} = \frac{w_j \mathcal{N}(x_i; \mu_j, \Sigma_j)}{\sum_l w_l \mathcal{N}(x_i; \mu_l, \Sigma_l)}

    Same as, in the log domain and without an (n_samples, n_components, n_features) intermediate::

        normal = torch.distributions.MultivariateNormal(means, covariances)  # of covariance_type "full"
        log_joint = weights.log() + normal.log_prob(x[:, None])
        responsibilities, log_density = log_joint.softmax(1), log_joint.logsumexp(1)

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Points. Any strides.
    means : Tensor of shape (n_components, n_features)
        May differ from x in floating dtype.
    covariances : Tensor
        Of shape (n_components, n_features), (n_components,), (n_features, n_features) or
        (n_components, n_features, n_features) for the types "diag", "spherical", "tied" and "full", as in
        scikit-learn.
    weights : Tensor of shape (n_components,)
        0 or above, not all 0, adding up to 1 for a density. A component of weight 0 gets no responsibility.
    covariance_type : {"diag", "spherical", "tied", "full"}
    check_finite : bool
        Raise ValueError where x or means hold NaN or infinity. Off by default: the check waits for the device.
    backend : {None, "reference", "numba", "triton"}
        None chooses by device (see ``fastdc.explain``); a name forces it or raises ``BackendError``.

    Returns
    -------
    responsibilities : Tensor of shape (n_samples, n_components)
        Rows sum to 1. float64 where x or means is, else float32. NaN where a row has no finite density.
    log_density : Tensor of shape (n_samples,), of the same dtype
        log sum_j w_j N(x_i; mu_j, Sigma_j).

    Raises
    ------
    ValueError
        If a covariance is not positive definite, or the weights are no weights. The check waits for the device.

    Notes
    -----
    Gradients: none; the results are detached.
    Memory: the results, and on CPUs 800 bytes a component and thread. On GPUs "diag" and "spherical" run in one
    kernel; "tied" and "full" in torch's products, a chunk of rows and one component at a time.
    Precision: covariances are factored in float64. Densities are computed of differences x - mean ("tied": of rows
    whitened about the mean of the means) in float32 or wider, in the log domain: nothing underflows.
    Limits: a row has no finite density where it is not finite, or where half its least squared Mahalanobis distance
    exceeds the dtype's range (3.4e38).
    Determinism: same bits for any number of threads on CPUs.

    References
    ----------
    Dempster, Laird, Rubin. Maximum Likelihood from Incomplete Data via the EM Algorithm. JRSS B, 1977.

    Examples
    --------
    >>> import torch
    >>> means, weights = torch.tensor([[0.0], [2.0]]), torch.tensor([0.5, 0.5])
    >>> gmm_responsibilities(torch.tensor([[1.0]]), means, torch.ones(2), weights, "spherical").responsibilities
    tensor([[0.5000, 0.5000]])
    """
    gamma, log_density, _ = _rows(
        "gmm_responsibilities", (x, means, covariances, weights), covariance_type, True, check_finite, backend
    )
    return GMMResponsibilities(gamma, log_density)


def gmm_log_density(
    x: Tensor,
    means: Tensor,
    covariances: Tensor,
    weights: Tensor,
    covariance_type: str = "diag",
    *,
    check_finite: bool = False,
    backend: str | None = None,
) -> GMMLogDensity:
    """Log density and most probable component of each row, without responsibilities.

    Same as::

        responsibilities, log_density = gmm_responsibilities(x, means, covariances, weights, covariance_type)
        labels = responsibilities.argmax(1)

    Parameters
    ----------
    x, means, covariances, weights, covariance_type, check_finite, backend
        As in :func:`gmm_responsibilities`.

    Returns
    -------
    log_density : Tensor of shape (n_samples,)
        float64 where x or means is, else float32. scikit-learn's ``score_samples``.
    labels : Tensor of shape (n_samples,), int64
        Of equally probable components the first; -1 for a row without a finite density.

    Notes
    -----
    As of :func:`gmm_responsibilities`, but nothing of shape (n_samples, n_components) is made.

    Examples
    --------
    >>> import torch
    >>> x, means, weights = torch.tensor([[0.0], [9.0]]), torch.tensor([[0.0], [9.0]]), torch.tensor([0.5, 0.5])
    >>> gmm_log_density(x, means, torch.ones(2), weights, "spherical").labels
    tensor([0, 1])
    """
    _, log_density, labels = _rows(
        "gmm_log_density", (x, means, covariances, weights), covariance_type, False, check_finite, backend
    )
    return GMMLogDensity(log_density, labels)


def gmm_step(
    x: Tensor,
    means: Tensor,
    covariances: Tensor,
    weights: Tensor,
    covariance_type: str = "diag",
    *,
    sample_weight: Tensor | None = None,
    check_finite: bool = False,
    group: Any = None,
    backend: str | None = None,
) -> GMMStep:
    r"""Everything an iteration of EM needs, from one pass over the rows.

    Same as, without any (n_samples, n_components) matrix::

        gamma, log_density = gmm_responsibilities(x, means, covariances, weights, covariance_type)
        gamma = gamma * sample_weight[:, None]
        log_likelihood = (log_density * sample_weight).sum()
        difference = x[:, None] - means
        counts = gamma.sum(0)
        sums = torch.einsum("nk,nkd->kd", gamma, difference)
        scatters = torch.einsum("nk,nkd,nke->kde", gamma, difference, difference)  # of covariance_type "full"

    Statistics are about the means given rather than about zero, so that :func:`gmm_update` subtracts nothing large.

    Parameters
    ----------
    x, means, covariances, weights, covariance_type, check_finite, backend
        As in :func:`gmm_responsibilities`.
    sample_weight : Tensor of shape (n_samples,), optional
        Finite, 0 or above. None is one for each row.
    group : torch.distributed.ProcessGroup, optional
        Over whose processes the rows are spread, each with any number of them, in eager mode. All processes get the
        statistics of all rows: those of a process are added up by one ``all_reduce``.

    Returns
    -------
    log_likelihood : Tensor, float64, zero-dimensional
        Weighted sum over rows of the log density. scikit-learn's ``lower_bound_`` is its mean.
    counts : Tensor of shape (n_components,), float64
        Weighted sums of responsibilities.
    sums : Tensor of shape (n_components, n_features), float64
        Weighted sums of x - mean.
    scatters : Tensor of the shape of covariances, float64
        Weighted sums of the outer products of x - mean: "tied" summed over components, "diag" their diagonals,
        "spherical" their traces.
    n_invalid : Tensor, int64, zero-dimensional
        How many rows had no finite density; they add to nothing else.

    Notes
    -----
    Gradients: none; the results are detached.
    Memory: on CPUs 800 bytes a component and 4 KB a feature for each thread, and the statistics once more. On GPUs
    "diag" and "spherical" hold three numbers a row and at most 64 MB of partial sums; "tied" and "full" run in
    torch's products, a chunk of rows and one component at a time.
    Precision: log densities as in :func:`gmm_responsibilities`; sums over rows in float64 about the mean of the
    means, which is exact for float32 rows as long as components lie less than 1e6 standard deviations apart.
    Streaming: call it a chunk of rows at a time with the same parameters; ``GMMStep.merge`` adds up.
    Determinism: same bits for any number of threads on CPUs.

    References
    ----------
    Dempster, Laird, Rubin. Maximum Likelihood from Incomplete Data via the EM Algorithm. JRSS B, 1977.

    Examples
    --------
    >>> import torch
    >>> x, means = torch.tensor([[-1.0], [1.0]]), torch.zeros(1, 1)
    >>> step = gmm_step(x, means, torch.ones(1, 1), torch.ones(1), "diag")
    >>> step.counts.tolist(), step.sums.tolist(), step.scatters.tolist()
    ([2.0], [[0.0]], [[2.0]])
    """
    check_mixture(x, means, covariances, weights, covariance_type)
    if sample_weight is not None:
        check_vector(sample_weight, x.shape[0], "sample_weight", x, "rows")
        sample_weight = sample_weight.detach()
    if check_finite:
        _checks.check_finite(("x", x), ("means", means), ("sample_weight", sample_weight))
    check_group(group)
    name = choose("gmm_step", x, backend)
    tensors = x.detach(), means.detach(), covariances.detach(), weights.detach()
    if name == "reference":
        step = GMMStep(*gmm_step_reference(*tensors, sample_weight, covariance_type))
    else:
        step = GMMStep(*custom_ops.gmm_step(name, *tensors, sample_weight, covariance_type))
    return step if group is None else _over_ranks(step, group)


def _over_ranks(step: GMMStep, group: Any) -> GMMStep:
    """The sums of all processes; a count of rows is exact in float64."""
    flat = sum_over(torch.cat([field.flatten().double() for field in step]), group)
    fields = flat.split([field.numel() for field in step])
    return GMMStep(*(total.view_as(field).to(field.dtype) for total, field in zip(fields, step)))


def gmm_update(
    step: GMMStep,
    means: Tensor,
    covariances: Tensor,
    covariance_type: str = "diag",
    reg_covar: float = 1e-6,
) -> GMMParameters:
    """New parameters from the statistics of :func:`gmm_step`: the M-step, as scikit-learn's.

    Same as, for the type "diag" and without its 0 / 0::

        shift = step.sums / step.counts[:, None]
        new_means = means + shift
        new_covariances = step.scatters / step.counts[:, None] - shift.square() + reg_covar
        new_weights = step.counts / step.counts.sum()

    Parameters
    ----------
    step : GMMStep
        Of all rows, under the parameters given here.
    means, covariances : Tensor
        Those of the step. A component without weight keeps them (scikit-learn moves its mean to zero).
    covariance_type : {"diag", "spherical", "tied", "full"}
    reg_covar : float, 0 or above
        Added to the diagonals.

    Returns
    -------
    means, covariances, weights : Tensor
        New ones, in the dtypes of means, covariances and means: ``gmm_step(x, *parameters, covariance_type)``.

    Examples
    --------
    >>> import torch
    >>> x, means, covariances = torch.tensor([[-1.0], [3.0]]), torch.zeros(1, 1), torch.ones(1, 1)
    >>> step = gmm_step(x, means, covariances, torch.ones(1), "diag")
    >>> gmm_update(step, means, covariances, "diag", reg_covar=0.0)
    GMMParameters(means=tensor([[1.]]), covariances=tensor([[4.]]), weights=tensor([1.]))
    """
    check_points(means, "means")
    check_covariances(covariances, means, covariance_type)
    reg_covar = check_not_negative(reg_covar, "reg_covar")
    for name, value, like in (("sums", step.sums, means), ("scatters", step.scatters, covariances)):
        if value.shape != like.shape:
            raise ValueError(
                f"step.{name} has shape {tuple(value.shape)}, wanted is {tuple(like.shape)}; give the means, "
                "covariances and covariance_type of that step"
            )
    parameters = (means.detach(), covariances.detach(), reg_covar, covariance_type)
    return GMMParameters(*gmm_update_torch(step.counts, step.sums, step.scatters, *parameters))


def _rows(
    op: str,
    mixture: tuple[Tensor, Tensor, Tensor, Tensor],
    covariance_type: str,
    want_responsibilities: bool,
    check_finite: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Responsibilities, log density and labels of x under the means, covariances and weights of ``mixture``."""
    x, means, covariances, weights = mixture
    check_mixture(*mixture, covariance_type)
    if check_finite:
        _checks.check_finite(("x", x), ("means", means))
    name = choose(op, x, backend)
    tensors = x.detach(), means.detach(), covariances.detach(), weights.detach()
    if name == "reference":
        return gmm_rows_reference(*tensors, covariance_type)
    return custom_ops.gmm_rows(name, *tensors, covariance_type, want_responsibilities)
