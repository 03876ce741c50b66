"""Responsibilities, one pass of EM, and the M-step: the docstrings are the specification."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from fastdc.kernels import _checks
from fastdc.kernels._backend import choose
from fastdc.kernels._checks import check_points, check_vector
from fastdc.kernels.gaussian_mixture import custom_ops
from fastdc.kernels.gaussian_mixture.checks import check_covariances, check_mixture
from fastdc.kernels.gaussian_mixture.reference import gmm_responsibilities_reference, gmm_step_reference
from fastdc.kernels.gaussian_mixture.update import gmm_update_torch


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
    covariance_type: str = "full",
    *,
    check_finite: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""Posterior probabilities of the components of a Gaussian mixture: the E-step.

    .. math:: \gamma_{ij} = \frac{w_j \mathcal{N}(x_i; \mu_j, \Sigma_j)}{\sum_l w_l \mathcal{N}(x_i; \mu_l, \Sigma_l)}

    Same as, in the log domain and without an (n_samples, n_components, n_features) intermediate::

        normal = torch.distributions.MultivariateNormal(means, covariances)  # of covariance_type "full"
        gamma = (weights.log() + normal.log_prob(x[:, None])).softmax(1)

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Points. Any strides.
    means : Tensor of shape (n_components, n_features)
        May differ from x in floating dtype.
    covariances : Tensor
        Of shape (n_components, n_features, n_features), (n_features, n_features), (n_components, n_features) or
        (n_components,) for the types "full", "tied", "diag" and "spherical", as in scikit-learn.
    weights : Tensor of shape (n_components,)
        0 or above, not all 0. A component of weight 0 gets no responsibility.
    covariance_type : {"full", "tied", "diag", "spherical"}
    check_finite : bool
        Raise ValueError where x or means hold NaN or infinity. Off by default: the check waits for the device.
    backend : {None, "reference", "numba"}
        None chooses by device; a name forces it or raises ``BackendError``. On GPUs the op runs in plain torch.

    Returns
    -------
    gamma : Tensor of shape (n_samples, n_components)
        Rows sum to 1. float64 where x or means is, else float32. NaN where a row is not finite.

    Raises
    ------
    ValueError
        If a covariance is not positive definite, or the weights are no weights. The check waits for the device.

    Notes
    -----
    Gradients: none; the result is detached.
    Memory: the result, and 800 bytes a component and thread.
    Precision: covariances are factored in float64. Densities are computed of differences x - mean ("tied": of rows
    whitened about the mean of the means) in float32 or wider, in the log domain: nothing underflows.
    Limits: rows whose squared Mahalanobis distances exceed the dtype's range (3.4e38) count as not finite.
    Determinism: same bits for any number of threads on CPUs.

    References
    ----------
    Dempster, Laird, Rubin. Maximum Likelihood from Incomplete Data via the EM Algorithm. JRSS B, 1977.

    Examples
    --------
    >>> import torch
    >>> means, weights = torch.tensor([[0.0], [2.0]]), torch.tensor([0.5, 0.5])
    >>> gmm_responsibilities(torch.tensor([[1.0]]), means, torch.ones(2), weights, "spherical")
    tensor([[0.5000, 0.5000]])
    """
    check_mixture(x, means, covariances, weights, covariance_type)
    if check_finite:
        _checks.check_finite(("x", x), ("means", means))
    name = _choose("gmm_responsibilities", x, backend)
    tensors = tuple(t.detach() for t in (x, means, covariances, weights))
    if name == "reference":
        return gmm_responsibilities_reference(*tensors, covariance_type)
    return custom_ops.gmm_responsibilities(*tensors, covariance_type)


def gmm_step(
    x: Tensor,
    means: Tensor,
    covariances: Tensor,
    weights: Tensor,
    covariance_type: str = "full",
    *,
    sample_weight: Tensor | None = None,
    check_finite: bool = False,
    backend: str | None = None,
) -> GMMStep:
    r"""Everything an iteration of EM needs, from one pass over the rows.

    Same as, without any (n_samples, n_components) matrix::

        gamma = gmm_responsibilities(x, means, covariances, weights, covariance_type) * sample_weight[:, None]
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
    Memory: per thread 800 bytes a component and 4 KB a feature, and the statistics once more (of "full" half of
    them, with each row of a matrix rounded up to 16 features).
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
    name = _choose("gmm_step", x, backend)
    tensors = tuple(t.detach() for t in (x, means, covariances, weights))
    if name == "reference":
        return GMMStep(*gmm_step_reference(*tensors, sample_weight, covariance_type))
    return GMMStep(*custom_ops.gmm_step(*tensors, sample_weight, covariance_type))


def gmm_update(
    step: GMMStep,
    means: Tensor,
    covariances: Tensor,
    covariance_type: str = "full",
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
    covariance_type : {"full", "tied", "diag", "spherical"}
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
    if not 0.0 <= float(reg_covar) < float("inf"):
        raise ValueError(f"reg_covar must be a finite number, 0 or above, got {reg_covar}")
    for name, value, like in (("sums", step.sums, means), ("scatters", step.scatters, covariances)):
        if value.shape != like.shape:
            raise ValueError(
                f"step.{name} has shape {tuple(value.shape)}, wanted is {tuple(like.shape)}; give the means, "
                "covariances and covariance_type of that step"
            )
    parameters = (means.detach(), covariances.detach(), float(reg_covar), covariance_type)
    return GMMParameters(*gmm_update_torch(step.counts, step.sums, step.scatters, *parameters))
