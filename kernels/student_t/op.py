"""The public functions of the room: their docstrings are the specification."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from fastdc.kernels import _checks
from fastdc.kernels._autograd import refuse_transforms
from fastdc.kernels._backend import choose
from fastdc.kernels._checks import (
    check_centers,
    check_labels,
    check_not_negative,
    check_points,
    check_positive,
    check_vector,
)
from fastdc.kernels._precision import resolve_precision
from fastdc.kernels.student_t import custom_ops
from fastdc.kernels.student_t.checks import check_target
from fastdc.kernels.student_t.reference import (
    dec_loss_reference,
    student_t_assign_reference,
    student_t_statistics_reference,
    target_distribution_reference,
)

REDUCTIONS = ("mean", "sum")


class StudentTStatistics(NamedTuple):
    """What one pass over the rows yields. ``merge`` puts the statistics of chunks together."""

    labels: Tensor
    confidence: Tensor
    frequency: Tensor
    n_changed: Tensor
    entropy: Tensor

    @staticmethod
    def merge(parts: Iterable[StudentTStatistics]) -> StudentTStatistics:
        """Statistics of all rows from those of consecutive chunks: rows follow each other, sums add up."""
        chunks = list(parts)
        if not chunks:
            raise ValueError("merge() needs the statistics of at least one chunk, got none")
        return StudentTStatistics(
            labels=torch.cat([c.labels for c in chunks]),
            confidence=torch.cat([c.confidence for c in chunks]),
            frequency=torch.stack([c.frequency for c in chunks]).sum(dim=0),
            n_changed=torch.stack([c.n_changed for c in chunks]).sum(),
            entropy=torch.cat([c.entropy for c in chunks]),
        )


def student_t_assign(
    x: Tensor,
    centers: Tensor,
    alpha: float = 1.0,
    *,
    backend: str | None = None,
    precision: str | None = None,
) -> Tensor:
    r"""Soft assignment of points to centers under a Student t kernel, eq. (1) of DEC.

    .. math:: q_{ij} = \frac{(1 + \|x_i - c_j\|^2/\alpha)^{-(\alpha+1)/2}}
                            {\sum_{l} (1 + \|x_i - c_l\|^2/\alpha)^{-(\alpha+1)/2}}

    Same as, without an (n_samples, n_clusters, n_features) intermediate::

        w = (1 + (x[:, None] - centers).square().sum(2) / alpha) ** (-(alpha + 1) / 2)
        q = w / w.sum(1, keepdim=True)

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Points. Any strides.
    centers : Tensor of shape (n_clusters, n_features)
        May differ from x in floating dtype.
    alpha : float > 0
        Degrees of freedom. A constant: it gets no gradient.
    backend : {None, "reference", "numba", "triton"}
        None chooses by device (see ``fastdc.explain``); a name forces it or raises ``BackendError``.
    precision : {None, "ieee", "tf32x3", "bf16x6", "tf32", "bf16"}
        Of the products inside the kernel. None is as accurate as IEEE float32.

    Returns
    -------
    q : Tensor of shape (n_samples, n_clusters)
        Rows sum to 1. dtype of x, or the wider one where x and centers differ.

    Notes
    -----
    Gradients: to x and centers, once (a second derivative raises).
    Memory: the result, and 256 bytes a center and thread.
    Precision: computed in float32 or wider; distances are as accurate as those of differences x - c, also far
    from the origin. Squared distances above 1e36 alpha (float32) count as equal.
    Determinism: same bits for any number of threads on CPUs; on GPUs sums are made in a fixed order.
    Limits: tested from 1 to 1,000,000 rows, 20,000 centers, 1,024 features.

    References
    ----------
    Xie, Girshick, Farhadi. Unsupervised Deep Embedding for Clustering Analysis. ICML 2016.

    Examples
    --------
    >>> import torch
    >>> student_t_assign(torch.zeros(1, 2), torch.eye(2))
    tensor([[0.5000, 0.5000]])
    """
    check_points(x)
    check_centers(centers, x)
    alpha = check_positive(alpha, "alpha")
    name = choose("student_t_assign", x, backend)
    precision = resolve_precision(precision, name, x)
    dtype = torch.promote_types(x.dtype, centers.dtype)
    if name == "reference":
        return student_t_assign_reference(x, centers, alpha).to(dtype)
    refuse_transforms("student_t_assign", x, centers)
    return custom_ops.student_t_assign(name, x, centers, alpha, precision).to(dtype)


def student_t_statistics(
    x: Tensor,
    centers: Tensor,
    alpha: float = 1.0,
    previous_labels: Tensor | None = None,
    *,
    backend: str | None = None,
    precision: str | None = None,
) -> StudentTStatistics:
    """Everything a refresh of DEC needs from one pass over the rows, without the soft assignment itself.

    Same as, without any (n_samples, n_clusters) matrix::

        q = student_t_assign(x, centers, alpha)
        labels, confidence = q.argmax(1), q.amax(1)
        frequency = q.sum(0)
        n_changed = (labels != previous_labels).sum()
        entropy = -torch.xlogy(q, q).sum(1)

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
    centers : Tensor of shape (n_clusters, n_features)
    alpha : float > 0
        Degrees of freedom.
    previous_labels : Tensor of shape (n_samples,), int64, optional
        Labels of the last refresh. Without them every row counts as changed.
    backend, precision
        As in :func:`student_t_assign`.

    Returns
    -------
    labels : Tensor of shape (n_samples,), int64
        Nearest center; of equally near ones the lowest index. -1 where a row is not finite.
    confidence : Tensor of shape (n_samples,)
        Largest q of the row.
    frequency : Tensor of shape (n_clusters,), float64
        Sum of q over the rows (finite rows only): f of eq. (3) of DEC.
    n_changed : Tensor, int64, zero-dimensional
        How many labels differ from the previous ones.
    entropy : Tensor of shape (n_samples,)
        Of each row of q, in nats.

    Notes
    -----
    Gradients: none; the results are detached.
    Memory: the results, and 256 bytes a center and thread.
    Streaming: call it a chunk of rows at a time; ``StudentTStatistics.merge`` adds up.
    Determinism: same bits for any number of threads on CPUs; on GPUs sums are made in a fixed order.

    References
    ----------
    Xie, Girshick, Farhadi. Unsupervised Deep Embedding for Clustering Analysis. ICML 2016.

    Examples
    --------
    >>> import torch
    >>> s = student_t_statistics(torch.tensor([[0.0], [4.0]]), torch.tensor([[0.0], [4.0]]))
    >>> s.labels, s.frequency
    (tensor([0, 1]), tensor([1., 1.], dtype=torch.float64))
    """
    check_points(x)
    check_centers(centers, x)
    alpha = check_positive(alpha, "alpha")
    if previous_labels is not None:
        check_labels(previous_labels, x.shape[0], "previous_labels", x)
    name = choose("student_t_statistics", x, backend)
    precision = resolve_precision(precision, name, x)
    x, centers = x.detach(), centers.detach()
    if name == "reference":
        return StudentTStatistics(*student_t_statistics_reference(x, centers, alpha, previous_labels))
    return StudentTStatistics(*custom_ops.student_t_statistics(name, x, centers, alpha, previous_labels, precision))


def target_distribution(
    q: Tensor,
    frequency: Tensor | None = None,
    power: float = 2.0,
    frequency_power: float = 1.0,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Sharpened target distribution P, eq. (3) of DEC.

    .. math:: p_{ij} \propto q_{ij}^{power} / f_j^{frequency\_power}, \quad \sum_j p_{ij} = 1

    Same as::

        weight = q**power / frequency**frequency_power
        p = weight / weight.sum(1, keepdim=True)

    DEC has (2, 1), DEPICT (1, 1/2), discriminatively boosted clustering a higher power.

    Parameters
    ----------
    q : Tensor of shape (n_samples, n_clusters), float32 | float64 | float16 | bfloat16
        Soft assignment, rows summing to 1.
    frequency : Tensor of shape (n_clusters,), optional
        Cluster mass f. None is ``q.sum(0)``. Its scale does not matter; a cluster with f = 0 gets p = 0.
    power, frequency_power : float
        power > 0, frequency_power >= 0.
    backend
        As in :func:`student_t_assign`.

    Returns
    -------
    p : Tensor of shape (n_samples, n_clusters), dtype of q
        A constant: it carries no gradient.

    References
    ----------
    Xie, Girshick, Farhadi. Unsupervised Deep Embedding for Clustering Analysis. ICML 2016.
    Dizaji et al. Deep clustering via joint convolutional autoencoder embedding and relative entropy
    minimization. ICCV 2017.

    Examples
    --------
    >>> import torch
    >>> target_distribution(torch.tensor([[0.8, 0.2], [0.5, 0.5]]))
    tensor([[0.8960, 0.1040],
            [0.3500, 0.6500]])
    """
    check_points(q, "q", "n_clusters")
    power = check_positive(power, "power")
    frequency_power = check_not_negative(frequency_power, "frequency_power")
    if frequency is not None:
        check_vector(frequency, q.shape[1], "frequency", q, "clusters")
    name = choose("target_distribution", q, backend)
    q = q.detach()
    if name == "reference":
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        return target_distribution_reference(q.to(dtype), frequency, power, frequency_power).to(q.dtype)
    return custom_ops.target_distribution(name, q, frequency, power, frequency_power)


