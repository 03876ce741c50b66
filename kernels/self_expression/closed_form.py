"""Closed forms of self-expression by the smaller side of the data: n x n is formed only where it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastdc.kernels._checks import check_not_negative, check_points, check_positive
from fastdc.kernels._copies import copy_tensor
from fastdc.kernels._precision import working_dtype

ROWS_A_PRODUCT = 1 << 12  # rows converted to float64 at a time

_LeftOf = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # left and diagonal, of rows and their squared lengths


class SelfExpression(NamedTuple):
    """Coefficients C = L Rᵀ of n points, less their diagonal, held as factors: n x r numbers, not n x n.

    ``C @ x`` is :meth:`apply`, rows of C are :meth:`rows`, all of it is :meth:`to_dense`.
    """

    left: Tensor  # (n_samples, rank)
    right: Tensor  # (n_samples, rank)
    diagonal: Tensor  # (n_samples,), that of L Rᵀ, which is taken off; (0,) where it is left in

    def apply(self, x: Tensor) -> Tensor:
        """C @ x for x (n_samples, m), in O(n rank m).

        >>> import torch
        >>> ones = torch.ones(3, 1)
        >>> SelfExpression(ones, ones, torch.ones(3)).apply(torch.eye(3))
        tensor([[0., 1., 1.],
                [1., 0., 1.],
                [1., 1., 0.]])
        """
        return self._less_diagonal(self.left @ (self.right.mT @ x), x)

    def apply_transposed(self, x: Tensor) -> Tensor:
        """Cᵀ @ x for x (n_samples, m)."""
        return self._less_diagonal(self.right @ (self.left.mT @ x), x)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start <= i < stop of C, (stop - start, n_samples); a diagonal that is taken off is exactly zero."""
        block = self.left[start:stop] @ self.right.mT
        if len(self.diagonal):
            block.diagonal(start).zero_()
        return block

    def to_dense(self) -> Tensor:
        """C (n_samples, n_samples)."""
        return self.rows(0, self.left.shape[0])

    def _less_diagonal(self, product: Tensor, x: Tensor) -> Tensor:
        return product - self.diagonal[:, None] * x if len(self.diagonal) else product


def ridge_self_expression(z: Tensor, regularization: float = 1.0) -> SelfExpression:
    r"""Exact minimiser of the ridge self-expression among coefficients whose diagonal is zero.

    .. math:: \min_C \|Z - C Z\|_F^2 + \lambda \|C\|_F^2 \ \text{ s.t. } C_{ii} = 0: \quad
              C_{ij} = \frac{H_{ij}}{1 - H_{ii}},\ i \ne j, \quad H = Z (Z^T Z + \lambda I)^{-1} Z^T

    Same as, with P = (ZZᵀ + λI)⁻¹ and an n x n inverse::

        p = torch.linalg.inv(z @ z.T + regularization * torch.eye(n))
        c = -p / p.diagonal()[:, None]
        c.fill_diagonal_(0)

    Parameters
    ----------
    z : Tensor of shape (n_samples, n_features)
        float32, float64, float16 or bfloat16, any strides.
    regularization : float > 0
        :math:`\lambda`.

    Returns
    -------
    c : SelfExpression
        Of rank min(n_samples, n_features), float32 (float64 where z is); ``c.to_dense()`` is C.

    Notes
    -----
    Gradients: none; z is detached.
    Memory: two n x min(n, d) factors, and min(n, d)² float64 numbers; n x n only in ``to_dense``.
    Precision: the eigenvectors of the smaller of ZᵀZ and ZZᵀ in float64: by Woodbury's identity they suffice. Where
    all of ZZᵀ exceeds the regularization (n_samples <= n_features), C comes from P, which cancels nothing.
    Limits: Z is used as it is; centre it or scale its rows before where that is meant.

    References
    ----------
    Lu, Min, Zhao, Zhu, Huang, Yan. Robust and Efficient Subspace Segmentation via Least Squares Regression.
    ECCV 2012, eq. (19).

    Examples
    --------
    >>> import torch
    >>> ridge_self_expression(torch.tensor([[1.0], [1.0]]), regularization=1.0).to_dense()
    tensor([[0.0000, 0.5000],
            [0.5000, 0.0000]])
    """
    check_points(z, "z")
    regularization = check_positive(regularization, "regularization")
    singular = _left_singular(z.detach())
    squares = singular.squares
    if z.shape[0] <= z.shape[1] and bool(squares.min() > regularization):
        # H is nearly the identity, and what it lacks would cancel: C = -P / P_ii of the inverse itself
        return _expression(z, singular, (squares + regularization).rsqrt(), _by_inverse)
    return _expression(z, singular, (squares / (squares + regularization)).sqrt(), _by_hat)


