"""Losses that hold columns against columns: clusters of two views, and features.

Cosines of columns follow from products over the rows, which are n_clusters x n_clusters: torch's own product makes
them at the limit of the machine, and sums of chunks and of processes add up.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastdc.kernels._autograd import refuse_transforms
from fastdc.kernels._checks import check_not_negative, check_points, check_positive
from fastdc.kernels._group import check_group, sum_over
from fastdc.kernels._precision import working_dtype
from fastdc.kernels.contrastive.rows import check_views, unit_rows
from fastdc.kernels.mutual_information.joint import joint_sum


def cluster_contrast(
    p1: Tensor, p2: Tensor, temperature: float = 1.0, balance: float = 1.0, *, group: Any = None
) -> Tensor:
    r"""Clusters held against clusters by how two views assign the rows to them: the cluster loss of CC.

    With y the 2k columns of both views, s their cosines and p(i) the same cluster in the other view

    .. math:: L = -\frac{1}{2k} \sum_{i=1}^{2k} \log
              \frac{\exp(s_{i p(i)} / \tau)}{\sum_{j \ne i} \exp(s_{ij} / \tau)}
              + \beta \, (2 \log k - H_1 - H_2), \quad H_v = -\sum_c P_{vc} \log P_{vc}

    P_v being the shares of the clusters in view v. The entropies are made large, so that clusters stay of equal size;
    log k makes the second term zero where they are, as in the authors' code. Same as, without (2k, 2k, n)::

        y = torch.nn.functional.normalize(torch.cat([p1, p2], dim=1), dim=0)
        scores = (y.T @ y / temperature).fill_diagonal_(-torch.inf)
        loss = torch.nn.functional.cross_entropy(scores, torch.arange(2 * k).roll(k))
        for p in (p1, p2):
            share = p.sum(0) / p.sum()
            loss = loss + balance * (math.log(k) + torch.special.xlogy(share, share).sum())

    Parameters
    ----------
    p1, p2 : Tensor of shape (n_samples, n_clusters), float32 | float64 | float16 | bfloat16
        Probabilities of two views of the same rows; rows sum to 1.
    temperature : float > 0
    balance : float >= 0
        β; 0 leaves the contrast alone.
    group : torch.distributed.ProcessGroup, optional
        The rows are spread over these processes. Products and shares are summed over them, nothing is gathered; every
        rank returns the loss of all rows, and the average of the ranks' gradients is that of one process.

    Returns
    -------
    loss : Tensor, a scalar
        float64 where an input is float64, else float32.

    Notes
    -----
    Gradients: to p1 and p2, once (a second derivative raises). A cluster that no row belongs to has cosine 0 to all
    others and no gradient by the contrast.
    Memory: three k x k products and the 2k x 2k scores; never n x 2k x 2k.
    Precision: products of at most 4,096 rows in float32, added up in float64.

    References
    ----------
    Li et al. Contrastive Clustering. AAAI 2021, eqs. (4) to (6).

    Examples
    --------
    >>> import torch
    >>> p = torch.eye(3).repeat(4, 1)
    >>> cluster_contrast(p, p).item() < cluster_contrast(p, p.roll(1, 1)).item()
    True
    """
    check_points(p1, "p1", "n_clusters")
    check_views(p1, p2, ("p1", "p2"))
    temperature, balance = check_positive(temperature, "temperature"), check_not_negative(balance, "balance")
    check_group(group)
    refuse_transforms("cluster_contrast", p1, p2)
    dtype, k = working_dtype(p1, p2), p1.shape[1]
    within1, across, within2 = (_products(a, b, dtype, group) for a, b in ((p1, p1), (p1, p2), (p2, p2)))
    lengths = torch.cat([_lengths(within1), _lengths(within2)])
    scores = torch.cat([torch.cat([within1, across], dim=1), torch.cat([across.T, within2], dim=1)])
    scores = scores / lengths[:, None] / (lengths * temperature)
    scores = scores.masked_fill(torch.eye(2 * k, dtype=torch.bool, device=scores.device), -torch.inf)
    loss = (scores.logsumexp(dim=1) - torch.cat([scores.diagonal(k), scores.diagonal(-k)])).mean()
    if balance:
        loss = loss + balance * (_imbalance(p1, dtype, group) + _imbalance(p2, dtype, group))
    return loss


def feature_decorrelation(z: Tensor, temperature: float = 2.0, normalize: bool = True, *, group: Any = None) -> Tensor:
    r"""Features held against features: the softmax-formulated decorrelation of IDFD, averaged over features.

    .. math:: L = -\frac{1}{d} \sum_l \log \frac{\exp(f_l \cdot f_l / \tau)}{\sum_m \exp(f_m \cdot f_l / \tau)}

    with f_l column l of z, given length one. Same as::

        f = torch.nn.functional.normalize(torch.nn.functional.normalize(z, dim=1), dim=0)
        loss = torch.nn.functional.cross_entropy(f.T @ f / temperature, torch.arange(d))

    Parameters
    ----------
    z : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
    temperature : float > 0
    normalize : bool
        Whether rows are given length one first.
    group : torch.distributed.ProcessGroup, optional
        As in :func:`cluster_contrast`.

    Returns
    -------
    loss : Tensor, a scalar
        float64 where z is float64, else float32.

    Notes
    -----
    Gradients, memory and precision: as in :func:`cluster_contrast`, with d for k. A feature that is zero in all rows
    has cosine 0 to all, itself too.

    References
    ----------
    Tao, Takagi, Nakata. Clustering-friendly Representation Learning via Instance Discrimination and Feature
    Decorrelation. ICLR 2021.

    Examples
    --------
    >>> import torch
    >>> feature_decorrelation(torch.eye(2)) < feature_decorrelation(torch.ones(2, 2))
    tensor(True)
    """
    check_points(z, "z")
    temperature = check_positive(temperature, "temperature")
    check_group(group)
    refuse_transforms("feature_decorrelation", z)
    dtype = working_dtype(z)
    z = unit_rows(z, dtype, normalize)
    products = _products(z, z, dtype, group)
    lengths = _lengths(products)
    scores = products / lengths[:, None] / (lengths * temperature)
    return (scores.logsumexp(dim=1) - scores.diagonal()).mean()


def _products(a: Tensor, b: Tensor, dtype: torch.dtype, group: Any) -> Tensor:
    """a^T b over the rows of all ranks."""
    return sum_over(joint_sum(a[None], b[None])[0].to(dtype), group)


def _lengths(products: Tensor) -> Tensor:
    """Of the columns; infinite for a column of zeros, whose cosines are then zero."""
    squares = products.diagonal()
    return squares.masked_fill(squares == 0, torch.inf).sqrt()


def _imbalance(p: Tensor, dtype: torch.dtype, group: Any) -> Tensor:
    """log k less the entropy of the clusters' shares."""
    sizes = sum_over(p.sum(dim=0, dtype=dtype), group)
    shares = sizes / sizes.sum()
    return math.log(p.shape[1]) - torch.special.entr(shares).sum()
