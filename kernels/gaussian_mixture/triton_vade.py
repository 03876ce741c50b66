"""GPU kernels of VaDE's loss: what rows are worth, then the gradients of rows, and those of components."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from fastdc.kernels._precision import working_dtype
from fastdc.kernels._triton import ALL_REGISTERS, Chip, Launch, chip_of, launch, row_splits
from fastdc.kernels.gaussian_mixture import triton_vade_tiles as tiles


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
    dtype = working_dtype(z, mu, log_var, means, log_vars, log_weights)
    z, mu, log_var, means, log_vars, log_weights = (t.detach() for t in (z, mu, log_var, means, log_vars, log_weights))
    (n, d), k = z.shape, means.shape[0]
    choice = launch_of(k, dtype.itemsize, chip_of(z))
    row_programs, component_programs = triton.cdiv(n, choice.block_n), triton.cdiv(k, choice.block_k)
    precision = log_vars.double().neg().exp()
    log_norm = log_weights.double() - log_vars.double().sum(dim=1) / 2
    components = (means.to(dtype).contiguous(), precision.to(dtype).contiguous(), log_norm.to(dtype))
    given = (z, *z.stride(), mu, *mu.stride(), log_var, *log_var.stride(), *components)
    kept = [torch.empty(n, dtype=dtype, device=z.device) for _ in range(3)]
    losses = torch.empty(row_programs, dtype=torch.float64, device=z.device)
    need_rows = any(needs[:3])
    grads = [torch.empty((n, d) if need_rows else (0,), dtype=dtype, device=z.device) for _ in range(3)]
    blocks = {
        "BLOCK_N": choice.block_n,
        "BLOCK_K": choice.block_k,
        "num_warps": choice.num_warps,
        "num_stages": choice.num_stages,
        **ALL_REGISTERS,
    }
    options = {"DETACHED": detach_responsibilities, **blocks}
    with torch.cuda.device_of(z):
        tiles._vade_rows_kernel[(row_programs,)](*given, *kept, losses, n, k, d, **blocks)
        if need_rows:
            tiles._vade_gradients_kernel[(row_programs,)](*given, *kept, *grads, n, k, d, **options)
    grads = [grad if need else grad.new_empty(0) for grad, need in zip(grads, needs)]
    of_components = [z.new_empty(0, dtype=dtype) for _ in range(3)]
    if any(needs[3:]):
        n_splits, rows = row_splits(n, component_programs, 16 * k * d, choice.block_n, chip_of(z))
        mass = torch.empty((n_splits, k), dtype=torch.float64, device=z.device)
        first, second = (torch.empty((n_splits, k, d), dtype=torch.float64, device=z.device) for _ in range(2))
        with torch.cuda.device_of(z):
            tiles._vade_components_kernel[(n_splits, component_programs)](
                *given, *kept, mass, first, second, rows, n, k, d, **options
            )
        mass, first, second = (t.sum(dim=0) for t in (mass, first, second))
        found = (precision * first, (precision * second - mass[:, None]) / 2, mass)
        of_components = [g.to(dtype) if need else e for g, e, need in zip(found, of_components, needs[3:])]
    grad_z, grad_mu, grad_log_var, grad_means, grad_log_vars, grad_logits = *grads, *of_components
    return losses.sum().to(dtype), grad_z, grad_mu, grad_log_var, grad_means, grad_log_vars, grad_logits


def launch_of(n_components: int, itemsize: int, chip: Chip) -> Launch:
    """Half the rows of other kernels: a tile holds two numbers a pair."""
    choice = launch(n_components, True, "ieee", itemsize, chip)
    return choice._replace(block_n=choice.block_n // 2)
