"""What the GPU kernels of every room share: launch choices, and centers prepared for products.

Choices follow from numbers that describe a chip, never from its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import triton
from torch import Tensor

from fastdc.kernels._precision import BY_DIFFERENCES

PARTIAL_BYTES = 1 << 26  # all partial sums of one kernel together
TILE = 512  # numbers of a tile of probabilities, 2 a thread: its kernels want many registers for each
WIDEST = 1024  # clusters of such a tile
ROWS_A_SPLIT = 1 << 14  # rows that one partial sum covers, so that its float32 digits suffice
# launch option of kernels of which ptxas would else store some registers to fit one more program
ALL_REGISTERS = {} if torch.version.hip else {"maxnreg": 255}


class Chip(NamedTuple):
    """The numbers of a GPU that launch choices look at."""

    n_processors: int
    capability: int  # NVIDIA's compute capability times ten; 0 on AMD
    shared_bytes: int = 48 << 10  # shared memory that one program may use


INTERPRETER = Chip(n_processors=2, capability=90)


Kind = Literal["light", "rows", "centers"]
KINDS: tuple[Kind, ...] = get_args(Kind)


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
    properties = torch.cuda.get_device_properties(x.device)
    shared_bytes = getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)
    capability = 0 if torch.version.hip else 10 * properties.major + properties.minor
    return Chip(properties.multi_processor_count, capability, shared_bytes)


def product_precision(precision: str, n_features: int, dtype: torch.dtype) -> str:
    """``ieee`` stands for distances by differences: always with few features and for float64."""
    return "ieee" if n_features <= BY_DIFFERENCES or dtype == torch.float64 else precision


def in_wide_pieces(*matrices: Tensor) -> bool:
    """Whether the rows of all are loaded several numbers at a time: contiguous, and at multiples of 16 numbers."""
    return all(x.stride(1) == 1 and x.stride(0) % 16 == 0 and x.shape[1] % 16 == 0 for x in matrices)


def launch(n_clusters: int, is_wide: bool, precision: str, itemsize: int, chip: Chip, kind: Kind = "rows") -> Launch:
    """Tiles that stay in registers on every supported chip; ``python -m bench.gpu_static`` says what each one takes.

    ``precision`` is that of :func:`product_precision`, ``itemsize`` that of the working dtype. Kernels of ``kind``
    "light" keep few numbers beside the product; those of "centers" make gradients of centers, by a product that has
    as many rows as the tile has centers; all others are "rows". ``is_wide`` is :func:`in_wide_pieces` of the rows:
    the addresses of narrow ones take registers too.

    Up to sm_90 a warp multiplies 16 rows: of more warps than a sixteenth of the rows some repeat products of others.
    """
    if precision == "ieee":
        return Launch(64 if itemsize == 8 else 128, 16, 16, 8, 1)
    block_k = max(16, triton.next_power_of_2(n_clusters))
    if chip.capability >= 100:
        return Launch(64, min(64, block_k), 16, 8, 1)
    if chip.capability >= 90:
        if kind == "centers":
            return Launch(64, min(32, block_k), 16, 4, 2 if is_wide else 1)
        widest = 64 if kind == "light" and is_wide else 32
        return Launch(128, min(widest, block_k), 16, 8, 1)
    widest = 32 if kind == "light" or not chip.capability else 16  # before sm_90 both factors come out of registers
    return Launch(64, min(widest, block_k), 16, 4, 1)


class Tile(NamedTuple):
    """Rows and clusters of probabilities or logits that a program holds at once."""

    block_n: int
    block_k: int
    num_warps: int = 8

    @property
    def constants(self) -> dict[str, Any]:
        return {"BLOCK_N": self.block_n, "BLOCK_K": self.block_k, "num_warps": self.num_warps}


def tile_of(n_clusters: int) -> Tile:
    block_k = min(WIDEST, max(16, triton.next_power_of_2(n_clusters)))
    return Tile(max(1, TILE // block_k), block_k)


def row_splits(n: int, n_columns: int, bytes_a_split: int, block_n: int, chip: Chip) -> tuple[int, int]:
    """(number of parts, rows of each but the last) when sums over rows are made in parts.

    ``n_columns`` is how many programs work on one part, ``bytes_a_split`` what its partial sums take.
    """
    n_blocks = -(-n // block_n)
    wanted = max(-(-4 * chip.n_processors // n_columns), -(-n // ROWS_A_SPLIT))
    n_splits = max(1, min(n_blocks, wanted, PARTIAL_BYTES // bytes_a_split))
    rows = -(-n_blocks // n_splits) * block_n
    return -(-n // rows), rows


def other_splits(n_programs: int, n_others: int, least: int, block: int, chip: Chip) -> tuple[int, int]:
    """(number of parts, others of each but the last) where programs own rows and go over all others.

    Others are centers or points, of which a tile holds ``block`` and a part ``least`` at least. ``n_programs`` work on
    one part; where they are two a multiprocessor or more, there is one part.
    """
    wanted = 1 if n_programs >= 2 * chip.n_processors else -(-4 * chip.n_processors // max(1, n_programs))
    n_splits = max(1, min(wanted, n_others // least))
    others = max(1, -(-n_others // (n_splits * block))) * block
    return max(1, -(-n_others // others)), others


def filled(values: Sequence[float], like: Tensor, dtype: torch.dtype) -> Tensor:
    """A vector of numbers on the device of ``like``, written there: a CUDA graph records no copy from the CPU."""
    return torch.cat([torch.full((1,), value, dtype=dtype, device=like.device) for value in values])


def shifted_centers(centers: Tensor) -> Tensor:
    """(n_clusters + 1, n_features) float32: centers minus their mean, and the mean in the last row."""
    raw = centers.float()
    mean = raw.double().mean(dim=0).float()
    mean = torch.where(torch.isfinite(mean), mean, 0.0)
    return torch.cat([raw - mean, mean[None]])
