"""Optimal transport from (x, prototypes) and (x, centers): the docstrings are the specification."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from fastdc.kernels._autograd import refuse_transforms
from fastdc.kernels._backend import choose
from fastdc.kernels._checks import check_centers, check_points
from fastdc.kernels._precision import working_dtype
from fastdc.kernels.sinkhorn import transport_ops
from fastdc.kernels.sinkhorn.checks import check_iteration, check_marginals
from fastdc.kernels.sinkhorn.reference import optimal_transport_loss_reference, sinkhorn_assign_reference


class TransportLabels(NamedTuple):
    """What :func:`optimal_transport_labels` finds of each row."""

    labels: Tensor
    confidence: Tensor


def sinkhorn_assign_features(
    x: Tensor,
    prototypes: Tensor,
    epsilon: float = 0.05,
    n_iters: int = 3,
    row_marginal: Tensor | None = None,
    column_marginal: Tensor | None = None,
    tol: float | None = None,
    group: Any = None,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Codes of :func:`sinkhorn_assign` for the scores x @ prototypes.T, held nowhere but in the result. Same as::

        q = sinkhorn_assign(x @ prototypes.T, epsilon, n_iters, row_marginal, column_marginal, tol, group)

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Any strides; may lie on a memory-mapped array, of which blocks are read at most once an iteration.
    prototypes : Tensor of shape (n_prototypes, n_features)
        May differ from x in floating dtype.
    epsilon, n_iters, row_marginal, column_marginal, tol, group, backend
        As in :func:`sinkhorn_assign`.

    Returns
    -------
    q : Tensor of shape (n_samples, n_prototypes)
        Rows sum to 1. float64 where an input is float64, else float32.

    Notes
    -----
    Gradients: none; codes are constants.
    Memory: the result, 32 bytes a sample, and on CPUs 264 bytes a prototype and thread; on GPUs chunks of 2^24
    scores.
    Speed: on CPUs the product is made once and its exponentials are kept in the result, if the lengths of the rows
    say that all exponents lie within 69 epsilon (with rows of length one, an epsilon above 0.029); else once an
    iteration and once for the result.
    Precision: scores are computed in float32 or wider, what follows as in :func:`sinkhorn_assign`.
    Determinism: same bits for any number of threads on CPUs.

    References
    ----------
    Caron et al. Unsupervised Learning of Visual Features by Contrasting Cluster Assignments. NeurIPS 2020.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[0.9], [0.8]])
    >>> sinkhorn_assign_features(x, torch.tensor([[1.0], [0.0]]), epsilon=0.1).round(decimals=2)
    tensor([[0.6200, 0.3800],
            [0.3800, 0.6200]])
    """
    check_points(x)
    check_centers(prototypes, x, "prototypes")
    epsilon, n_iters, tol = check_iteration(epsilon, n_iters, tol, group)
    weights = check_marginals(row_marginal, column_marginal, x, prototypes.shape[0])
    name = choose("sinkhorn_assign_features", x, backend)
    if name == "reference":
        return sinkhorn_assign_reference(_scores(x, prototypes), epsilon, n_iters, tol, *weights, group)
    scalars = [epsilon, float(n_iters), tol or 0.0]
    return transport_ops.assign(name, x.detach(), prototypes.detach(), weights, scalars, group)


def optimal_transport_labels(
    x: Tensor,
    prototypes: Tensor,
    epsilon: float = 0.04,
    n_iters: int = 100,
    column_marginal: Tensor | None = None,
    tol: float | None = 0.01,
    group: Any = None,
    *,
    backend: str | None = None,
) -> TransportLabels:
    r"""Labels of whole data by optimal transport with balanced columns: SeLa, eq. (6) to (8).

    .. math:: \text{label}_i = \arg\max_j Q_{ij}, \quad Q = \operatorname{diag}(u) \exp(X C^\top / \epsilon)
              \operatorname{diag}(v), \quad \sum_i Q_{ij} = n b_j, \quad \sum_j Q_{ij} = 1

    SeLa's lambda is 1 / epsilon, and its cost -log softmax(x @ prototypes.T): the softmax divides rows, which their
    scaling takes back. Same as, without q::

        q = sinkhorn_assign_features(x, prototypes, epsilon, n_iters, None, column_marginal, tol, group)
        confidence, labels = q.max(1)

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Any strides; may lie on a memory-mapped array, of which blocks are read once an iteration.
    prototypes : Tensor of shape (n_prototypes, n_features)
        Weights of SeLa's last layer. A bias is one more feature, of x = 1.
    epsilon, n_iters, column_marginal, group, backend
        As in :func:`sinkhorn_assign`.
    tol : float, optional
        Stop once the masses of the columns, of a total of one, are within ``tol`` of the wanted ones, as a sum of
        absolute differences. None makes all iterations.

    Returns
    -------
    labels : Tensor of shape (n_samples,), int64
        The first of equal ones. Masses are balanced; counts of labels are as far as codes are hard.
    confidence : Tensor of shape (n_samples,)
        The code of the label. NaN where the row has none.

    Notes
    -----
    Gradients: none.
    Memory: 36 bytes a sample, and on CPUs 264 bytes a prototype and thread; on GPUs chunks of 2^24 scores.
    Each iteration is one product of x with the prototypes.
    Determinism: same bits for any number of threads on CPUs.

    References
    ----------
    Asano, Rupprecht and Vedaldi. Self-labelling via simultaneous clustering and representation learning. ICLR 2020.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.3], [0.7, 0.4]])
    >>> optimal_transport_labels(x, torch.eye(2)).labels
    tensor([0, 0, 1, 1])
    """
    check_points(x)
    check_centers(prototypes, x, "prototypes")
    epsilon, n_iters, tol = check_iteration(epsilon, n_iters, tol, group)
    weights = check_marginals(None, column_marginal, x, prototypes.shape[0])
    name = choose("optimal_transport_labels", x, backend)
    if name == "reference":
        q = sinkhorn_assign_reference(_scores(x, prototypes), epsilon, n_iters, tol, *weights, group)
        best = q.max(dim=1)
        return TransportLabels(best.indices, best.values)
    scalars = [epsilon, float(n_iters), tol or 0.0]
    return TransportLabels(*transport_ops.label(name, x.detach(), prototypes.detach(), weights, scalars, group))


