"""Rows held against keys that they share: prototypes of clusters, and one stored row for every sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdc.kernels._backend import choose
from fastdc.kernels._checks import check_centers, check_points, check_positive, check_vector
from fastdc.kernels._group import check_group, mean_over
from fastdc.kernels._precision import resolve_precision, working_dtype
from fastdc.kernels.contrastive.custom_ops import contrast, contrast_loss, same_label_sums
from fastdc.kernels.contrastive.rows import check_places, unit_rows


def prototype_contrast(
    z: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    *,
    group: Any = None,
    precision: str | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Cross-entropy of rows against the prototypes of clusters, each with a temperature of its own: ProtoNCE of PCL.

    .. math:: L = -\frac{1}{n} \sum_i \log
              \frac{\exp(z_i \cdot c_{y_i} / \phi_{y_i})}{\sum_j \exp(z_i \cdot c_j / \phi_j)}

    Same as, without an (n, k) matrix::

        z, c = torch.nn.functional.normalize(z), torch.nn.functional.normalize(prototypes)
        loss = torch.nn.functional.cross_entropy(z @ c.T / temperature, labels)

    Parameters
    ----------
    z : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Embeddings.
    prototypes : Tensor of shape (n_clusters, n_features)
    labels : int64 Tensor of shape (n_samples,)
        Which prototype each row belongs to.
    temperature : float > 0, or Tensor of shape (n_clusters,)
        One of all prototypes, or one of each: PCL's concentrations, see :func:`prototype_concentration`.
    normalize : bool
        Whether rows of both are given length one first.
    group : torch.distributed.ProcessGroup, optional
        The rows are spread over these processes, which share the prototypes: rank r returns W / N times the sum over
        its own rows, so that the average of the ranks' gradients is that of one process.
    precision, backend
        As in :func:`nt_xent`.

    Returns
    -------
    loss : Tensor, a scalar
        float64 where an input is float64, else float32.

    Notes
    -----
    Gradients: to z, prototypes and a tensor of temperatures, once, as in :func:`nt_xent`.
    Memory: rows and prototypes of length one and their gradients, the latter once more a thread; never n x k, but that
    on CPUs exponentials of at most 4 MB are held.
    Precision, limits, determinism: as in :func:`nt_xent`.

    References
    ----------
    Li et al. Prototypical Contrastive Learning of Unsupervised Representations. ICLR 2021, eq. (11).

    Examples
    --------
    >>> import torch
    >>> z = torch.eye(3)
    >>> right = prototype_contrast(z, z, torch.tensor([0, 1, 2]))
    >>> bool(right < prototype_contrast(z, z, torch.tensor([1, 2, 0])))
    True
    """
    check_points(z, "z")
    check_centers(prototypes, z, "prototypes", "z")
    check_places(labels, z.shape[0], prototypes.shape[0], "labels", z, "prototypes")
    dtype = working_dtype(z, prototypes)
    if isinstance(temperature, Tensor):
        check_vector(temperature, prototypes.shape[0], "temperature", z, "prototypes")
        keys, scale = unit_rows(prototypes, dtype, normalize) / temperature.to(dtype)[:, None], 1.0
        z, normalize = unit_rows(z, dtype, normalize), False
    else:
        keys, scale = prototypes, 1.0 / check_positive(temperature, "temperature")
    options = {"group": group, "precision": precision, "backend": backend}
    return _against("prototype_contrast", z, keys, labels, scale, normalize, **options)


