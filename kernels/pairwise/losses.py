"""The room's losses over all pairs of rows of a batch: their docstrings are the specification."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from fastdc.kernels._autograd import refuse_transforms
from fastdc.kernels._backend import BackendError, choose
from fastdc.kernels._checks import check_centers, check_labels, check_not_negative, check_points, check_positive
from fastdc.kernels._precision import working_dtype
from fastdc.kernels.pairwise import custom_ops, reference
from fastdc.kernels.pairwise.clusters import hardest_pairs

Margin = float | Literal["soft"]
Mining = Literal["hard", "all"]


def pairwise_bce(
    f: Tensor,
    labels: Tensor | None = None,
    upper: float = 0.95,
    lower: float = 0.455,
    *,
    chosen_by: Tensor | None = None,
    eps: float = 1e-6,
    backend: str | None = None,
) -> Tensor:
    r"""Binary cross-entropy of "the same cluster" over all pairs of rows, by the cosine of their label features.

    .. math:: L = -\frac{1}{|S|} \sum_{(i, j) \in S} r_{ij} \log (g_{ij} + \epsilon)
              + (1 - r_{ij}) \log (1 - g_{ij} + \epsilon), \quad g_{ij} = \frac{f_i \cdot f_j}{|f_i| |f_j|}

    Without labels, as in DAC, a pair with :math:`g \ge upper` is positive (r = 1), one with :math:`g < lower`
    negative (r = 0), and those between are left out; where other rows choose, g of the condition is theirs. With
    labels, pairs of the same label are positive and all others negative; rows with a label below zero are left out.
    No row makes a pair with itself. Same as, without any (n_samples, n_samples) matrix::

        f = f / f.norm(dim=1, keepdim=True)
        g = f @ f.T
        positive, negative = g >= upper, g < lower  # or the same of chosen_by, or labels == labels[:, None], and not
        selected = (positive | negative).fill_diagonal_(False)
        g = g.clamp(0, 1)
        loss = -torch.where(positive, g + eps, 1 - g + eps).log()[selected].mean()

    Parameters
    ----------
    f : Tensor of shape (n_samples, n_clusters), float32 | float64 | float16 | bfloat16
        Softmax outputs, or any rows whose cosines mean something; a row of zeros has similarity 0. Any strides.
    labels : Tensor of shape (n_samples,), int64, optional
        Known or pseudo labels, any ids; -1 is unknown.
    upper, lower : float, lower <= upper
        Thresholds of the selection, unused with labels. DAC begins with these and narrows them:
        0.95 - t and 0.455 + 0.1 t.
    chosen_by : Tensor of shape (n_samples, n_clusters), optional
        Rows by whose cosines pairs are chosen, instead of those of f: DAC chooses by the rows as they are, and learns
        from transforms of them. Not beside labels.
    eps : float > 0
        Keeps the logarithms finite.
    backend : {None, "reference", "numba", "triton"}
        None chooses by device (see ``fastdc.explain``); a name forces it or raises ``BackendError``.

    Returns
    -------
    loss : Tensor, zero-dimensional, float32 (float64 for float64 f)
        Mean over the selected pairs; 0 where there is none.

    Notes
    -----
    Gradients: to f, computed in the forward pass; a second derivative raises. The selection has none.
    Memory: four matrices the size of f, the gradient among them, three more with ``chosen_by``, and 100 kB a thread.
    Precision: similarities in float32 or wider; sums over pairs in float64.
    Determinism: same bits for any number of threads on CPUs; no atomics on GPUs.

    References
    ----------
    Chang, Wang, Meng, Xiang, Pan. Deep Adaptive Image Clustering. ICCV 2017, eq. (1) to (3), over the pairs that are
    selected for training.

    Examples
    --------
    >>> import torch
    >>> f = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]])
    >>> round(pairwise_bce(f, torch.tensor([0, 0, 1])).item(), 4)  # (0 + 2 log(1 / 0.4)) / 3
    0.6109
    """
    check_points(f, "f", "n_clusters")
    if labels is not None:
        check_labels(labels, f.shape[0], "labels", f)
    limits = [*check_thresholds(upper, lower), check_positive(eps, "eps")]
    if chosen_by is not None:
        if labels is not None:
            raise ValueError("labels and chosen_by both say which pairs are positive; pass one of them")
        check_centers(chosen_by, f, "chosen_by", "f")
        if len(chosen_by) != len(f):
            raise ValueError(f"chosen_by has {len(chosen_by)} rows but f has {len(f)}; they are forms of the same rows")
    name = choose("pairwise_bce", f, backend)
    unit = _of_length_one(f, working_dtype(f))
    chooser = None if chosen_by is None else _of_length_one(chosen_by.detach(), unit.dtype)
    if name == "reference":
        return reference.pairwise_bce_reference(unit, labels, chooser, *limits)
    refuse_transforms("pairwise_bce", f)
    return custom_ops.pairwise_bce(name, unit, labels, chooser, limits)


def _of_length_one(f: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows over their lengths; rows of zeros stay."""
    wide = f.to(dtype).contiguous()  # so that strides change no bit
    norms = wide.norm(dim=1, keepdim=True)
    return wide / torch.where(norms == 0, 1.0, norms)