def low_rank_self_expression(z: Tensor, regularization: float = 0.0, *, zero_diagonal: bool = True) -> SelfExpression:
    r"""Low-rank self-expression (LRR, LRSC) in closed form, from the thin SVD Z = U S Vᵀ.

    .. math:: \min_C \tfrac{1}{2} \|Z - C Z\|_F^2 + \lambda \|C\|_*: \quad
              C = \sum_k \max(0, 1 - \lambda / s_k^2)\, u_k u_k^T

    With regularization 0 it is the limit: the least nuclear norm with Z = CZ, which is U Uᵀ (the shape interaction
    matrix). Same as::

        u, s, _ = torch.linalg.svd(z, full_matrices=False)
        c = (u * (1 - regularization / s.square()).clamp(min=0)) @ u.T
        c.fill_diagonal_(0)                     # zero_diagonal

    Parameters
    ----------
    z : Tensor of shape (n_samples, n_features)
        float32, float64, float16 or bfloat16, any strides.
    regularization : float >= 0
        :math:`\lambda`; singular values up to its root are dropped, with 0 those that rounding cannot tell from 0.
    zero_diagonal : bool
        Whether the diagonal is taken off afterwards, as for affinities; without, C is the minimiser itself.

    Returns
    -------
    c : SelfExpression
        Of rank min(n_samples, n_features), float32 (float64 where z is). Its diagonal is zero with ``zero_diagonal``.

    Notes
    -----
    Gradients: none; z is detached.
    Memory and precision: as of :func:`ridge_self_expression`. In float64 singular values below 1e-7 of the largest
    count as 0, as their squares are what is decomposed; of other inputs those below the rounding of the input.

    References
    ----------
    Liu, Lin, Yan, Sun, Yu, Ma. Robust Recovery of Subspace Structures by Low-Rank Representation. TPAMI 2013.
    Favaro, Vidal, Ravichandran. A Closed Form Solution to Robust Subspace Estimation and Clustering. CVPR 2011.

    Examples
    --------
    >>> import torch
    >>> low_rank_self_expression(torch.tensor([[1.0], [1.0]])).to_dense()
    tensor([[0.0000, 0.5000],
            [0.5000, 0.0000]])
    """
    check_points(z, "z")
    regularization = check_not_negative(regularization, "regularization")
    singular = _left_singular(z.detach())
    squares = singular.squares
    resolution = max(torch.finfo(z.dtype).eps * max(z.shape), 1e-7)
    kept = squares > squares.max().clamp(min=torch.finfo(torch.float64).tiny) * resolution**2
    share = torch.where(kept, (1.0 - regularization / squares).clamp(min=0.0), 0.0)
    found = _expression(z, singular, share.sqrt())
    return found if zero_diagonal else found._replace(diagonal=found.diagonal[:0])


class _Singular(NamedTuple):
    """Left singular vectors (n, r), r = min(n, d), in parts of some rows, and squared singular values (r,), float64.

    A vector whose value is 0 is a column of zeros where r = d, and any of its space where r = n.
    """

    parts: Iterator[Tensor]
    squares: Tensor


def _left_singular(z: Tensor) -> _Singular:
    n, d = z.shape
    if n <= d:
        x = z.double()
        squares, vectors = torch.linalg.eigh(x @ x.mT)
        return _Singular(iter(vectors.split(ROWS_A_PRODUCT)), squares.clamp(min=0.0))
    gram = torch.zeros((d, d), dtype=torch.float64, device=z.device)
    for rows in z.split(ROWS_A_PRODUCT):
        x = rows.double()
        gram += x.mT @ x
    squares, right = torch.linalg.eigh(gram)
    squares = squares.clamp(min=0.0)
    inverse = torch.where(squares > 0, squares.rsqrt(), 0.0)
    turn = right * inverse
    return _Singular((rows.double() @ turn for rows in z.split(ROWS_A_PRODUCT)), squares)


def _expression(z: Tensor, singular: _Singular, weights: Tensor, left_of: _LeftOf | None = None) -> SelfExpression:
    """The right factor: the singular vectors times ``weights`` (r,). None as ``left_of``: the left one is the same."""
    dtype, n = working_dtype(z), len(z)
    right = copy_tensor((n, len(weights)), dtype, z.device)
    left = right if left_of is None else copy_tensor((n, len(weights)), dtype, z.device)
    diagonal = torch.empty(n, dtype=dtype, device=z.device)
    start = 0
    for vectors in singular.parts:
        here = slice(start, start + len(vectors))
        factor = vectors * weights
        own = factor.square().sum(1)
        right[here] = factor
        if left_of is not None:
            left[here], own = left_of(factor, own)
        diagonal[here] = own
        start = here.stop
    return SelfExpression(left, right, diagonal)


def _by_inverse(factor: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    return -factor / own[:, None], -torch.ones_like(own)


def _by_hat(factor: Tensor, hat: Tensor) -> tuple[Tensor, Tensor]:
    return factor / (1.0 - hat)[:, None], hat / (1.0 - hat)