def instance_discrimination(
    z: Tensor,
    memory_bank: Tensor,
    indices: Tensor,
    temperature: float = 1.0,
    normalize: bool = True,
    *,
    group: Any = None,
    precision: str | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Each row is to be told from all samples by what is stored of them: the first loss of IDFD.

    .. math:: L = -\frac{1}{b} \sum_i \log
              \frac{\exp(z_i \cdot v_{s_i} / \tau)}{\sum_{j=1}^{n} \exp(z_i \cdot v_j / \tau)}

    with s_i the sample of row i and v the memory bank of all n samples. Same as, without a (b, n) matrix::

        z, v = torch.nn.functional.normalize(z), torch.nn.functional.normalize(memory_bank)
        loss = torch.nn.functional.cross_entropy(z @ v.T / temperature, indices)

    Parameters
    ----------
    z : Tensor of shape (n_rows, n_features), float32 | float64 | float16 | bfloat16
        Embeddings of a batch.
    memory_bank : Tensor of shape (n_samples, n_features)
        Past embeddings of all samples.
    indices : int64 Tensor of shape (n_rows,)
        Which sample each row is.
    temperature : float > 0
    normalize, group, precision, backend
        As in :func:`prototype_contrast`.

    Returns
    -------
    loss : Tensor, a scalar
        float64 where an input is float64, else float32.

    Notes
    -----
    Gradients, memory, precision, determinism: as in :func:`prototype_contrast`.

    References
    ----------
    Tao, Takagi, Nakata. Clustering-friendly Representation Learning via Instance Discrimination and Feature
    Decorrelation. ICLR 2021.
    Wu et al. Unsupervised Feature Learning via Non-Parametric Instance Discrimination. CVPR 2018, eq. (2).

    Examples
    --------
    >>> import torch
    >>> bank = torch.eye(4)
    >>> round(instance_discrimination(bank[:2], bank, torch.tensor([0, 1])).item(), 4)  # log(e + 3) - 1
    0.7437
    """
    check_points(z, "z")
    check_centers(memory_bank, z, "memory_bank", "z")
    check_places(indices, z.shape[0], memory_bank.shape[0], "indices", z, "memory_bank")
    scale = 1.0 / check_positive(temperature, "temperature")
    options = {"group": group, "precision": precision, "backend": backend}
    return _against("instance_discrimination", z, memory_bank, indices, scale, normalize, **options)


def prototype_concentration(z: Tensor, prototypes: Tensor, labels: Tensor, smoothing: float = 10.0) -> Tensor:
    r"""How concentrated the rows around each prototype are, eq. (12) of PCL; small where they are close and many.

    .. math:: \phi_c = \frac{\sum_{i \in c} \lVert z_i - c \rVert}{n_c \log(n_c + \alpha)}

    PCL scales these numbers to a mean temperature: ``0.1 * phi / phi.mean()``.

    Parameters
    ----------
    z, prototypes, labels
        As in :func:`prototype_contrast`; give them length one first if the loss does.
    smoothing : float > 0
        α.

    Returns
    -------
    phi : Tensor of shape (n_clusters,)
        float64 where an input is float64, else float32. A prototype with fewer than two rows, or whose rows all lie
        on it, has the largest number of the others (1 where there are none).

    Notes
    -----
    Gradients: none.
    Memory: one matrix of the size of z.

    References
    ----------
    Li et al. Prototypical Contrastive Learning of Unsupervised Representations. ICLR 2021.

    Examples
    --------
    >>> import torch
    >>> z = torch.tensor([[0.0], [2.0], [5.0], [5.2]])
    >>> phi = prototype_concentration(z, torch.tensor([[1.0], [5.1]]), torch.tensor([0, 0, 1, 1]))
    >>> bool(phi[0] > phi[1])
    True
    """
    check_points(z, "z")
    check_centers(prototypes, z, "prototypes", "z")
    check_places(labels, z.shape[0], prototypes.shape[0], "labels", z, "prototypes")
    smoothing = check_positive(smoothing, "smoothing")
    dtype = working_dtype(z, prototypes)
    with torch.no_grad():
        distances = torch.linalg.vector_norm(z.to(dtype) - prototypes.to(dtype)[labels], dim=1, keepdim=True)
        every = torch.arange(prototypes.shape[0], device=z.device)
        sums, counts = same_label_sums(distances, labels, every)
        phi = sums[:, 0] / (counts * (counts.to(dtype) + smoothing).log())
        known = (counts > 1) & (sums[:, 0] > 0)
        largest = torch.where(known, phi, 0.0).amax()
        return torch.where(known, phi, torch.where(largest > 0, largest, 1.0)).to(dtype)


def _against(
    op: str,
    z: Tensor,
    keys: Tensor,
    places: Tensor,
    scale: float,
    normalize: bool,
    *,
    group: Any,
    precision: Any,
    backend: Any,
) -> Tensor:
    """Mean over rows of the cross-entropy against all keys; the rows of a rank where there is a group."""
    check_group(group)
    name = choose(op, z, backend)
    if name == "numba" and group is None:
        resolve_precision(precision, name, z)  # refuses what it does not have
        return contrast_loss(z, keys, None, scale, [normalize, False, False], places)
    dtype = working_dtype(z, keys)
    rows, keys = unit_rows(z, dtype, normalize), unit_rows(keys, dtype, normalize)
    precision = resolve_precision(precision, name, rows)
    losses, _ = contrast(name, rows, keys, places, scale, precision=precision)
    return mean_over(losses, group).to(dtype)
