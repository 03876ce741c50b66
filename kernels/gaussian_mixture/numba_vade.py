"""CPU kernel of VaDE's loss: blocks of rows on threads around the compiled functions of ``numba_vade_tiles.py``."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastdc.kernels._lanes import make_corner, padded
from fastdc.kernels._parallel import block_rows, n_workers, run_blocks
from fastdc.kernels._precision import working_dtype
from fastdc.kernels._rows import Rows, as_array, empty, numpy_dtype
from fastdc.kernels._vectors import LANES
from fastdc.kernels.gaussian_mixture import numba_vade_tiles as tiles

TERM_NS = 0.6  # nanoseconds that a feature of a row and component takes, gradients included
LARGEST_LOG_VAR = {np.dtype(np.float32): 88.0, np.dtype(np.float64): 709.0}  # whose exponentials are finite


def vade_loss(
    z: Tensor,
    mu: Tensor,
    log_var: Tensor,
    means: Tensor,
    log_vars: Tensor,
    log_weights: Tensor,
    detach_responsibilities: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sum over rows, and the gradients of the six tensors in the working dtype, of length 0 where not needed."""
    dtype = numpy_dtype(working_dtype(z, mu, log_var, means, log_vars, log_weights))
    (n, d), k = z.shape, means.shape[0]
    rows = [Rows(t, dtype) for t in (z, mu, log_var)]
    components, precision = _components(means, log_vars, log_weights, dtype)
    grads = [empty((n, d) if need else (0, d), dtype) for need in needs[:3]]
    grad_rows = [grad.numpy() for grad in grads]
    block = block_rows(n, row_ns=TERM_NS * k * (d + 3))
    workers = range(n_workers(-(-n // block)))
    scratch = [_scratch(k, d, dtype) for _ in workers]
    total, *partial = (_sums(k, d, needs[3] or needs[4]) for _ in (None, *workers))
    largest = dtype.type(LARGEST_LOG_VAR[dtype])

    def work(worker: int, start: int, stop: int) -> None:
        part = slice(start, stop)
        given = tiles.Rows(*(r[part] for r in rows))
        wanted = tiles.Rows(*(grad[part] for grad in grad_rows))
        tiles.loss_block(given, components, scratch[worker], largest, detach_responsibilities, wanted, partial[worker])

    def commit(worker: int) -> None:
        for whole, part in zip(total, partial[worker]):
            whole += part
            part[:] = 0.0

    run_blocks(n, block, work, commit)
    of_components = (
        precision * total.first if needs[3] else np.zeros(0),
        (precision * total.second - total.mass[:, None]) / 2 if needs[4] else np.zeros(0),
        total.mass if needs[5] else np.zeros(0),
    )
    loss = torch.from_numpy(total.loss.astype(dtype))[0]
    grad_z, grad_mu, grad_log_var = (grad if need else grad.reshape(0) for grad, need in zip(grads, needs))
    grad_means, grad_log_vars, grad_log_weights = (torch.from_numpy(g.astype(dtype)) for g in of_components)
    return loss, grad_z, grad_mu, grad_log_var, grad_means, grad_log_vars, grad_log_weights


def _components(
    means: Tensor, log_vars: Tensor, log_weights: Tensor, dtype: np.dtype
) -> tuple[tiles.Components, np.ndarray]:
    """As the tiles want them, and the precisions in float64."""
    of_vars, of_weights = as_array(log_vars, dtype).astype(np.float64), as_array(log_weights[:, None], dtype)[:, 0]
    with np.errstate(over="ignore"):
        precision = np.exp(-of_vars)
    log_norm = (of_weights - of_vars.sum(axis=1) / 2).astype(dtype)
    return tiles.Components(as_array(means, dtype), precision.astype(dtype), log_norm), precision


def _scratch(k: int, d: int, dtype: np.dtype) -> tiles.Scratch:
    width = padded(d)
    z, mu, e, half_w, variance = (np.empty((width, LANES), dtype) for _ in range(5))
    return tiles.Scratch(
        z,
        mu,
        e,
        half_w,
        variance,
        gamma=np.empty((k, LANES), dtype),
        quotient=np.empty((k, LANES), dtype),
        lanes=np.empty((tiles.N_SLOTS, LANES), dtype),
        grads=np.empty((3, width, LANES), dtype),
        corner=make_corner(dtype),
        zeros=np.zeros(width, dtype),
    )


def _sums(k: int, d: int, of_components: bool) -> tiles.Sums:
    shape = (k if of_components else 0, d)
    return tiles.Sums(np.zeros(1), np.zeros(k), np.zeros(shape), np.zeros(shape))
