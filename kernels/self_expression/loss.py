"""The loss of self-expressive layers.

Its products, n x n by n x d, are torch's own, which run at the limit of the machine; around them C is passed over
in blocks of rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastdc.kernels._autograd import refuse_transforms, register_gradients
from fastdc.kernels._checks import check_not_negative, check_points, check_same_device
from fastdc.kernels._eager import is_eager, without_gradient
from fastdc.kernels._precision import working_dtype

NORMS = ("fro", "l1")
BLOCK_BYTES = {"cpu": 1 << 20}  # of C at a time: rows that stay in cache between their passes
BLOCK_BYTES_ELSEWHERE = 1 << 26


def self_expression_loss(z: Tensor, c: Tensor, regularization: float = 1.0, norm: str = "fro") -> Tensor:
    r"""Loss of a self-expressive layer (DSC-Net): each point from the others, with few or small coefficients.

    .. math:: L = \|Z - C_0 Z\|_F^2 + \lambda \|C_0\|_p^p, \quad C_0 = C \text{ with a diagonal of zeros}

    Same as::

        c0 = c - c.diagonal().diag()
        penalty = c0.square().sum() if norm == "fro" else c0.abs().sum()
        loss = (z - c0 @ z).square().sum() + regularization * penalty

    Parameters
    ----------
    z : Tensor of shape (n_samples, n_features)
        Embeddings. float32, float64, float16 or bfloat16, any strides.
    c : Tensor of shape (n_samples, n_samples)
        Coefficients: row i says what makes up point i. Its diagonal is taken for zero, whatever it holds, and gets
        a gradient of zero. May differ from z in floating dtype.
    regularization : float >= 0
        :math:`\lambda`. DSC-Net's own loss is half the first term times its λ₂ plus λ₁ times the second.
    norm : {"fro", "l1"}
        The penalty: "fro" the sum of squares (DSC-Net-L2), "l1" the sum of magnitudes (DSC-Net-L1).

    Returns
    -------
    loss : Tensor, zero-dimensional, float32 (float64 where an input is)

    Notes
    -----
    Gradients: to z and c, computed in the forward pass; a second derivative raises. That of a magnitude is 0 at 0.
    Memory: the gradients, and a block of rows of C: about 1 MB on CPUs, 64 MB on GPUs. Never a masked copy of C, its
    square, or a second n_samples x n_samples matrix beside its gradient.
    Precision: torch's products in float32 or wider, of which ``torch.backends.cuda.matmul`` applies and autocast does
    not; the sum over blocks of rows is made in float64.

    References
    ----------
    Ji, Zhang, Li, Salzmann, Reid. Deep Subspace Clustering Networks. NIPS 2017, eq. (5).

    Examples
    --------
    >>> import torch
    >>> z = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    >>> c = torch.tensor([[9.0, 0.5, 0.0], [2.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    >>> self_expression_loss(z, c, regularization=0.1)
    tensor(1.4250)
    """
    check_points(z, "z")
    check_points(c, "c", "n_samples")
    if c.shape != (z.shape[0], z.shape[0]):
        raise ValueError(f"c must have shape ({z.shape[0]}, {z.shape[0]}), a row and a column for each row of z, "
                         f"got {tuple(c.shape)}")  # fmt: skip
    check_same_device(c, z, "c", "z")
    regularization = check_not_negative(regularization, "regularization")
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {NORMS}, got {norm!r}")
    refuse_transforms("self_expression_loss", z, c)
    if without_gradient(z, c) and is_eager(z, c):
        return _loss(z, c, regularization, norm, False, False)[0]
    need_z, need_c = (torch.is_grad_enabled() and t.requires_grad for t in (z, c))
    return loss_and_gradients(z, c, regularization, norm, need_z, need_c)[0]


def _loss(
    z: Tensor, c: Tensor, regularization: float, norm: str, need_z: bool, need_c: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and its gradients in the working dtype, of no rows where not needed."""
    n, d = z.shape
    dtype = working_dtype(z, c)
    total = torch.zeros((), dtype=dtype if z.device.type == "mps" else torch.float64, device=z.device)
    grad_z = z.new_zeros((n if need_z else 0, d), dtype=dtype)
    grad_c = z.new_empty((n if need_c else 0, n), dtype=dtype)
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        points = z.to(dtype)
        for rows, block in _blocks_without_diagonal(c, dtype):
            residual = torch.addmm(points[rows], block, points, alpha=-1)
            total += residual.square().sum()
            if need_z:
                grad_z[rows] += residual
                grad_z.addmm_(block.mT, residual, alpha=-1)
            if need_c:
                torch.mm(residual, points.mT, out=grad_c[rows])
                grad_c[rows].diagonal(rows.start).zero_()
            if regularization:
                total += regularization * (block.square().sum() if norm == "fro" else block.abs().sum())
                if need_c:  # the sum is doubled below, and its sign turned
                    slope = block if norm == "fro" else block.sign_().mul_(0.5)
                    grad_c[rows].sub_(slope, alpha=regularization)
            if need_c:
                grad_c[rows].mul_(-2)
        grad_z.mul_(2)
    return total.to(dtype), grad_z, grad_c


def _blocks_without_diagonal(c: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """(rows, a copy of them with zeros where the diagonal crosses them)."""
    n = c.shape[0]
    wanted = BLOCK_BYTES.get(c.device.type, BLOCK_BYTES_ELSEWHERE) // (n * dtype.itemsize)
    size = min(n, max(64, wanted))
    scratch = torch.empty((size, n), dtype=dtype, device=c.device)
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        block = scratch[: rows.stop - start]
        block.copy_(c[rows])
        block.diagonal(start).zero_()
        yield rows, block


@torch.library.custom_op("fastdc::self_expression", mutates_args=())
def loss_and_gradients(
    z: Tensor, c: Tensor, regularization: float, norm: str, need_z: bool, need_c: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _loss(z, c, regularization, norm, need_z, need_c)


@loss_and_gradients.register_fake
def _(
    z: Tensor, c: Tensor, regularization: float, norm: str, need_z: bool, need_c: bool
) -> tuple[Tensor, Tensor, Tensor]:
    n, d = z.shape
    dtype = working_dtype(z, c)
    return (
        z.new_empty((), dtype=dtype),
        z.new_empty((n if need_z else 0, d), dtype=dtype),
        z.new_empty((n if need_c else 0, n), dtype=dtype),
    )


register_gradients(loss_and_gradients, n_tensors=2)
