"""The joint distribution of two views' clusters, and the losses made of it.

Its one product over the rows is torch's own, which runs at the limit of the machine; what is left is
n_clusters x n_clusters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdc.kernels._autograd import refuse_transforms
from fastdc.kernels._checks import check_not_negative
from fastdc.kernels._eager import is_eager, without_gradient
from fastdc.kernels._group import check_group, shares_of, sum_over
from fastdc.kernels._precision import working_dtype
from fastdc.kernels.mutual_information.checks import check_pair

ROWS_A_PRODUCT = 1 << 12  # rows that one float32 sum covers; such sums are added up in float64
ROWS_A_PART = 1 << 11  # rows of a matrix on CPUs: a thread gets whole matrices, and heads alone would not occupy all
EPS = 2.220446049250313e-16  # as the paper's code clamps with


def joint_distribution(p1: Tensor, p2: Tensor, symmetric: bool = True, *, group: Any = None) -> Tensor:
    r"""Joint distribution of the clusters of two views of the same rows, eq. (2) of IIC.

    .. math:: P = \frac{1}{n} \sum_i p_{1i}\, p_{2i}^T, \quad P \leftarrow (P + P^T) / 2

    Same as::

        joint = p1.mT @ p2 / p1.shape[-2]
        joint = (joint + joint.mT) / 2

    Parameters
    ----------
    p1 : Tensor of shape (n_samples, n_clusters) or (n_heads, n_samples, n_clusters)
        Probabilities of the first view, rows summing to 1. float32, float64, float16 or bfloat16.
    p2 : Tensor of the same shape
        Of the second view. Without ``symmetric`` it may have another number of clusters.
    symmetric : bool
        Whether the order of the two views must not matter.
    group : torch.distributed.ProcessGroup, optional
        The rows are spread over these processes, of which each may hold another number. The sums are added up over
        them, nothing is gathered; every rank returns the joint of all rows, and the average of the ranks' gradients
        of what is made of it is that of one process.

    Returns
    -------
    joint : Tensor of shape (n_clusters, n_clusters) or (n_heads, n_clusters, n_clusters)
        float32 (float64 where an input is). Sums to 1.

    Notes
    -----
    Gradients: to p1 and p2, once (a second derivative raises).
    Memory: the result and the gradients; of half inputs float32 copies of 4,096 rows. Never
    n_samples x n_clusters x n_clusters.
    Precision: float32 products of at most 4,096 rows, added up in float64; torch's settings for products
    (``torch.backends.cuda.matmul``) apply, autocast does not.
    Streaming: joints of chunks add up, each weighted by its share of the rows.

    References
    ----------
    Ji, Henriques, Vedaldi. Invariant Information Clustering for Unsupervised Image Classification and
    Segmentation. ICCV 2019.

    Examples
    --------
    >>> import torch
    >>> joint_distribution(torch.eye(2), torch.eye(2))
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]])
    """
    check_pair(p1, p2, "p1", "p2", same_clusters=bool(symmetric))
    check_group(group)
    refuse_transforms("joint_distribution", p1, p2)
    heads = p1.ndim == 3
    a, b = (p1, p2) if heads else (p1[None], p2[None])
    direct = without_gradient(a, b) and is_eager(a, b)
    total = _joint_sum(a, b) if direct else joint_sum(a, b)
    n_rows = p1.shape[-2] if group is None else shares_of(p1.shape[-2], group, p1.device).total
    joint = sum_over(total, group) / n_rows
    if symmetric:
        joint = (joint + joint.mT) / 2
    return joint if heads else joint[0]


def iic_loss(
    p1: Tensor, p2: Tensor, lamb: float = 1.0, *, eps: float = EPS, reduction: str = "mean", group: Any = None
) -> Tensor:
    r"""Loss of invariant information clustering: minus the information that two views' clusters share.

    .. math:: L = -\sum_{cc'} P_{cc'} (\log P_{cc'} - \lambda \log P_c - \lambda \log P_{c'})

    Same as, P being the symmetric :func:`joint_distribution` and never n_samples x n_clusters x n_clusters::

        row, column = P.sum(-1, keepdim=True).clamp(min=eps), P.sum(-2, keepdim=True).clamp(min=eps)
        P = P.clamp(min=eps)
        loss = -(P * (P.log() - lamb * row.log() - lamb * column.log())).sum((-2, -1)).mean()

    Parameters
    ----------
    p1, p2 : Tensor of shape (n_samples, n_clusters) or (n_heads, n_samples, n_clusters)
        Probabilities of two views of the same rows, rows summing to 1. float32, float64, float16 or bfloat16.
    lamb : float >= 0
        Weight of the marginals: 1 is the mutual information; above 1 favours clusters of equal size.
    eps : float >= 0
        Least value of P and of its marginals inside the loss.
    reduction : {"mean", "none"}
        "mean" is over heads; "none" gives each head's loss, by which the paper chooses the head to keep.
    group : torch.distributed.ProcessGroup, optional
        As in :func:`joint_distribution`; every rank returns the loss of all rows.

    Returns
    -------
    loss : Tensor, zero-dimensional, or of shape (n_heads,); float32 (float64 where an input is)
        At lamb = 1 between -log n_clusters and 0.

    Notes
    -----
    Gradients, memory and precision: those of :func:`joint_distribution`.
    Streaming: :func:`iic_loss_of_joint` of a joint that has been added up over chunks or processes.

    References
    ----------
    Ji, Henriques, Vedaldi. Invariant Information Clustering for Unsupervised Image Classification and
    Segmentation. ICCV 2019, eq. (3).

    Examples
    --------
    >>> import torch
    >>> p = torch.eye(2).requires_grad_()
    >>> loss = iic_loss(p, torch.eye(2))
    >>> loss.backward()
    >>> round(loss.item(), 4)
    -0.6931
    """
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be one of ('mean', 'none'), got {reduction!r}")
    loss = iic_loss_of_joint(joint_distribution(p1, p2, group=group), lamb, eps=eps)
    return loss.mean() if reduction == "mean" else loss


def iic_loss_of_joint(joint: Tensor, lamb: float = 1.0, *, eps: float = EPS) -> Tensor:
    """The loss of :func:`iic_loss` from a joint distribution (..., n_clusters, n_clusters) that sums to 1.

    >>> import torch
    >>> round(iic_loss_of_joint(torch.eye(2) / 2).item(), 4)
    -0.6931
    """
    if not isinstance(joint, Tensor):
        raise TypeError(f"joint must be a torch.Tensor, got {type(joint).__name__}; wrap it with torch.as_tensor")
    if joint.ndim < 2:
        raise ValueError(f"joint must have shape (..., n_clusters, n_clusters), got shape {tuple(joint.shape)}")
    lamb, eps = check_not_negative(lamb, "lamb"), check_not_negative(eps, "eps")
    rows = joint.sum(dim=-1, keepdim=True).clamp(min=eps).log()
    columns = joint.sum(dim=-2, keepdim=True).clamp(min=eps).log()
    joint = joint.clamp(min=eps)
    return -(joint * (joint.log() - lamb * (rows + columns))).sum(dim=(-2, -1))


def _joint_sum(p1: Tensor, p2: Tensor) -> Tensor:
    """Sum over rows of p1 p2^T (h, k1, k2) in the working dtype."""
    dtype = working_dtype(p1, p2)
    with torch.no_grad(), torch.autocast(p1.device.type, enabled=False):
        parts = zip(p1.split(ROWS_A_PRODUCT, dim=1), p2.split(ROWS_A_PRODUCT, dim=1))
        products = (_product(a.to(dtype), b.to(dtype)) for a, b in parts)
        if p1.shape[1] <= ROWS_A_PRODUCT:
            return next(products)
        total = torch.zeros(
            (p1.shape[0], p1.shape[2], p2.shape[2]),
            dtype=dtype if p1.device.type == "mps" else torch.float64,
            device=p1.device,
        )
        for product in products:
            total += product
        return total.to(dtype)


def _product(p1: Tensor, p2: Tensor) -> Tensor:
    """p1^T p2 of each head."""
    n_parts = min(_n_parts(p1), _n_parts(p2))
    if n_parts == 1:
        return torch.matmul(p1.mT, p2)
    a, b = (p.unflatten(1, (n_parts, -1)) for p in (p1, p2))
    return torch.matmul(a.mT, b).sum(dim=1)


def _n_parts(p: Tensor) -> int:
    """Parts that the rows of p (h, n, k) are cut into, without a copy, to be multiplied side by side."""
    n_parts = -(-p.shape[1] // ROWS_A_PART)
    return n_parts if p.device.type == "cpu" and p.is_contiguous() and p.shape[1] % n_parts == 0 else 1


def _joint_gradient(p: Tensor, gradient: Tensor, out_dtype: torch.dtype) -> Tensor:
    """p @ gradient, a chunk of rows at a time where a dtype must be converted."""
    with torch.no_grad(), torch.autocast(p.device.type, enabled=False):
        if p.dtype == gradient.dtype == out_dtype:
            n_parts = _n_parts(p)
            if n_parts == 1:
                return torch.matmul(p, gradient)
            return torch.matmul(p.unflatten(1, (n_parts, -1)), gradient[:, None]).flatten(1, 2)
        result = p.new_empty((*p.shape[:2], gradient.shape[2]), dtype=out_dtype)
        for rows, out in zip(p.split(ROWS_A_PRODUCT, dim=1), result.split(ROWS_A_PRODUCT, dim=1)):
            out.copy_(torch.matmul(rows.to(gradient.dtype), gradient))
        return result


@torch.library.custom_op("fastdc::joint_sum", mutates_args=())
def joint_sum(p1: Tensor, p2: Tensor) -> Tensor:
    return _joint_sum(p1, p2)


@joint_sum.register_fake
def _(p1: Tensor, p2: Tensor) -> Tensor:
    return p1.new_empty((p1.shape[0], p1.shape[2], p2.shape[2]), dtype=working_dtype(p1, p2))


@torch.library.custom_op("fastdc::joint_sum_backward", mutates_args=())
def joint_sum_backward(p1: Tensor, p2: Tensor, gradient: Tensor, need_1: bool, need_2: bool) -> tuple[Tensor, Tensor]:
    none = gradient.new_empty((0,))
    return (
        _joint_gradient(p2, gradient.mT, p1.dtype) if need_1 else none.to(p1.dtype),
        _joint_gradient(p1, gradient, p2.dtype) if need_2 else torch.empty_like(none, dtype=p2.dtype),
    )


@joint_sum_backward.register_fake
def _(p1: Tensor, p2: Tensor, gradient: Tensor, need_1: bool, need_2: bool) -> tuple[Tensor, Tensor]:
    return p1.new_empty(p1.shape if need_1 else (0,)), p2.new_empty(p2.shape if need_2 else (0,))


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    need_1, need_2 = ctx.needs_input_grad
    grad_1, grad_2 = joint_sum_backward(*ctx.saved_tensors, gradient, need_1, need_2)
    return grad_1 if need_1 else None, grad_2 if need_2 else None


joint_sum.register_autograd(_backward, setup_context=_setup_context)
