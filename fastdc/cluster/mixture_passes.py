"""One pass of EM over all rows: those of a tensor, of a row source, or those that processes share.

Blocks of rows have the same statistics whoever computes them. Those of a source are added in the order of the blocks,
those of processes as whole numbers (``exact.py``).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.cluster.exact import ExactSum, exponent_of, sum_over_ranks
from fastdc.cluster.sharded import ShardedRows
from fastdc.cluster.streaming import StreamedRows
from fastdc.kernels.gaussian_mixture import GMMParameters, GMMStep, gmm_step

LIKELIHOOD = 1000  # exponent of the largest log-likelihood of a block that is told from others
LIKELIHOOD_BOUND, LIKELIHOOD_LIMBS = LIKELIHOOD + 22, 27  # down to 2^-80
MOST = 1000  # exponent that sums of statistics must stay below


def mixture_pass(
    x: Tensor | StreamedRows, parameters: GMMParameters, covariance_type: str, backend: str | None
) -> GMMStep:
    """``gmm_step`` of all rows."""
    if isinstance(x, ShardedRows):
        return _shared_pass(x, parameters, covariance_type, backend)
    if not isinstance(x, StreamedRows):
        return gmm_step(x, *parameters, covariance_type, backend=backend)
    total: list[Tensor] = []
    with x.blocks() as blocks:
        for _, rows in blocks:
            part = gmm_step(rows, *parameters, covariance_type, backend=backend)
            total = [a + b for a, b in zip(total, part)] if total else list(part)
    return GMMStep(*total)


def statistics_bounds(
    n_rows: int, largest: NDArray, means: NDArray, covariance_type: str
) -> tuple[NDArray, NDArray, NDArray]:
    """Exponents for ``ExactSum`` of the counts, sums and scatters of ``gmm_step``; they broadcast to these.

    ``largest`` (n_features,) are magnitudes of the rows. Responsibilities of a row add up to 1, and no feature of it is
    farther from a mean than both magnitudes together. Two bits more are for what rounding adds.
    """
    of_rows = exponent_of(n_rows) + 2
    reach = exponent_of(largest) + 1
    reach = np.maximum(reach, exponent_of(np.abs(means).max(axis=0)) + 1)
    if covariance_type == "spherical":
        of_products = 2 * reach.max() + exponent_of(len(reach))
    elif covariance_type == "diag":
        of_products = 2 * reach
    else:
        of_products = reach[:, None] + reach
    return np.asarray(of_rows), of_rows + reach, np.asarray(of_rows + of_products)


def _shared_pass(x: ShardedRows, parameters: GMMParameters, covariance_type: str, backend: str | None) -> GMMStep:
    """The statistics of all ranks, on all of them: one all_reduce."""
    shapes = [parameters.means.shape[:1], parameters.means.shape, parameters.covariances.shape]
    means = parameters.means.double().cpu().numpy()
    bounds = statistics_bounds(len(x), x.largest(), means, covariance_type)
    flat = np.concatenate([np.broadcast_to(bound, shape).ravel() for bound, shape in zip(bounds, shapes)])
    if flat.max() > MOST:
        raise ValueError("X holds values so large that sums of their squares overflow; scale the features")
    statistics = ExactSum(flat.shape, flat, x.device)
    likelihood = ExactSum((1,), np.array([LIKELIHOOD_BOUND]), x.device, LIKELIHOOD_LIMBS)
    invalid = ExactSum((1,), exponent_of(np.array([len(x)])), x.device, 1)
    error = None
    try:
        with x.blocks() as blocks:
            for _, rows in blocks:
                part = gmm_step(rows, *parameters, covariance_type, backend=backend)
                statistics.add(torch.cat([field.flatten() for field in (part.counts, part.sums, part.scatters)]))
                likelihood.add(part.log_likelihood.clamp(-(2.0**LIKELIHOOD), 2.0**LIKELIHOOD).reshape(1))
                invalid.add(part.n_invalid.double().reshape(1))
    except Exception as caught:  # noqa: BLE001 - raised on all ranks
        error = caught
    found, log_likelihood, n_invalid = sum_over_ranks([statistics, likelihood, invalid], x.ranks, error)
    fields = found.split([shape.numel() for shape in shapes])
    counts, sums, scatters = (field.view(shape) for field, shape in zip(fields, shapes))
    return GMMStep(log_likelihood[0], counts, sums, scatters, n_invalid[0].long())
