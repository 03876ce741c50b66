"""GPU kernels: launchers with the same functions as ``numba_kernel.py``.

A loss sweeps over rows x centers up to five times: each row's mass, f (where it is not given), the mass of the
row's target, the loss with the gradient of x, and the gradient of the centers. Every sweep recomputes its
distances; between sweeps a row keeps three numbers. No sum over rows uses atomics, so results are deterministic.
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
    in_wide_pieces,
    launch,
    product_precision,
    row_splits,
    shifted_centers,
)
from fastdc.kernels.student_t import triton_tiles as tiles


def student_t_assign(x: Tensor, centers: Tensor, alpha: float, precision: str) -> Tensor:
    """q (n, k) in the working dtype."""
    job = _Job(x, centers, alpha, precision)
    job.find_masses()
    q = job.empty(job.n, job.k)
    job.run(
        tiles._student_t_assign_kernel,
        "light",
        (job.row_programs("light"), job.center_programs("light")),
        *job.points, job.steepest, job.mass, q, *job.sizes, ALPHA=alpha, PRECISION=job.precision,
    )  # fmt: skip
    return q


def student_t_assign_backward(
    x: Tensor, centers: Tensor, grad_q: Tensor, alpha: float, precision: str, need_x: bool, need_centers: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of sum(grad_q * q), each in its input's dtype; of length 0 where not needed."""
    job = _Job(x, centers, alpha, precision, beside=True)
    expected = job.find_masses(tiles.EXPECTED, matrix=grad_q)
    target = _Target(job, tiles.COTANGENT, expected, matrix=grad_q)
    scale = job.full(-(alpha + 1.0) / alpha)
    _, grad_x = _rows(job, target, scale, need_x, need_loss=False)
    return grad_x.to(x.dtype), _centers(job, target, scale, need_centers).to(centers.dtype)


