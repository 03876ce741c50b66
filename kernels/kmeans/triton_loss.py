"""GPU kernels of the k-means loss: launchers with the function of ``numba_loss.py``.

The hard loss is the nearest center kernel and differences to one center a row. The soft loss sweeps over rows x
centers three times: what a row's softmax sums up to, the gradient of x, and that of the centers; each sweep makes
its distances anew, and between sweeps a row keeps three numbers. Sums over rows use no atomics.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from fastdc.kernels._precision import working_dtype
from fastdc.kernels._triton import (
    ALL_REGISTERS,
    KINDS,
    Chip,
    Kind,
    Launch,
    chip_of,
    filled,
    in_wide_pieces,
    launch,
    product_precision,
    row_splits,
    shifted_centers,
)
from fastdc.kernels.kmeans import triton_loss_tiles as tiles
from fastdc.kernels.kmeans.triton_kernel import cluster_sums, nearest_center


def kmeans_loss(
    x: Tensor,
    centers: Tensor,
    labels: Tensor | None,
    temperature: float | None,
    precision: str,
    need_x: bool,
    need_centers: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over rows, and its gradients in the working dtype, of length 0 where not needed."""
    x, centers = x.detach(), centers.detach()
    if temperature is None:
        return _hard_loss(x, centers, labels, precision, need_x, need_centers)
    job = _Soft(x, centers, temperature, precision)
    loss = job.find_loss()
    return loss, job.grad_x(need_x), job.grad_centers(need_centers)


def _hard_loss(
    x: Tensor, centers: Tensor, labels: Tensor | None, precision: str, need_x: bool, need_centers: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = working_dtype(x, centers)
    if labels is None:
        labels = nearest_center(x, centers, precision)[0].clamp(min=0)  # rows without a center make the loss NaN
    differences = x.to(dtype) - centers.to(dtype)[labels.clamp(min=0)]
    differences = torch.where((labels >= 0)[:, None], differences, 0.0)
    scale = 2.0 / len(x)
    loss = (differences.square().sum(dim=1).sum(dtype=torch.float64) / len(x)).to(dtype)
    none = differences.new_empty(0)
    grad_centers = none
    if need_centers:
        sums, _ = cluster_sums(differences, labels, None, len(centers))
        grad_centers = (sums * -scale).to(dtype)
    return loss, differences * scale if need_x else none, grad_centers


def soft_launch(n_clusters: int, is_wide: bool, precision: str, itemsize: int, chip: Chip, kind: Kind) -> Launch:
    """Half the tiles of other ops by differences: the exponentials beside them take registers."""
    choice = launch(n_clusters, is_wide, precision, itemsize, chip, kind)
    return choice._replace(block_n=choice.block_n // 2) if precision == "ieee" else choice


class _Soft:
    """One call's points, and what each row keeps between kernels."""

    def __init__(self, x: Tensor, centers: Tensor, temperature: float, precision: str) -> None:
        self.dtype = working_dtype(x, centers)
        self.x, self.n, self.d, self.k = x, x.shape[0], x.shape[1], centers.shape[0]
        self.precision = product_precision(precision, self.d, self.dtype)
        self.chip = chip_of(x)
        self.launches: dict[Kind, Launch] = {
            kind: soft_launch(self.k, in_wide_pieces(x), self.precision, self.dtype.itemsize, self.chip, kind)
            for kind in KINDS
        }
        shifted = centers if self.precision == "ieee" else shifted_centers(centers)
        self.points = (x, *x.stride(), centers, *centers.stride(), shifted)
        self.smallest, self.mass, self.excess = (self.empty(self.n) for _ in range(3))
        self.scalars = filled([1.0 / temperature, 2.0 / self.n], x, self.dtype)

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.x.device)

    def row_programs(self, kind: Kind) -> int:
        return triton.cdiv(self.n, self.launches[kind].block_n)

    def run(self, kernel: Any, kind: Kind, grid: tuple[int, ...], *arguments: Any) -> None:
        choice = self.launches[kind]
        with torch.cuda.device_of(self.x):
            kernel[grid](
                *self.points,
                self.smallest,
                self.mass,
                self.excess,
                self.scalars,
                *arguments,
                self.n,
                self.k,
                self.d,
                PRECISION=self.precision,
                BLOCK_N=choice.block_n,
                BLOCK_K=choice.block_k,
                BLOCK_D=choice.block_d,
                num_warps=choice.num_warps,
                num_stages=choice.num_stages,
                **ALL_REGISTERS,
            )

    def find_loss(self) -> Tensor:
        """Fills smallest, mass and excess."""
        self.run(tiles._kmeans_soft_mass_kernel, "light", (self.row_programs("light"),))
        return ((self.smallest.double() + self.excess.double()).sum() / self.n).to(self.dtype)

    def grad_x(self, needed: bool) -> Tensor:
        grad_x = self.empty(self.n, self.d) if needed else self.empty(0)
        if needed:
            self.run(tiles._kmeans_soft_rows_kernel, "rows", (self.row_programs("rows"),), grad_x)
        return grad_x

    def grad_centers(self, needed: bool) -> Tensor:
        if not needed:
            return self.empty(0)
        choice, bytes_a_split = self.launches["centers"], self.dtype.itemsize * self.k * self.d
        center_programs = triton.cdiv(self.k, choice.block_k)
        n_splits, rows = row_splits(self.n, center_programs, bytes_a_split, choice.block_n, self.chip)
        partial = self.empty(n_splits, self.k, self.d)
        self.run(tiles._kmeans_soft_centers_kernel, "centers", (n_splits, center_programs), partial, rows)
        return partial.sum(dim=0, dtype=torch.float64).neg_().to(self.dtype)
