"""The public functions of the room: their docstrings are the specification."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from fastdc.kernels._autograd import refuse_transforms
from fastdc.kernels._backend import choose
from fastdc.kernels._checks import check_centers, check_points, check_positive
from fastdc.kernels._group import shares_of
from fastdc.kernels.sinkhorn import custom_ops
from fastdc.kernels.sinkhorn.checks import check_iteration, check_marginals, check_queue
from fastdc.kernels.sinkhorn.reference import sinkhorn_assign_reference, swapped_prediction_loss_reference


def sinkhorn_assign(
    scores: Tensor,
    epsilon: float = 0.05,
    n_iters: int = 3,
    row_marginal: Tensor | None = None,
    column_marginal: Tensor | None = None,
    tol: float | None = None,
    group: Any = None,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Balanced soft assignment of samples to prototypes: the codes of SwAV, eq. (3) and (5).

    .. math:: Q = \operatorname{diag}(u) \exp(S / \epsilon) \operatorname{diag}(v), \quad
              Q^\top a = b, \quad Q 1 = 1

    where a and b are the marginals of the rows and the columns. Each iteration scales the columns, then the rows.
    Same as, without the overflow of the exponential and with one pass over the scores an iteration::

        log_q, u = scores.double() / epsilon, torch.zeros(n, dtype=torch.float64)
        for _ in range(n_iters):
            v = column_marginal.log() - (log_q + u[:, None]).logsumexp(0)
            u = row_marginal.log() - (log_q + v).logsumexp(1)
        q = (log_q + v).softmax(1)

    Parameters
    ----------
    scores : Tensor of shape (n_samples, n_prototypes), float32 | float64 | float16 | bfloat16
        Similarities, larger is nearer. Any strides. An entry of minus infinity forbids a pair.
    epsilon : float > 0
        Entropic regularisation; the smaller, the harder the assignment.
    n_iters : int >= 1
        Iterations, with ``tol`` the most of them.
    row_marginal : Tensor of shape (n_samples,), optional
        Weights of the samples, positive, of any sum. Uniform by default.
    column_marginal : Tensor of shape (n_prototypes,), optional
        Wanted masses of the prototypes, 0 or above, of any sum. Uniform by default.
    tol : float, optional
        Stop after the first iteration whose column marginal (of a total of one) is within ``tol`` of the wanted
        one, as a sum of absolute differences.
    group : torch.distributed.ProcessGroup, optional
        Over whose processes the rows are spread, each with any number of them, in eager mode. Marginals are those
        of all rows: the sums of columns are added up over the processes in each iteration, in float64. Each process
        passes its own part of ``row_marginal``, and gets the codes of its own rows.
    backend : {None, "reference", "numba", "triton"}
        None chooses by device (see ``fastdc.explain``); a name forces it or raises ``BackendError``.

    Returns
    -------
    q : Tensor of shape (n_samples, n_prototypes)
        P / row_marginal: rows sum to 1. float64 for float64 scores, else float32.

    Notes
    -----
    Gradients: none; codes are constants.
    Memory: the result, 16 bytes a sample, and 50 bytes a prototype and thread.
    Precision: potentials are float64, and exponents exact to the last bit of their fraction while
    abs(scores) / epsilon is below 1e7: what cancels between scores and potentials loses nothing. On CPUs
    1 / epsilon itself is rounded to float32, and where all scores lie within 69 epsilon, as SwAV's do, their
    exponentials are made once and kept in the result; else they are made anew in each iteration.
    Limits: a prototype whose scores are all minus infinity gets q = 0, others share its mass; a sample without a
    finite score, NaN and plus infinity make q NaN. On CPUs scores below -7e34 epsilon count as minus infinity.
    Determinism: same bits for any number of threads on CPUs; on GPUs sums are made in a fixed order.

    References
    ----------
    Caron et al. Unsupervised Learning of Visual Features by Contrasting Cluster Assignments. NeurIPS 2020.
    Cuturi. Sinkhorn Distances: Lightspeed Computation of Optimal Transport. NeurIPS 2013.

    Examples
    --------
    >>> import torch
    >>> sinkhorn_assign(torch.tensor([[0.9, 0.1], [0.8, 0.1]]), epsilon=0.1).round(decimals=2)
    tensor([[0.6200, 0.3800],
            [0.3800, 0.6200]])
    """
    check_points(scores, "scores", "n_prototypes")
    epsilon, n_iters, tol = check_iteration(epsilon, n_iters, tol, group)
    weights = check_marginals(row_marginal, column_marginal, scores, scores.shape[1])
    name = choose("sinkhorn_assign", scores, backend)
    options = (epsilon, n_iters, tol, *weights, group)
    if name == "reference":
        return sinkhorn_assign_reference(scores.detach(), *options)
    return custom_ops.sinkhorn_assign(name, scores.detach(), *options)