def student_t_statistics(
    x: Tensor, centers: Tensor, alpha: float, previous_labels: Tensor | None, precision: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """labels, confidence, frequency, n_changed, entropy."""
    job = _Job(x, centers, alpha, precision)
    labels = torch.empty(job.n, dtype=torch.int64, device=x.device)
    entropy = job.find_masses(tiles.STATISTICS, labels=labels)
    if previous_labels is None:
        n_changed = torch.full((), job.n, dtype=torch.int64, device=x.device)
    else:
        n_changed = (labels != previous_labels).sum()
    return labels, job.mass.reciprocal(), _frequency(job), n_changed, entropy


def target_distribution(q: Tensor, frequency: Tensor | None, power: float, frequency_power: float) -> Tensor:
    """p (n, k) in the dtype of q."""
    n, k = q.shape
    dtype = working_dtype(q)
    mass = q.sum(dim=0, dtype=torch.float64) if frequency is None else frequency.double()
    p = torch.empty_like(q, memory_format=torch.contiguous_format)
    block_k = min(128, max(16, triton.next_power_of_2(k)))
    block_n = 2048 // block_k
    with torch.cuda.device_of(q):
        tiles._target_distribution_kernel[(triton.cdiv(n, block_n),)](
            q, *q.stride(), cluster_gain(mass, frequency_power, dtype), p, n, k,
            POWER=power, BLOCK_N=block_n, BLOCK_K=block_k, num_warps=4, **ALL_REGISTERS,
        )  # fmt: skip
    return p


def dec_loss(
    x: Tensor,
    centers: Tensor,
    target: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    scalars: list[float],
    precision: str,
    need_x: bool,
    need_centers: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over rows of KL(P||Q) / divisor, and its gradients in the working dtype (of length 0 where not needed).

    scalars: alpha, power, frequency_power, divisor.
    """
    p, target_x, target_centers, frequency = target
    alpha, power, frequency_power, divisor = scalars
    job = _Job(x, centers, alpha, precision, beside=p is not None)
    if p is not None:
        job.find_masses()
        against = _Target(job, tiles.GIVEN, p.sum(dim=1, dtype=job.dtype), matrix=p)
    else:
        frozen = job if target_x is None else _Job(target_x, target_centers, alpha, precision, job.dtype)
        if frequency is None or frozen is not job:
            job.find_masses()
        mass = _frequency(job) if frequency is None else frequency.double()
        gain = cluster_gain(mass, frequency_power, job.dtype)
        target_mass = frozen.find_masses(tiles.GAIN, gain=gain, power=power)
        source = tiles.OWN if frozen is job else tiles.FROZEN
        against = _Target(frozen, source, target_mass, gain=gain, power=power)
    scale = job.full((alpha + 1.0) / (alpha * divisor))
    losses, grad_x = _rows(job, against, scale, need_x)
    grad_centers = _centers(job, against, scale, need_centers)
    return (losses.sum() / divisor).to(job.dtype), grad_x, grad_centers


def cluster_gain(mass: Tensor, frequency_power: float, dtype: torch.dtype) -> Tensor:
    """f^-frequency_power up to a common factor; 0 for a cluster without mass, so that its p is 0."""
    gain = torch.where(mass > 0, (mass / mass.mean()) ** -frequency_power, 0.0)
    return gain.clamp(max=torch.finfo(dtype).max ** 0.5).to(dtype)


def launch_beside(n_clusters: int, is_wide: bool, precision: str, itemsize: int, chip: Chip, kind: Kind) -> Launch:
    """``launch`` where a matrix (n, k) is read beside products, whose addresses take registers: no kernel is light.

    With those of rows in narrow pieces there is room for 64 rows from sm_90 on, and without for 128.
    """
    choice = launch(n_clusters, is_wide, precision, itemsize, chip, "rows" if kind == "light" else kind)
    if precision == "ieee" or chip.capability < 90 or (kind == "centers" and not is_wide):
        return choice
    if kind == "centers":
        return Launch(64, min(32, choice.block_k), 16, 4, 1)
    return choice._replace(block_n=128 if is_wide else 64, block_k=min(32, choice.block_k))


class _Job:
    """One call's points, and what each row keeps between kernels; ``beside``: a matrix (n, k) is read by them."""

    def __init__(
        self,
        x: Tensor,
        centers: Tensor | None,
        alpha: float,
        precision: str,
        dtype: torch.dtype | None = None,
        *,
        beside: bool = False,
    ) -> None:
        assert centers is not None
        self.dtype = working_dtype(x, centers) if dtype is None else dtype
        self.x, self.centers, self.alpha = x.detach(), centers.detach(), alpha
        self.n, self.d = x.shape
        self.k = centers.shape[0]
        self.sizes = (self.n, self.k, self.d)
        self.precision = product_precision(precision, self.d, self.dtype)
        self.chip = chip_of(x)
        choose, is_wide = launch_beside if beside else launch, in_wide_pieces(x)
        self.few_registers = not (is_wide or beside)  # left by the addresses of narrow rows
        self.launches: dict[Kind, Launch] = {
            kind: choose(self.k, is_wide, self.precision, self.dtype.itemsize, self.chip, kind) for kind in KINDS
        }
        shifted = self.centers if self.precision == "ieee" else shifted_centers(self.centers)
        self.points = (self.x, *self.x.stride(), self.centers, *self.centers.stride(), shifted)
        self.steepest, self.mass = self.empty(self.n), self.empty(self.n)

    def row_programs(self, kind: Kind) -> int:
        return triton.cdiv(self.n, self.launches[kind].block_n)

    def center_programs(self, kind: Kind) -> int:
        return triton.cdiv(self.k, self.launches[kind].block_k)

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.x.device)

    def full(self, value: float) -> Tensor:
        """One number on the device, in all digits of the working dtype, without waiting."""
        return torch.full((1,), value, dtype=self.dtype, device=self.x.device)

    def run(self, kernel: Any, kind: Kind, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        choice = self.launches[kind]
        with torch.cuda.device_of(self.x):
            kernel[grid](
                *arguments,
                **constants,
                BLOCK_N=choice.block_n,
                BLOCK_K=choice.block_k,
                BLOCK_D=choice.block_d,
                num_warps=choice.num_warps,
                num_stages=choice.num_stages,
                **ALL_REGISTERS,
            )

    def find_masses(
        self,
        mode: Any = tiles.PLAIN,
        *,
        gain: Tensor | None = None,
        power: float = 1.0,
        matrix: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Fills steepest and mass; the number that the mode adds to each row."""
        extra = self.mass if mode is tiles.PLAIN else self.empty(self.n)
        matrix = self.mass.expand(1, -1) if matrix is None else matrix
        self.run(
            tiles._student_t_mass_kernel,
            "light",
            (self.row_programs("light"),),
            *self.points, self.mass if gain is None else gain, matrix, *matrix.stride(),
            self.steepest, self.mass, extra, self.mass if labels is None else labels, *self.sizes,
            ALPHA=self.alpha, POWER=power, MODE=mode.value, PRECISION=self.precision,
        )  # fmt: skip
        return extra

    def splits(self, kind: Kind, bytes_a_split: int) -> tuple[int, int]:
        return row_splits(self.n, self.center_programs(kind), bytes_a_split, self.launches[kind].block_n, self.chip)


class _Target:
    """What q is compared with, as arguments of the kernels."""

    def __init__(
        self,
        job: _Job,
        source: Any,
        sums: Tensor,
        *,
        gain: Tensor | None = None,
        power: float = 1.0,
        matrix: Tensor | None = None,
    ) -> None:
        points = job.points if matrix is None else (matrix, *matrix.stride(), *job.points[3:])
        self.arguments = (*points, job.steepest, sums, sums if gain is None else gain)
        self.n_features = job.d
        self.constants = {"POWER": power, "SOURCE": source.value, "T_PRECISION": job.precision}


def _frequency(job: _Job) -> Tensor:
    """f (k,) float64: the sum of q over all rows; masses must have been found."""
    n_splits, rows = job.splits("light", 8 * job.k)
    partial = torch.empty((n_splits, job.k), dtype=torch.float64, device=job.x.device)
    job.run(
        tiles._student_t_frequency_kernel,
        "light",
        (n_splits, job.center_programs("light")),
        *job.points, job.steepest, job.mass, partial, rows, *job.sizes,
        ALPHA=job.alpha, PRECISION=job.precision,
    )  # fmt: skip
    return partial.sum(dim=0)


def _rows(job: _Job, target: _Target, scale: Tensor, need_x: bool, need_loss: bool = True) -> tuple[Tensor, Tensor]:
    """Losses of blocks of rows, float64, and the gradient of x."""
    grad_x = job.empty(job.n, job.d) if need_x else job.empty(0)
    losses = torch.empty(job.row_programs("rows"), dtype=torch.float64, device=job.x.device)
    if need_x or need_loss:
        job.run(
            tiles._student_t_rows_kernel,
            "rows",
            (job.row_programs("rows"),),
            *job.points, job.steepest, job.mass, *target.arguments, scale, losses, grad_x,
            *job.sizes, target.n_features,
            ALPHA=job.alpha, NEED_X=need_x, PRECISION=job.precision, **target.constants,
        )  # fmt: skip
    return losses, grad_x


def _centers(job: _Job, target: _Target, scale: Tensor, need_centers: bool) -> Tensor:
    """The gradient of the centers."""
    if not need_centers:
        return job.empty(0)
    n_splits, rows = job.splits("centers", job.dtype.itemsize * job.k * job.d)
    partial = job.empty(n_splits, job.k, job.d)
    job.run(
        tiles._student_t_centers_kernel,
        "centers",
        (n_splits, job.center_programs("centers")),
        *job.points, job.steepest, job.mass, *target.arguments, scale, partial, rows,
        *job.sizes, target.n_features,
        ALPHA=job.alpha, PRECISION=job.precision, FEW_REGISTERS=job.few_registers, **target.constants,
    )  # fmt: skip
    return partial.sum(dim=0, dtype=torch.float64).neg_().to(job.dtype)