def soft_nearest_neighbor_loss(
    x: Tensor, labels: Tensor, temperature: float = 1.0, *, backend: str | None = None
) -> Tensor:
    r"""How entangled classes are: the log share of a row's own class among its neighbours, softly counted.

    .. math:: L = -\frac{1}{|V|} \sum_{i \in V} \log
              \frac{\sum_{j \ne i,\, l_j = l_i} e^{-|x_i - x_j|^2 / T}}{\sum_{j \ne i} e^{-|x_i - x_j|^2 / T}}

    V are the rows that share their label with another one; there is no such sum for the rest. Same as, without any
    (n_samples, n_samples) matrix::

        scores = -torch.cdist(x, x).square().fill_diagonal_(inf) / temperature
        same = (labels == labels[:, None]).fill_diagonal_(False)
        terms = scores.logsumexp(1) - scores.masked_fill(~same, -inf).logsumexp(1)
        loss = terms[same.any(1)].mean()

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Any strides.
    labels : Tensor of shape (n_samples,), int64
        Any ids.
    temperature : float > 0
        T: of the squared distances that count as near.
    backend
        As in :func:`pairwise_bce`.

    Returns
    -------
    loss : Tensor, zero-dimensional, float32 (float64 for float64 x)
        0 where no two rows share a label.

    Notes
    -----
    Gradients: to x, computed in the forward pass; a second derivative raises.
    Memory: two copies of the rows, the gradient, 48 bytes a row, and 100 kB a thread.
    Precision: distances are as exact as differences; log domain, so that no distance is too large for T. The
    gradient is a sum of what other classes weigh: nothing cancels where the classes are apart.
    Determinism: same bits for any number of threads on CPUs; no atomics on GPUs.

    References
    ----------
    Frosst, Papernot, Hinton. Analyzing and Improving Representations with the Soft Nearest Neighbor Loss.
    ICML 2019, eq. (1).

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[0.0], [1.0], [1.0]])
    >>> round(soft_nearest_neighbor_loss(x, torch.tensor([0, 0, 1])).item(), 4)  # (log 2 + log(1 + e)) / 2
    1.0032
    """
    check_points(x)
    check_labels(labels, x.shape[0], "labels", x)
    scale = check_positive(temperature, "temperature")
    name = choose("soft_nearest_neighbor_loss", x, backend)
    if name == "reference":
        return reference.soft_nearest_neighbor_loss_reference(x, labels, scale)
    refuse_transforms("soft_nearest_neighbor_loss", x)
    return custom_ops.soft_nearest_neighbor_loss(name, x, labels, scale)


