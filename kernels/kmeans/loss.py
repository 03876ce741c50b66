"""``kmeans_loss``: its docstring is the specification."""

from __future__ import annotations

from torch import Tensor

from fastdc.kernels._autograd import refuse_transforms
from fastdc.kernels._backend import choose
from fastdc.kernels._checks import check_centers, check_labels, check_points, check_positive
from fastdc.kernels._precision import resolve_precision
from fastdc.kernels.kmeans import loss_ops
from fastdc.kernels.kmeans.reference import kmeans_loss_reference

MODES = ("hard", "soft")


def kmeans_loss(
    x: Tensor,
    centers: Tensor,
    labels: Tensor | None = None,
    mode: str = "hard",
    temperature: float = 1.0,
    *,
    backend: str | None = None,
    precision: str | None = None,
) -> Tensor:
    r"""Mean squared distance to the own center (DCN), or to all centers by soft assignment (DKM).

    .. math:: L_{\mathrm{hard}} = \frac{1}{n} \sum_i \|x_i - c_{\mathrm{label}_i}\|^2, \quad
              L_{\mathrm{soft}} = \frac{1}{n} \sum_i \sum_j w_{ij} \|x_i - c_j\|^2, \quad
              w_{ij} = \frac{\exp(-\|x_i - c_j\|^2 / T)}{\sum_l \exp(-\|x_i - c_l\|^2 / T)}

    Same as, without any (n_samples, n_clusters) matrix::

        sq_dists = (x[:, None] - centers).square().sum(2)
        hard = (x - centers[labels]).square().sum(1).mean()
        soft = ((-sq_dists / temperature).softmax(1) * sq_dists).sum(1).mean()

    There is no hidden factor. The term (lambda / 2) sum_i |f(x_i) - M s_i|^2 of DCN is lambda n / 2 times the hard
    loss; the term lambda sum_x sum_k f(h(x), r_k) G_k of DKM is lambda n times the soft loss, its alpha being
    1 / temperature.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Points. Any strides.
    centers : Tensor of shape (n_clusters, n_features)
        May differ from x in floating dtype.
    labels : Tensor of shape (n_samples,), int64, optional
        Of the hard loss: the center of each row; a row with -1 adds nothing, and still counts in n. None is the
        nearest center, as of :func:`nearest_center`.
    mode : {"hard", "soft"}
    temperature : float > 0
        Of the soft loss; towards 0 it becomes the hard loss.
    backend : {None, "reference", "numba", "triton"}
        None chooses by device (see ``fastdc.explain``); a name forces it or raises ``BackendError``.
    precision : {None, "ieee", "tf32x3", "bf16x6", "tf32", "bf16"}
        Of the products inside the kernel. None is as accurate as IEEE float32.

    Returns
    -------
    loss : Tensor, a scalar
        float64 where an input is float64, else float32.

    Notes
    -----
    Gradients: to x and centers, once (a second derivative raises). That of the soft loss includes the gradient of
    the weights: dL/d|x_i - c_j|^2 = w_ij (1 - (|x_i - c_j|^2 - sum_l w_il |x_i - c_l|^2) / T) / n. Labels are
    constants.
    Memory: the gradients, and per thread 256 bytes a center (soft), and that of the centers in float64.
    Precision: distances by differences or as exact; computed in float32 or wider.
    Limits: a row that is not finite makes the loss NaN or infinite.
    Determinism: same bits for any number of threads on CPUs, and from run to run on GPUs.

    References
    ----------
    Yang, Fu, Sidiropoulos, Hong. Towards K-means-friendly Spaces. ICML 2017, eq. (5).
    Fard, Thonet, Gaussier. Deep k-Means: Jointly clustering with k-Means and learning representations. Pattern
    Recognition Letters, 2020, eq. (3) and (4).

    Examples
    --------
    >>> import torch
    >>> kmeans_loss(torch.tensor([[0.0], [3.0]]), torch.tensor([[1.0], [5.0]]))
    tensor(2.5000)
    """
    check_points(x)
    check_centers(centers, x)
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    temperature = check_positive(temperature, "temperature")
    if labels is not None:
        check_labels(labels, x.shape[0], "labels", x)
        if mode == "soft":
            raise ValueError("labels are of the hard loss; leave them out, or ask for mode='hard'")
    name = choose("kmeans_loss", x, backend)
    precision = resolve_precision(precision, name, x)
    soft = temperature if mode == "soft" else None
    if name == "reference":
        return kmeans_loss_reference(x, centers, labels, soft) / x.shape[0]
    refuse_transforms("kmeans_loss", x, centers)
    return loss_ops.kmeans_loss(name, x, centers, labels, soft, precision)
