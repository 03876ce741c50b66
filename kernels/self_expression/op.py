"""Sparse self-expression by orthogonal matching pursuit. Its docstring is the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdc.kernels._backend import BackendError, choose
from fastdc.kernels._checks import check_not_negative, check_points
from fastdc.kernels.self_expression.reference import pursue_reference


def orthogonal_matching_pursuit(
    z: Tensor, n_nonzero: int = 10, tol: float = 0.0, *, normalize: bool = True, backend: str | None = None
) -> Tensor:
    r"""Sparse codes of each point by the others (SSC-OMP): the self-expression of subspace clustering at scale.

    For point i, with residual r = z_i and an empty support S, up to ``n_nonzero`` times:

    .. math:: S \leftarrow S \cup \{\arg\max_{j \ne i,\, j \notin S} |z_j^T r|\}, \quad
              c_S = \arg\min \|z_i - Z_S^T c_S\|^2, \quad r = z_i - Z_S^T c_S

    until :math:`\|r\| \le tol` (or 1e-10 of the point: rounding), nothing correlates with r, or the best correlated
    point depends linearly on the support. For each i that is ``sklearn.linear_model.orthogonal_mp`` of z_i on the
    other points.

    Parameters
    ----------
    z : Tensor of shape (n_samples, n_features)
        float32, float64, float16 or bfloat16, any strides.
    n_nonzero : int >= 1
        The most points that a code names: the dimension of a subspace or a little more.
    tol : float >= 0
        A residual of this length or below needs no further point.
    normalize : bool
        Whether rows are scaled to length one first, as the paper has it; the codes are then those of the scaled
        rows, and a row of zeros has none.
    backend : {None, "reference", "numba"}
        On CPUs as in other ops. On GPUs the reference runs, in batches: its time goes into products, which are
        torch's own.

    Returns
    -------
    codes : sparse CSR tensor of shape (n_samples, n_samples), float32 (float64 where z is)
        Row i holds at most ``n_nonzero`` coefficients, in the order of the columns, and none on the diagonal.

    Notes
    -----
    Gradients: none; z is detached.
    Memory: the codes, of scaled or half rows a copy, and for each thread 256 x 64 correlations and
    64 n_nonzero² float64 numbers; never n_samples x n_samples.
    Precision: correlations in float32 or wider; the least squares and residuals in float64.
    Determinism: same bits for any number of threads on CPUs. Ties go to the lowest index.

    References
    ----------
    You, Robinson, Vidal. Scalable Sparse Subspace Clustering by Orthogonal Matching Pursuit. CVPR 2016.

    Examples
    --------
    >>> import torch
    >>> z = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, -3.0]])
    >>> orthogonal_matching_pursuit(z, 1).to_dense()
    tensor([[ 0.,  1.,  0.,  0.],
            [ 1.,  0.,  0.,  0.],
            [ 0.,  0.,  0., -1.],
            [ 0.,  0., -1.,  0.]])
    """
    check_points(z, "z")
    if isinstance(n_nonzero, bool) or not isinstance(n_nonzero, int):
        raise TypeError(f"n_nonzero must be an int, got {n_nonzero!r}")
    if n_nonzero < 1:
        raise ValueError(f"n_nonzero must be at least 1, got {n_nonzero}")
    tol = check_not_negative(tol, "tol")
    n = z.shape[0]
    at_most = min(n_nonzero, n - 1, z.shape[1])  # more points than features depend on one another
    chosen, values = _pursue(z.detach(), at_most, tol, bool(normalize), backend)
    return _to_csr(chosen, values, n)


def _pursue(z: Tensor, n_nonzero: int, tol: float, normalize: bool, backend: str | None) -> tuple[Tensor, Tensor]:
    """Columns (n, n_nonzero), -1 where there is none, and coefficients."""
    if backend == "triton":
        raise BackendError(
            "orthogonal_matching_pursuit has no triton kernel; on GPUs its reference runs, on torch's own products"
        )
    if z.device.type == "cpu" and choose("orthogonal_matching_pursuit", z, backend) == "numba":
        from fastdc.kernels.self_expression.numba_kernel import pursue

        return pursue(z, n_nonzero, tol, normalize)
    if z.device.type != "cpu" and backend == "numba":
        choose("orthogonal_matching_pursuit", z, backend)  # raises
    return pursue_reference(z, n_nonzero, tol, normalize)


def _to_csr(chosen: Tensor, values: Tensor, n: int) -> Tensor:
    columns, order = torch.where(chosen < 0, n, chosen).sort(dim=1)
    present = columns < n
    indptr = torch.zeros(n + 1, dtype=torch.int64, device=chosen.device)
    torch.cumsum(present.sum(1), 0, out=indptr[1:])
    entries = values.gather(1, order)[present]
    return torch.sparse_csr_tensor(indptr, columns[present], entries, (n, n), check_invariants=True)