def triplet_loss(
    x: Tensor, labels: Tensor, margin: Margin = "soft", mining: Mining = "hard", *, backend: str | None = None
) -> Tensor:
    r"""Triplet loss: each row against its farthest positive and its nearest negative in the batch, or against all.

    .. math:: L = \frac{1}{|V|} \sum_{i \in V} \left[ m + \max_{l_p = l_i} |x_i - x_p|
              - \min_{l_n \ne l_i} |x_i - x_n| \right]_+

    V are the rows that have both. The soft margin has :math:`\log (1 + e^{d_p - d_n})` in place of
    :math:`[m + d_p - d_n]_+`. Same as, without any (n_samples, n_samples) matrix::

        pairs = hardest_pairs(x, labels)
        gap = (x - x[pairs.positive]).norm(dim=1) - (x - x[pairs.negative]).norm(dim=1)
        terms = softplus(gap) if margin == "soft" else relu(gap + margin)
        loss = terms[(pairs.positive >= 0) & (pairs.negative >= 0)].mean()

    With ``mining="all"`` the mean over all triplets of the batch whose loss is above zero. Same as, without any
    (n_samples, n_samples, n_samples) matrix, in n log n steps a row::

        dists = torch.cdist(x, x)
        terms = (margin + dists[:, :, None] - dists[:, None, :]).relu()
        same, itself = labels == labels[:, None], torch.eye(n, dtype=torch.bool)
        valid = (same & ~itself)[:, :, None] & ~same[:, None, :]
        loss = terms[valid].sum() / (terms[valid] > 0).sum()

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Embeddings. Any strides.
    labels : Tensor of shape (n_samples,), int64
        Any ids.
    margin : "soft" or float >= 0
        A number with ``mining="all"``.
    mining : {"hard", "all"}
    backend
        As in :func:`pairwise_bce`; there is no Triton kernel of all triplets: on GPUs the reference runs.

    Returns
    -------
    loss : Tensor, zero-dimensional, float32 (float64 for float64 x)
        0 where no row has both a positive and a negative, and where no triplet has a loss above zero.

    Notes
    -----
    Gradients: to x, by torch through the chosen pairs; of every order. That of a distance of zero is zero. Those of
    all triplets are computed in the forward pass on CPUs; a second derivative raises there.
    Memory: six matrices the size of x, and what :func:`hardest_pairs` takes. For all triplets on CPUs seven matrices
    the size of x, and per thread another and 280 bytes a row; the reference holds (n_samples, n_samples) matrices.
    Precision: distances are as exact as differences. Triplets are counted, and their losses added up, in float64.
    Determinism: of equally far rows the first; same bits for any number of threads on CPUs.

    References
    ----------
    Hermans, Beyer, Leibe. In Defense of the Triplet Loss for Person Re-Identification. 2017, eq. (5), and section 2
    for all triplets with a loss above zero.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[0.0], [2.0], [3.0], [7.0]])
    >>> triplet_loss(x, torch.tensor([0, 0, 1, 1]), margin=0.5)  # (0 + 1.5 + 3.5 + 0) / 4
    tensor(1.2500)
    >>> triplet_loss(x, torch.tensor([0, 0, 1, 1]), 0.5, "all")  # (1.5 + 3.5 + 1.5) / 3
    tensor(2.1667)
    """
    check_points(x)
    check_labels(labels, x.shape[0], "labels", x)
    wanted = check_margin(margin, mining)
    if wanted is not None and mining == "all":
        return _all_triplets(x, labels, wanted, backend)
    pairs = hardest_pairs(x, labels, backend=choose("triplet_loss", x, backend))
    valid = (pairs.positive >= 0) & (pairs.negative >= 0)
    wide = x.to(working_dtype(x)).contiguous()  # so that strides change no bit
    gap = reference.row_dists(wide, wide[pairs.positive.clamp(min=0)])
    gap = gap - reference.row_dists(wide, wide[pairs.negative.clamp(min=0)])
    terms = torch.nn.functional.softplus(gap) if wanted is None else (gap + wanted).relu()
    return torch.where(valid, terms, 0.0).sum() / valid.sum().clamp(min=1)


def _all_triplets(x: Tensor, labels: Tensor, margin: float, backend: str | None) -> Tensor:
    if choose("triplet_loss", x, backend) == "numba":
        refuse_transforms("triplet_loss", x)
        return custom_ops.triplet_loss_all(x, labels, margin)
    if backend == "triton":
        raise BackendError("triplet_loss has no triton kernel for mining='all'; on GPUs its reference runs")
    return reference.triplet_loss_all_reference(x, labels, margin)


def check_margin(margin: Margin, mining: Mining = "hard") -> float | None:
    """The number, None for the soft margin."""
    if mining not in ("hard", "all"):
        raise ValueError(f"mining must be 'hard' or 'all', got {mining!r}")
    if isinstance(margin, str):
        if margin != "soft":
            raise ValueError(f"margin must be 'soft' or a finite number, 0 or above, got {margin!r}")
        if mining == "all":
            raise ValueError("margin must be a number with mining='all', such as 0.2, got 'soft'")
        return None
    return check_not_negative(margin, "margin")


def check_thresholds(upper: float, lower: float) -> tuple[float, float]:
    high, low = float(upper), float(lower)
    if not (math.isfinite(high) and math.isfinite(low) and low <= high):
        raise ValueError(f"upper and lower must be finite numbers, lower <= upper, got upper={upper}, lower={lower}")
    return high, low
