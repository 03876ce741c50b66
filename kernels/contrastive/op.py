"""NT-Xent, InfoNCE and the supervised contrastive loss: their docstrings are the specification."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdc.kernels._backend import choose
from fastdc.kernels._checks import check_centers, check_labels, check_points, check_positive
from fastdc.kernels._group import check_group, gather_rows, mean_over, shares_of
from fastdc.kernels._precision import resolve_precision, working_dtype
from fastdc.kernels.contrastive.custom_ops import contrast, contrast_loss, same_label_sums
from fastdc.kernels.contrastive.reference import sup_con_reference
from fastdc.kernels.contrastive.rows import check_views, unit_rows


def nt_xent(
    z1: Tensor,
    z2: Tensor,
    temperature: float = 0.5,
    normalize: bool = True,
    *,
    group: Any = None,
    precision: str | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""The loss of SimCLR for two views of a batch, eq. (1), averaged over all 2b anchors.

    .. math:: L = -\frac{1}{2b} \sum_{i=1}^{2b} \log
              \frac{\exp(z_i \cdot z_{p(i)} / \tau)}{\sum_{j \ne i} \exp(z_i \cdot z_j / \tau)}

    with p(i) the other view of i. Same as, without a (2b, 2b) matrix::

        z = torch.nn.functional.normalize(torch.cat([z1, z2]))
        scores = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
        loss = torch.nn.functional.cross_entropy(scores, torch.arange(2 * b).roll(b))

    Parameters
    ----------
    z1, z2 : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Embeddings of the two views. Any strides; they may differ in floating dtype.
    temperature : float > 0
    normalize : bool
        Whether rows are given length one first (cosine similarity).
    group : torch.distributed.ProcessGroup, optional
        The batch is spread over these processes, each with its own rows, of which there may be different numbers.
        Rank r returns W / N times the sum over its own anchors, with the rows of all W ranks as keys, so that the
        average of the ranks' gradients is that of one process with all rows.
    precision : {None, "ieee", "tf32x3", "bf16x6", "tf32", "bf16"}
        Of the products inside the GPU kernel; the default is as accurate as float32.
    backend : {None, "reference", "numba", "triton"}
        None chooses by device (see ``fastdc.explain``); a name forces it or raises ``BackendError``.

    Returns
    -------
    loss : Tensor, a scalar
        float64 where an input is float64, else float32.

    Notes
    -----
    Gradients: to z1 and z2, once (a second derivative raises, but for the reference).
    Memory: on CPUs the rows of length one, once more transposed, with gradients two more matrices of their size and
    half of one a thread; on GPUs up to 64 MB of partial sums; never anything of b x b, but that on CPUs exponentials
    of at most 4 MB are held (and this memory kept by the thread).
    Speed: on CPUs each product is made once for both directions, and once more for the gradients, which the forward
    pass makes. Where exponents may leave the range of the dtype
    (a temperature below 0.018 with rows of length one, in float32) rows have shifts of their own and a pass more.
    Precision: computed in float32 or wider, sums over rows in float64. Positives stand outside the sums, so that
    losses near zero, and their gradients, keep their digits.
    Limits: a row of zeros has similarity 0 to all others, and no gradient. NaN anywhere makes the loss NaN.
    Determinism: same bits for any number of threads on CPUs; on GPUs sums are made in a fixed order.

    References
    ----------
    Chen et al. A Simple Framework for Contrastive Learning of Visual Representations. ICML 2020.

    Examples
    --------
    >>> import torch
    >>> z = torch.eye(4)
    >>> nt_xent(z, z).item() < nt_xent(z, z.flip(0)).item()
    True
    """
    check_points(z1, "z1")
    check_views(z1, z2)
    scale = 1.0 / check_positive(temperature, "temperature")
    check_group(group)
    name = choose("nt_xent", z1, backend)
    precision = resolve_precision(precision, name, z1)
    if name == "numba" and group is None:
        return contrast_loss(z1, z2, None, scale, [normalize, True, False])
    dtype = working_dtype(z1, z2)
    z = torch.cat([unit_rows(z1, dtype, normalize), unit_rows(z2, dtype, normalize)])
    positives = _other_views(z1)
    if group is None:
        return contrast(name, z, None, positives, scale, precision=precision)[0].mean().to(dtype)
    shares = shares_of(z.shape[0], group, z.device)
    keys = gather_rows(z, shares, group)
    positives = positives + shares.offset
    rows, _ = contrast(name, z, keys, positives, scale, self_offset=shares.offset, precision=precision)
    return mean_over(rows, group, shares).to(dtype)