def dec_loss(
    x: Tensor,
    centers: Tensor,
    *,
    target: Tensor | None = None,
    target_x: Tensor | None = None,
    target_centers: Tensor | None = None,
    frequency: Tensor | None = None,
    alpha: float = 1.0,
    power: float = 2.0,
    frequency_power: float = 1.0,
    reduction: str = "mean",
    check_finite: bool = False,
    backend: str | None = None,
    precision: str | None = None,
) -> Tensor:
    r"""The clustering loss of DEC and IDEC, KL(P || Q), eq. (2) of DEC, with gradients to x and centers.

    .. math:: L = \frac{1}{n} \sum_i \sum_j p_{ij} \log \frac{p_{ij}}{q_{ij}}

    Same as, without any (n_samples, n_clusters) matrix::

        q = student_t_assign(x, centers, alpha)
        p = target_distribution(q, frequency, power, frequency_power).detach()
        loss = (torch.xlogy(p, p) - torch.xlogy(p, q)).sum() / len(x)

    P is a constant and comes from one of four places:

    ====================================== =================================================================
    given                                  P
    ====================================== =================================================================
    nothing                                from q of these very rows, f their sum (one batch)
    target                                 the matrix given
    target_x, target_centers, frequency    the paper's form: frozen at a refresh over all rows, rebuilt here a
                                           row at a time from the refresh's embeddings, centers and f. With
                                           target_x from a clean view it is DEC-DA's.
    frequency                              from q of the current parameters with a stored f: a hybrid that is
                                           not the paper's
    ====================================== =================================================================

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Embeddings. Any strides.
    centers : Tensor of shape (n_clusters, n_features)
        May differ from x in floating dtype (autocast).
    target : Tensor of shape (n_samples, n_clusters), optional
        P itself, rows of x.
    target_x : Tensor of shape (n_samples, n_target_features), optional
        The same rows as embedded at the refresh. Needs target_centers and frequency.
    target_centers : Tensor of shape (n_clusters, n_target_features), optional
        Centers of the refresh.
    frequency : Tensor of shape (n_clusters,), optional
        f over all rows, as from :func:`student_t_statistics`. P does not depend on its scale.
    alpha : float > 0
        Degrees of freedom of the Student t kernel; no gradient.
    power, frequency_power : float
        Exponents of :func:`target_distribution`.
    reduction : {"mean", "sum"}
        "mean" divides by n_samples (torch's "batchmean").
    check_finite : bool
        Raise ValueError where x or centers hold NaN or infinity. Off by default: the check waits for the
        device. Without it a NaN row makes the loss NaN.
    backend, precision
        As in :func:`student_t_assign`.

    Returns
    -------
    loss : Tensor, zero-dimensional, float32 (float64 where an input is)

    Notes
    -----
    Gradients: to x and centers, each in its own dtype, computed in the forward pass (in float32 or wider) for
    the inputs that require one; a second derivative raises.
    Memory: the gradients, 8 bytes a center and feature, and a scratch of 260 + 4 d bytes a center and thread. On
    GPUs three floats a row (six with a frozen target) and at most 64 MB of partial sums.
    Precision: float32 or wider; gradients are those of differences x - c, also far from the origin.
    Determinism: same bits for any number of threads on CPUs; on GPUs sums are made in a fixed order.
    Limits: tested up to 2,000,000 rows, 20,000 centers, 1,024 features.

    References
    ----------
    Xie, Girshick, Farhadi. Unsupervised Deep Embedding for Clustering Analysis. ICML 2016.
    Guo, Gao, Liu, Yin. Improved Deep Embedded Clustering with Local Structure Preservation. IJCAI 2017.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[0.0], [1.0], [4.0]], requires_grad=True)
    >>> loss = dec_loss(x, torch.tensor([[0.0], [4.0]]))
    >>> loss.backward()
    >>> round(loss.item(), 4), x.grad.shape
    (0.0465, torch.Size([3, 1]))
    """
    check_points(x)
    check_centers(centers, x)
    alpha = check_positive(alpha, "alpha")
    power = check_positive(power, "power")
    frequency_power = check_not_negative(frequency_power, "frequency_power")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    check_target(x, centers, target, target_x, target_centers, frequency)
    if check_finite:
        _checks.check_finite(("x", x), ("centers", centers))
    name = choose("dec_loss", x, backend)
    precision = resolve_precision(precision, name, x)
    constants = [None if t is None else t.detach() for t in (target, target_x, target_centers, frequency)]
    divisor = float(x.shape[0]) if reduction == "mean" else 1.0
    if name == "reference":
        return dec_loss_reference(x, centers, constants, alpha, power, frequency_power) / divisor
    refuse_transforms("dec_loss", x, centers)
    return custom_ops.dec_loss(name, x, centers, constants, [alpha, power, frequency_power, divisor], precision)
