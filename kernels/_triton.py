"""What the GPU kernels of every room share: launch choices, and centers prepared for products.

Choices follow from numbers that describe a chip, never from its name.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from fastdc.kernels._tile import BY_DIFFERENCES

PARTIAL_BYTES = 1 << 26  # all partial sums of one kernel together
ROWS_A_SPLIT = 1 << 14  # rows that one partial sum covers, so that its float32 digits suffice


class Chip(NamedTuple):
    """The numbers of a GPU that launch choices look at."""

    n_processors: int
    lanes: int  # threads of a warp: 32 on NVIDIA, 64 on AMD's CDNA


INTERPRETER = Chip(n_processors=2, lanes=32)


class Launch(NamedTuple):
    """Tile sizes of kernels that hold rows against centers."""

    block_n: int
    block_k: int
    block_d: int
    num_warps: int
    num_stages: int


def chip_of(x: Tensor) -> Chip:
    """The chip that holds x; Triton's interpreter for CPU tensors."""
    if x.device.type != "cuda":
        return INTERPRETER
    properties: Any = torch.cuda.get_device_properties(x.device)
    return Chip(properties.multi_processor_count, getattr(properties, "warp_size", 32))


def product_precision(precision: str, n_features: int, dtype: torch.dtype) -> str:
    """``ieee`` stands for distances by differences: always with few features and for float64."""
    return "ieee" if n_features <= BY_DIFFERENCES or dtype == torch.float64 else precision


def launch(n_clusters: int, n_features: int, precision: str, itemsize: int, chip: Chip) -> Launch:
    """Tiles that stay in registers on every supported chip; see the compile tests for what each one takes.

    ``precision`` is that of :func:`product_precision`, ``itemsize`` that of the working dtype.
    """
    if precision == "ieee":
        block_k = min(32, max(16, triton.next_power_of_2(n_clusters)))
        return Launch(64 if itemsize == 8 else 128, block_k, 16, 4, 1)
    block_k = min(64, max(16, triton.next_power_of_2(n_clusters)))
    return Launch(64, block_k, 32, 4, 2 if chip.lanes == 32 else 1)


def row_splits(n: int, n_columns: int, bytes_a_split: int, block_n: int, chip: Chip) -> tuple[int, int]:
    """(number of parts, rows of each but the last) when sums over rows are made in parts.

    ``n_columns`` is how many programs work on one part, ``bytes_a_split`` what its partial sums take.
    """
    n_blocks = -(-n // block_n)
    wanted = max(-(-4 * chip.n_processors // n_columns), -(-n // ROWS_A_SPLIT))
    n_splits = max(1, min(n_blocks, wanted, PARTIAL_BYTES // bytes_a_split))
    rows = -(-n_blocks // n_splits) * block_n
    return -(-n // rows), rows


def shifted_centers(centers: Tensor) -> Tensor:
    """(n_clusters + 1, n_features) float32: centers minus their mean, and the mean in the last row."""
    raw = centers.float()
    mean = raw.double().mean(dim=0).float()
    mean = torch.where(torch.isfinite(mean), mean, 0.0)
    return torch.cat([raw - mean, mean[None]])