def swapped_prediction_loss(
    z1: Tensor,
    z2: Tensor,
    prototypes: Tensor,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    n_iters: int = 3,
    queue: Tensor | None = None,
    group: Any = None,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""The loss of SwAV for two views: each predicts the codes of the other, eq. (1) and (2).

    .. math:: L = -\frac{1}{2n} \sum_i \sum_k \left(q^{(2)}_{ik} \log p^{(1)}_{ik}
                  + q^{(1)}_{ik} \log p^{(2)}_{ik}\right), \quad
              p^{(v)}_{ik} = \frac{\exp(z^{(v)}_i \cdot c_k / \tau)}{\sum_l \exp(z^{(v)}_i \cdot c_l / \tau)}

    with q the codes of :func:`sinkhorn_assign`, which are constants. Same as, on CPUs without any
    (n_samples, n_prototypes) matrix::

        s1, s2 = z1 @ prototypes.T, z2 @ prototypes.T
        q1, q2 = (sinkhorn_assign(s, epsilon, n_iters) for s in (s1, s2))
        p1, p2 = ((s / temperature).log_softmax(1) for s in (s1, s2))
        loss = -((q2 * p1).sum(1) + (q1 * p2).sum(1)).mean() / 2

    Parameters
    ----------
    z1, z2 : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Embeddings of the two views; SwAV's have length one. Any strides.
    prototypes : Tensor of shape (n_prototypes, n_features)
        SwAV's have length one too. May differ from z1 and z2 in floating dtype.
    temperature : float > 0
        Of the predictions.
    epsilon, n_iters
        As in :func:`sinkhorn_assign`.
    queue : Tensor of shape (2, n_queued, n_features), optional
        Embeddings of earlier batches, of either view, that take part in the codes' balance; only the batch's own
        rows have codes in the loss. No gradient.
    group : torch.distributed.ProcessGroup, optional
        Over whose processes the rows are spread, each with any number of them, in eager mode. Codes are balanced
        over all rows and queues; each process returns W / N times the sum over its own rows, with W processes and
        N rows in all, so that the average over the processes, which ``DistributedDataParallel`` makes of the
        gradients too, is what one process with all rows gets.
    backend : {None, "reference", "numba", "triton"}
        None chooses by device (see ``fastdc.explain``); a name forces it or raises ``BackendError``.

    Returns
    -------
    loss : Tensor, a scalar
        float64 where an input is float64, else float32.

    Notes
    -----
    Gradients: to z1, z2 and prototypes, once (a second derivative raises on CPUs); none through the codes.
    Memory: on CPUs the gradients, 528 bytes a prototype and thread, and the gradient of the prototypes once more
    a thread: scores are computed again in each of the passes. Of at most 2048 rows whose scores and exponentials
    take at most 32 MB together these are held instead, and the thread keeps this memory. A queue is copied. On GPUs
    the codes come from the fused kernel and the rest from torch, which holds (n_samples, n_prototypes) matrices.
    Precision: computed in float32 or wider.
    Determinism: same bits for any number of threads on CPUs.

    References
    ----------
    Caron et al. Unsupervised Learning of Visual Features by Contrasting Cluster Assignments. NeurIPS 2020.

    Examples
    --------
    >>> import torch
    >>> z = torch.eye(2)
    >>> swapped_prediction_loss(z, z, torch.eye(2)).item() < swapped_prediction_loss(z, z.flip(0), torch.eye(2)).item()
    True
    """
    check_points(z1, "z1")
    check_centers(z2, z1, "z2", "z1")
    check_centers(prototypes, z1, "prototypes", "z1")
    if z1.shape != z2.shape:
        raise ValueError(f"z1 has {z1.shape[0]} rows but z2 has {z2.shape[0]}; they are two views of the same samples")
    temperature = check_positive(temperature, "temperature")
    epsilon, n_iters, _ = check_iteration(epsilon, n_iters, None, group)
    if queue is not None:
        check_queue(queue, z1)
    name = choose("swapped_prediction_loss", z1, backend)
    share = 1.0 / z1.shape[0]
    if group is not None:
        shares = shares_of(z1.shape[0], group, z1.device)
        share = len(shares.counts) / shares.total
    if name == "reference":
        assign = partial(sinkhorn_assign_reference, epsilon=epsilon, n_iters=n_iters, group=group)
        return share * swapped_prediction_loss_reference(z1, z2, prototypes, queue, temperature, assign)
    if name == "numba":
        refuse_transforms("swapped_prediction_loss", z1, z2, prototypes)
    scalars = [temperature, epsilon, float(n_iters), share]
    return custom_ops.swapped_prediction_loss(name, z1, z2, prototypes, queue, scalars, group)