def info_nce(
    queries: Tensor,
    keys: Tensor,
    temperature: float = 0.1,
    symmetric: bool = True,
    extra_keys: Tensor | None = None,
    normalize: bool = True,
    *,
    group: Any = None,
    precision: str | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""InfoNCE: each query against all keys, its own among them, and each key against all queries.

    .. math:: L = -\frac{1}{2n} \sum_i \left(\log \frac{\exp(q_i \cdot k_i / \tau)}{\sum_j \exp(q_i \cdot k_j / \tau)
              + \sum_m \exp(q_i \cdot e_m / \tau)} + \log \frac{\exp(q_i \cdot k_i / \tau)}
              {\sum_j \exp(q_j \cdot k_i / \tau)}\right)

    the form of CLIP; with ``symmetric=False`` the first fraction alone, averaged: the form of CPC and of MoCo, whose
    queue are the extra keys e. Same as, in one pass for both directions and without a (b, m) matrix::

        q, k, e = (torch.nn.functional.normalize(t) for t in (queries, keys, extra_keys))
        scores, own = q @ torch.cat([k, e]).T / temperature, torch.arange(n)
        loss = torch.nn.functional.cross_entropy(scores, own)
        if symmetric:
            loss = (loss + torch.nn.functional.cross_entropy(scores[:, :n].T, own)) / 2

    Parameters
    ----------
    queries, keys : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Row i of both belongs together. Any strides; they may differ in floating dtype.
    temperature : float > 0
    symmetric : bool
        Whether keys are held against queries too.
    extra_keys : Tensor of shape (n_extra, n_features), optional
        More negatives of the queries, such as a memory bank; they are no anchors. With a group every rank uses its
        own as they are: pass the same to all.
    normalize, precision, backend
        As in :func:`nt_xent`.
    group : torch.distributed.ProcessGroup, optional
        As in :func:`nt_xent`; keys and, where symmetric, queries of all ranks are gathered.

    Returns
    -------
    loss : Tensor, a scalar
        float64 where an input is float64, else float32.

    Notes
    -----
    Gradients: to queries, keys and extra_keys, once, as in :func:`nt_xent`.
    Memory: on CPUs the rows of length one, once more transposed, and their gradients, the latter once more a thread,
    but nothing of the extra keys beside their gradient, if they need one; on GPUs up to 64 MB of partial sums; never
    anything of n x m, but that on CPUs exponentials of at most 4 MB are held.
    Speed: on CPUs extra keys cost one pass, in which queries get their gradients, and a second one for gradients of
    their own. Where exponents may leave the range they are keys like all others.
    Precision, limits, determinism: as in :func:`nt_xent`.

    References
    ----------
    van den Oord et al. Representation Learning with Contrastive Predictive Coding. 2018.
    He et al. Momentum Contrast for Unsupervised Visual Representation Learning. CVPR 2020.
    Radford et al. Learning Transferable Visual Models From Natural Language Supervision. ICML 2021.

    Examples
    --------
    >>> import torch
    >>> z = torch.eye(4)
    >>> info_nce(z, z).item() < info_nce(z, z, extra_keys=z).item()
    True
    """
    check_points(queries, "queries")
    check_views(queries, keys, ("queries", "keys"))
    given = [queries, keys]
    if extra_keys is not None:
        check_centers(extra_keys, queries, "extra_keys", "queries")
        given.append(extra_keys)
    scale = 1.0 / check_positive(temperature, "temperature")
    check_group(group)
    name = choose("info_nce", queries, backend)
    precision = resolve_precision(precision, name, queries)
    if name == "numba" and group is None:
        return contrast_loss(queries, keys, extra_keys, scale, [normalize, False, symmetric])
    dtype = working_dtype(*given)
    q, k, *extra = (unit_rows(x, dtype, normalize) for x in given)
    n = q.shape[0]
    positives = torch.arange(n, device=q.device)
    if group is None:
        all_keys = torch.cat([k, *extra]) if extra else k
        n_columns = n if symmetric else 0
        rows, columns = contrast(name, q, all_keys, positives, scale, n_columns=n_columns, precision=precision)
        return (rows.mean() if not symmetric else 0.5 * (rows.mean() + columns.mean())).to(dtype)
    shares = shares_of(n, group, q.device)
    positives = positives + shares.offset
    all_keys = torch.cat([gather_rows(k, shares, group), *extra])
    rows, _ = contrast(name, q, all_keys, positives, scale, precision=precision)
    if symmetric:
        columns, _ = contrast(name, k, gather_rows(q, shares, group), positives, scale, precision=precision)
        rows = 0.5 * (rows + columns)
    return mean_over(rows, group, shares).to(dtype)


def sup_con(
    z: Tensor,
    labels: Tensor,
    temperature: float = 0.1,
    normalize: bool = True,
    *,
    group: Any = None,
    precision: str | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""The supervised contrastive loss, eq. (2) ("out"), averaged over all rows.

    .. math:: L = -\frac{1}{n} \sum_i \frac{1}{|P(i)|} \sum_{p \in P(i)} \log
              \frac{\exp(z_i \cdot z_p / \tau)}{\sum_{j \ne i} \exp(z_i \cdot z_j / \tau)}

    with P(i) the other rows of i's label; a row without any adds nothing and counts in n. Same as, without an (n, n)
    matrix::

        z, own = torch.nn.functional.normalize(z), torch.eye(n, dtype=torch.bool)
        scores = z @ z.T / temperature
        log_p = scores - scores.masked_fill(own, -torch.inf).logsumexp(1, keepdim=True)
        positive = (labels[:, None] == labels) & ~own
        loss = -((positive * log_p).sum(1) / positive.sum(1).clamp(min=1)).mean()

    The sum over positives is a product with the sum of the label's rows, so that it costs nothing of n x n.

    Parameters
    ----------
    z : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Embeddings, all views of all samples one below the other; at least two rows. Any strides.
    labels : int64 Tensor of shape (n_samples,)
        Any numbers.
    temperature : float > 0
    normalize, precision, backend
        As in :func:`nt_xent`.
    group : torch.distributed.ProcessGroup, optional
        As in :func:`nt_xent`; labels are compared across ranks.

    Returns
    -------
    loss : Tensor, a scalar
        float64 where z is float64, else float32.

    Notes
    -----
    Gradients: to z, once, as in :func:`nt_xent`.
    Memory: as in :func:`nt_xent`, and three more matrices of the size of z.
    Precision, limits, determinism: as in :func:`nt_xent`.

    References
    ----------
    Khosla et al. Supervised Contrastive Learning. NeurIPS 2020.

    Examples
    --------
    >>> import torch
    >>> z = torch.eye(2).repeat(3, 1)
    >>> sup_con(z, torch.tensor([0, 1, 0, 1, 0, 1])).item() < sup_con(z, torch.tensor([0, 0, 0, 1, 1, 1])).item()
    True
    """
    check_points(z, "z")
    check_labels(labels, z.shape[0], "labels", z)
    scale = 1.0 / check_positive(temperature, "temperature")
    check_group(group)
    if group is None and z.shape[0] < 2:
        raise ValueError("z has 1 row; a contrastive loss needs at least two, one to be held against the other")
    name = choose("sup_con", z, backend)
    precision = resolve_precision(precision, name, z)
    dtype = working_dtype(z)
    z = unit_rows(z, dtype, normalize)
    if group is None:
        if name == "reference":
            return sup_con_reference(z, labels, scale).mean()
        log_sums, _ = contrast(name, z, None, None, scale, precision=precision)
        return _less_positives(log_sums, z, same_label_sums(z, labels, labels), scale).mean().to(dtype)
    shares = shares_of(z.shape[0], group, z.device)
    keys, key_labels = gather_rows(z, shares, group), gather_rows(labels, shares, group)
    log_sums, _ = contrast(name, z, keys, None, scale, self_offset=shares.offset, precision=precision)
    rows = _less_positives(log_sums, z, same_label_sums(keys, key_labels, labels), scale)
    return mean_over(rows, group, shares).to(dtype)


def _less_positives(log_sums: Tensor, z: Tensor, sums_and_counts: tuple[Tensor, Tensor], scale: float) -> Tensor:
    """Loss of each row (n,); the sums of its label hold the row itself."""
    sums, counts = sums_and_counts
    others = (z * (sums - z)).sum(dim=1) * (scale / (counts - 1).clamp_min(1).to(z.dtype))
    return torch.where(counts > 1, log_sums - others, 0.0)


def _other_views(z1: Tensor) -> Tensor:
    """Row i + b for row i of the first view, and back."""
    places = torch.arange(2 * z1.shape[0], device=z1.device)
    return places.roll(z1.shape[0])
