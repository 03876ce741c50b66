"""GPU kernels: launchers with the same functions as ``numba_kernel.py``.

Rows are read once from memory; beyond 1024 clusters once more for their sum. No sum over rows uses atomics,
so results are deterministic.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from fastdc.kernels._precision import working_dtype
from fastdc.kernels._triton import chip_of, row_splits, tile_of
from fastdc.kernels.mutual_information import triton_tiles as tiles

TL = {torch.float32: triton.language.float32, torch.float64: triton.language.float64}


def entropy_rows(x: Tensor, from_logits: bool, want_entropy: bool) -> tuple[Tensor, Tensor]:
    """Entropy of each row (h, n), of length 0 where not wanted, and sum of p over rows (h, k), float64."""
    x = x.detach()
    heads, n, k = x.shape
    tile, dtype, device = tile_of(k), working_dtype(x), x.device
    one_tile = k <= tile.block_k
    entropy = torch.empty((heads, n) if want_entropy else (0,), dtype=dtype, device=device)
    kept = torch.empty((2, heads, n) if from_logits and not one_tile else (2, 0), dtype=dtype, device=device)
    column_programs = heads if one_tile else heads * triton.cdiv(k, tile.block_k)
    n_splits, rows = row_splits(n, column_programs, 8 * heads * k, tile.block_n, chip_of(x))
    partial = torch.empty((n_splits, heads, k), dtype=torch.float64, device=device)
    with torch.cuda.device_of(x):
        if one_tile or from_logits or want_entropy:
            tiles._entropy_rows_kernel[(n_splits, heads)](
                x, *x.stride(), entropy, kept[0], kept[1], partial, rows, n, k,
                FROM_LOGITS=from_logits, WANT_ENTROPY=want_entropy, ONE_TILE=one_tile, **tile.constants,
            )  # fmt: skip
        if not one_tile:
            tiles._mass_kernel[(n_splits, heads, triton.cdiv(k, tile.block_k))](
                x, *x.stride(), kept[0], kept[1], partial, rows, n, k, FROM_LOGITS=from_logits, **tile.constants
            )
    return entropy, partial.sum(dim=0)


def entropy_rows_backward(x: Tensor, grad_entropy: Tensor | None, grad_mass: Tensor, from_logits: bool) -> Tensor:
    """Gradient (h, n, k) in the dtype of x; of logits p (t - E[t]) with t = grad_mass - grad_entropy ln p."""
    heads, n, k = x.shape
    tile, dtype = tile_of(k), working_dtype(x)
    entropy = torch.zeros(1, dtype=dtype, device=x.device) if grad_entropy is None else grad_entropy.to(dtype)
    entropy = entropy.expand(heads, n)
    gradient = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        tiles._entropy_backward_kernel[(triton.cdiv(n, tile.block_n), heads)](
            x, *x.stride(), entropy, *entropy.stride(), grad_mass.to(dtype).contiguous(), gradient, n, k,
            FROM_LOGITS=from_logits, **tile.constants,
        )  # fmt: skip
    return gradient


def vat_kl(perturbed: Tensor, logits: Tensor, need_gradient: bool) -> tuple[Tensor, Tensor]:
    """Sum over rows of KL(softmax(logits) || softmax(perturbed)), and its gradient to ``perturbed``."""
    a, b = logits.detach(), perturbed.detach()
    heads, n, k = b.shape
    tile, dtype = tile_of(k), working_dtype(a, b)
    programs = triton.cdiv(n, tile.block_n)
    gradient = torch.empty((heads, n, k) if need_gradient else (0,), dtype=dtype, device=b.device)
    losses = torch.empty((programs, heads), dtype=torch.float64, device=b.device)
    with torch.cuda.device_of(b):
        tiles._vat_kl_kernel[(programs, heads)](
            a, *a.stride(), b, *b.stride(), losses, gradient, n, k,
            NEED_GRADIENT=need_gradient, ACC=TL[dtype], **tile.constants,
        )  # fmt: skip
    return losses.sum().to(dtype), gradient
