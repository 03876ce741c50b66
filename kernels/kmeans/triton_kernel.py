"""GPU kernels: online argmin over tiles of centers, sums over rows sorted by label.

Scores come from a product of rows and centers shifted by the mean of the centers. Rows whose label that product's
rounding may have decided are marked and decided anew by differences, in a second launch that reads one byte a
row. Where rows are too few to fill a GPU, several programs share the centers of a row, and a second launch takes the
nearest of theirs. Sums need no float atomics: rows are sorted by label and cut into pieces that belong to one
cluster each, pieces are summed one a program, and clusters from their pieces in order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from fastdc.kernels._precision import working_dtype
from fastdc.kernels._triton import ALL_REGISTERS, chip_of, in_wide_pieces, other_splits
from fastdc.kernels.kmeans import triton_tiles as tiles

PIECE = 512  # sorted rows that one program sums
LEAST_CENTERS = 256  # of a part, where rows are too few to fill a GPU
SEEDING_ROWS = 128  # rows of a program, and of a block, of k-means++
HOPPER_SHARED_MEMORY, AMPERE_SHARED_MEMORY = 200_000, 99_000  # bytes of one program, at least
UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
TINY = {torch.float32: 1e-38, torch.float64: 1e-300}
LARGEST = {torch.float32: 3e38, torch.float64: 1e290}  # the distance before there is any center
REDUCED = ("tf32", "bf16")  # precisions that may choose a farther center
SPLIT_ERROR = {"ieee": (1, 8), "tf32x3": (2, 48), "bf16x6": (2, 48)}  # of a product: (a d + b) units


class Launch(NamedTuple):
    """Tile and warps of the nearest center kernel."""

    block_n: int
    block_k: int
    block_d: int
    num_warps: int
    num_stages: int


def launch(n_features: int, itemsize: int, precision: str, shared_memory: int) -> Launch:
    """Launch choices from the width of a row, the dtype, the precision and the bytes of shared memory."""
    if itemsize == 8:
        return Launch(32, 32, 16, 4, 1)
    if precision == "ieee":  # no tensor cores: the tile of products lives in registers with its operands
        return Launch(64, 32, 16, 4, 1)
    # Hopper and later multiply out of shared memory; before, operands take registers too
    block_d = 32 if shared_memory >= HOPPER_SHARED_MEMORY and n_features > 16 else 16
    num_stages = 2 if shared_memory >= AMPERE_SHARED_MEMORY else 1
    if precision == "bf16x6":  # six products a tile
        return Launch(64, 64, block_d, 4, num_stages)
    return Launch(128, 64, block_d, 8, num_stages)


def nearest_center(x: Tensor, centers: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """labels (n,) and squared distances (n,) in the working dtype."""
    dtype = working_dtype(x, centers)
    n, d = x.shape
    raw = centers.to(dtype).contiguous()
    shift = torch.nan_to_num(raw.mean(dim=0), posinf=0.0, neginf=0.0)
    factors = raw - shift
    offsets = (factors.double().square().sum(dim=1) / 2).to(dtype)
    labels = torch.empty(n, dtype=torch.int64, device=x.device)
    sq_dists = torch.empty(n, dtype=dtype, device=x.device)
    unsure = torch.empty(n, dtype=torch.int8, device=x.device)
    chip = chip_of(x)
    choice = launch(d, dtype.itemsize, precision, chip.shared_bytes)
    n_blocks = triton.cdiv(n, choice.block_n)
    n_parts, centers_a_part = other_splits(n_blocks, len(raw), LEAST_CENTERS, choice.block_k, chip)
    of_parts = (n_parts, n) if n_parts > 1 else (0, 0)
    scores = torch.empty((2, *of_parts), dtype=dtype, device=x.device)
    nearest = torch.empty(of_parts, dtype=torch.int32, device=x.device)
    slope, constant = SPLIT_ERROR.get(precision, (0, 0))
    rows = (x.stride(0), x.stride(1), 2.0 * (slope * d + constant) * UNIT[dtype], TINY[dtype])
    found = (labels, sq_dists, unsure, scores, nearest)
    tile = {"BLOCK_N": choice.block_n, "BLOCK_D": choice.block_d, "num_warps": choice.num_warps}
    with torch.cuda.device_of(x):
        tiles._nearest_center_kernel[(n_blocks, n_parts)](
            x,
            raw,
            shift,
            factors,
            offsets,
            *found,
            centers_a_part,
            n,
            len(raw),
            d,
            *rows,
            **tile,
            BLOCK_K=choice.block_k,
            PRECISION="ieee" if precision == "bf16" else precision,
            IN_BF16=precision == "bf16",
            num_stages=choice.num_stages,
            **ALL_REGISTERS,
        )
        if n_parts > 1:  # in the same tiles: sums over features in the same order
            tiles._nearest_of_parts_kernel[(n_blocks,)](x, raw, shift, *found, n_parts, n, d, *rows, **tile)
        if precision not in REDUCED:
            tiles._decide_kernel[(triton.cdiv(n, 16),)](
                x,
                raw,
                labels,
                sq_dists,
                unsure,
                n,
                len(raw),
                d,
                x.stride(0),
                x.stride(1),
                BLOCK_N=16,
                BLOCK_K=32,
                num_warps=4,
            )
    return labels, sq_dists


def kmeans_step(
    x: Tensor, centers: Tensor, sample_weight: Tensor | None, previous_labels: Tensor | None, precision: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """labels, sums, counts, inertia and n_changed."""
    labels, sq_dists = nearest_center(x, centers, precision)
    sums, counts = cluster_sums(x, labels, sample_weight, len(centers))
    terms = torch.where(labels >= 0, sq_dists.double(), 0.0)
    inertia = (terms if sample_weight is None else terms * sample_weight).sum()
    if previous_labels is None:
        n_changed = torch.full((), len(x), dtype=torch.int64, device=x.device)
    else:
        n_changed = (labels != previous_labels).sum()
    return labels, sums, counts, inertia, n_changed


def cluster_sums(x: Tensor, labels: Tensor, sample_weight: Tensor | None, n_clusters: int) -> tuple[Tensor, Tensor]:
    """Float64 sums (k, d) of the weighted rows of each label, and of their weights (k,); -1 adds to none."""
    (n, d), device = x.shape, x.device
    ordered, order = labels.sort(stable=True)
    edges = torch.searchsorted(ordered, torch.arange(n_clusters + 1, device=device))  # last entry is n
    cuts = torch.arange(0, n, PIECE, device=device).clamp(min=edges[0])
    starts = torch.cat([edges, cuts]).sort().values
    bounds = torch.searchsorted(starts, edges)
    n_pieces = len(starts) - 1
    pieces = torch.empty((n_pieces, d), dtype=torch.float64, device=device)
    piece_counts = torch.empty(n_pieces, dtype=torch.float64, device=device)
    sums = torch.empty((n_clusters, d), dtype=torch.float64, device=device)
    counts = torch.empty(n_clusters, dtype=torch.float64, device=device)
    block_d = min(64, triton.next_power_of_2(d))
    n_columns = triton.cdiv(d, block_d)
    weights = None if sample_weight is None else sample_weight.contiguous()
    with torch.cuda.device_of(x):
        tiles._piece_sums_kernel[(n_pieces, n_columns)](
            x,
            weights,
            order,
            starts,
            pieces,
            piece_counts,
            d,
            x.stride(0),
            x.stride(1),
            HAS_WEIGHT=weights is not None,
            BLOCK_N=32,
            BLOCK_D=block_d,
            num_warps=4,
        )
        tiles._cluster_sums_kernel[(n_clusters, n_columns)](
            pieces, piece_counts, bounds, sums, counts, d, BLOCK_P=16, BLOCK_D=block_d, num_warps=4
        )
    return sums, counts


class Seeding:
    """k-means++ over the rows of x: see ``seeding.Seeding`` for what each method means."""

    block = SEEDING_ROWS

    def __init__(self, x: Tensor, weights: Tensor | None) -> None:
        self.x, self.weights = x, weights
        self.dtype = working_dtype(x)
        self.closest = torch.full((len(x),), LARGEST[self.dtype], dtype=self.dtype, device=x.device)

    def masses(self, winner: int | None, candidates: list[int]) -> NDArray:
        n_blocks = triton.cdiv(len(self.x), self.block)
        masses = torch.empty((n_blocks, len(candidates)), dtype=torch.float64, device=self.x.device)
        self._launch(n_blocks, 0, winner, candidates, masses)
        return masses.cpu().numpy()

    def mass_of_block(self, block: int, winner: int) -> NDArray:
        self._launch(1, block, winner, [], torch.empty(0, dtype=torch.float64, device=self.x.device))
        here = slice(block * self.block, (block + 1) * self.block)
        mass = self.closest[here].double()
        return (mass if self.weights is None else mass * self.weights[here]).cpu().numpy()

    def _launch(
        self, n_blocks: int, first_block: int, winner: int | None, candidates: list[int], masses: Tensor
    ) -> None:
        chosen = [*([] if winner is None else [winner]), *candidates]
        centers = self.x[torch.tensor(np.array(chosen), device=self.x.device)].to(self.dtype)
        n, d = self.x.shape
        widest = 128 if in_wide_pieces(self.x) else 64  # bytes of a row; the addresses of narrow pieces take registers
        with torch.cuda.device_of(self.x):
            tiles._seeding_kernel[(n_blocks,)](
                self.x,
                self.weights,
                centers,
                self.closest,
                masses,
                n,
                d,
                self.x.stride(0),
                self.x.stride(1),
                first_block,
                len(candidates),
                WINNERS=0 if winner is None else 1,
                HAS_WEIGHT=self.weights is not None,
                BLOCK_N=self.block,
                BLOCK_D=min(widest // self.dtype.itemsize, triton.next_power_of_2(d)),
                num_warps=4,
            )
