"""CPU kernel of orthogonal matching pursuit: correlations stay in a tile, of which only the largest is kept."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastdc.kernels import _simd
from fastdc.kernels._parallel import block_rows, n_workers, run_blocks
from fastdc.kernels._precision import working_dtype
from fastdc.kernels._rows import as_array, numpy_dtype
from fastdc.kernels.self_expression import numba_tiles as tiles
from fastdc.kernels.self_expression.reference import unit_rows


def pursue(z: Tensor, n_nonzero: int, tol: float, normalize: bool) -> tuple[Tensor, Tensor]:
    """Columns (n, n_nonzero), -1 where there is none, and coefficients in the working dtype."""
    dtype = numpy_dtype(working_dtype(z))
    _simd.prepare(dtype)
    x = as_array(unit_rows(z) if normalize else z, dtype)
    n, d = x.shape
    chosen, values = np.empty((n, n_nonzero), np.int64), np.empty((n, n_nonzero), dtype)
    rows = block_rows(n)
    scratch = [tiles.make_scratch(d, n_nonzero, dtype) for _ in range(n_workers(-(-n // rows)))]

    def work(worker: int, start: int, stop: int) -> None:
        tiles.pursue_block(x, start, tol, scratch[worker], chosen[start:stop], values[start:stop])

    run_blocks(n, rows, work)
    return torch.from_numpy(chosen), torch.from_numpy(values)