def optimal_transport_loss(
    x: Tensor,
    centers: Tensor,
    epsilon: float = 0.1,
    n_iters: int = 100,
    row_marginal: Tensor | None = None,
    column_marginal: Tensor | None = None,
    tol: float | None = 1e-4,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Cost of moving the rows onto the centers under an entropic plan with given marginals.

    .. math:: L = \langle P, C \rangle, \quad C_{ij} = |x_i - c_j|^2, \quad
              P = \arg\min_{P 1 = a,\, P^\top 1 = b} \langle P, C \rangle + \epsilon \sum_{ij} P_{ij} \log P_{ij}

    The gradient holds the plan fixed. By the envelope theorem that is, at the converged plan, the exact gradient of
    the minimum of the *entropic* objective on the right; of <P, C> alone it leaves out that the plan moves too.
    Both descend to the same centers as epsilon falls. Same as, without any (n_samples, n_clusters) matrix::

        cost = (x[:, None] - centers).square().sum(2)
        with torch.no_grad():
            log_p, u = -cost / epsilon, torch.zeros(n)
            for _ in range(n_iters):
                v = column_marginal.log() - (log_p + u[:, None]).logsumexp(0)
                u = row_marginal.log() - (log_p + v).logsumexp(1)
            plan = (log_p + u[:, None] + v).exp()
        loss = (plan * cost).sum()

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Points. Any strides.
    centers : Tensor of shape (n_clusters, n_features)
        May differ from x in floating dtype.
    epsilon : float > 0
        Entropic regularisation, in units of squared distances.
    n_iters : int >= 1
        Iterations, with ``tol`` the most of them.
    row_marginal : Tensor of shape (n_samples,), optional
        Weights of the rows, positive, of any sum. Uniform by default.
    column_marginal : Tensor of shape (n_clusters,), optional
        Wanted masses of the clusters, 0 or above, of any sum. Uniform by default.
    tol : float, optional
        Stop after the first iteration whose column marginal is within ``tol`` of the wanted one, as a sum of
        absolute differences. None makes all iterations.
    backend : {None, "reference", "numba", "triton"}
        None chooses by device (see ``fastdc.explain``); a name forces it or raises ``BackendError``.

    Returns
    -------
    loss : Tensor, a scalar
        float64 where an input is float64, else float32.

    Notes
    -----
    Gradients: to x and centers, once (a second derivative raises); none to the marginals.
    Memory: the gradients, 32 bytes a sample, and on CPUs 520 bytes a center and thread, and the gradient of the
    centers once more a thread; on GPUs chunks of 2^24 distances in plain torch. On CPUs exponentials that take at
    most 32 MB are held between iterations, and this memory kept by the thread; beyond, distances are made anew in each.
    Precision: distances as exact as differences, potentials float64.
    Determinism: same bits for any number of threads on CPUs.

    References
    ----------
    Genevay, Dulac-Arnold and Vert. Differentiable Deep Clustering with Cluster Size Constraints. 2019, eq. (6).
    Cuturi. Sinkhorn Distances: Lightspeed Computation of Optimal Transport. NeurIPS 2013.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[0.0], [1.0], [3.0], [4.0]])
    >>> round(optimal_transport_loss(x, torch.tensor([[0.5], [3.5]])).item(), 4)
    0.25
    """
    check_points(x)
    check_centers(centers, x)
    epsilon, n_iters, tol = check_iteration(epsilon, n_iters, tol, None)
    weights = check_marginals(row_marginal, column_marginal, x, centers.shape[0])
    name = choose("optimal_transport_loss", x, backend)
    if name == "reference":
        return optimal_transport_loss_reference(x, centers, epsilon, n_iters, tol, *weights)
    refuse_transforms("optimal_transport_loss", x, centers)
    return transport_ops.cost(name, x, centers, weights, [epsilon, float(n_iters), tol or 0.0])


def _scores(x: Tensor, prototypes: Tensor) -> Tensor:
    dtype = working_dtype(x, prototypes)
    return x.detach().to(dtype) @ prototypes.detach().to(dtype).T
