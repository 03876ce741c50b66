"""The consistency of neighbours' predictions: SCAN's loss. Its docstring is the specification."""

from __future__ import annotations

from torch import Tensor

from fastdc.kernels._autograd import refuse_transforms
from fastdc.kernels._backend import choose
from fastdc.kernels._checks import check_not_negative, check_points, check_same_device
from fastdc.kernels.graph import custom_ops
from fastdc.kernels.graph.consistency_ops import consistency_loss
from fastdc.kernels.graph.reference import consistency_reference
from fastdc.kernels.mutual_information import marginal_entropy


def neighbor_consistency_loss(
    p_anchor: Tensor,
    p_neighbor: Tensor,
    entropy_weight: float = 5.0,
    *,
    from_logits: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""SCAN's loss, eq. (2): neighbours are to be in one cluster, and all clusters are to be used.

    .. math:: L = -\frac{1}{n} \sum_i \log \langle p_i, p_{j(i)} \rangle - \lambda H(\bar p),
              \quad \bar p = \frac{1}{n} \sum_i p_i

    Same as::

        p, q = p_anchor, p_neighbor             # or their softmax, from_logits
        loss = -((p * q).sum(1).log()).mean()
        loss = loss - entropy_weight * torch.special.entr(p.mean(0)).sum()

    Parameters
    ----------
    p_anchor : Tensor of shape (n_samples, n_clusters)
        Predictions of the rows: probabilities, rows summing to 1, or logits. float32, float64, float16 or
        bfloat16, any strides.
    p_neighbor : Tensor of the same shape
        Predictions of one neighbour of each row, in the same form; may differ in floating dtype. A row with
        several neighbours comes several times.
    entropy_weight : float >= 0
        :math:`\lambda`; the paper takes 5. The entropy is that of the anchors' mean, as in the authors' code.
    from_logits : bool
        Whether the rows are logits, of which the softmax is meant.
    backend : {None, "reference", "numba", "triton"}
        None chooses by device (see ``fastdc.explain``); a name forces it or raises ``BackendError``.

    Returns
    -------
    loss : Tensor, zero-dimensional, float32 (float64 where an input is)
        To be minimised; at least -entropy_weight log n_clusters.

    Notes
    -----
    Gradients: to both, computed in the backward pass (on GPUs in the forward pass, but for those of the entropy); a
    second derivative raises.
    Memory: the gradients, and 780 bytes a cluster and thread.
    Precision: float32 or wider. The dot product is made in the log domain, log sum exp(log p + log q): neighbours
    that have nothing in common cost what they should, where a product of probabilities is 0 and its logarithm
    infinite. A probability of 0 counts as the smallest normal number, a logit more than 1,000 below its row's
    largest (minus infinity too) as 1,000 below, without a gradient.
    Determinism: same bits for any number of threads on CPUs; on GPUs sums are made in a fixed order.

    References
    ----------
    Van Gansbeke, Vandenhende, Georgoulis, Proesmans, Van Gool. SCAN: Learning to Classify Images without Labels.
    ECCV 2020, eq. (2).

    Examples
    --------
    >>> import torch
    >>> p = torch.eye(2)
    >>> round(neighbor_consistency_loss(p, p, entropy_weight=1.0).item(), 4)
    -0.6931
    """
    check_points(p_anchor, "p_anchor", "n_clusters")
    check_points(p_neighbor, "p_neighbor", "n_clusters")
    if p_anchor.shape != p_neighbor.shape:
        raise ValueError(
            f"p_neighbor has shape {tuple(p_neighbor.shape)} but p_anchor has {tuple(p_anchor.shape)}; each row "
            "needs one neighbour's predictions"
        )
    check_same_device(p_neighbor, p_anchor, "p_neighbor", "p_anchor")
    entropy_weight = check_not_negative(entropy_weight, "entropy_weight")
    from_logits = bool(from_logits)
    name = choose("neighbor_consistency_loss", p_anchor, backend)
    if name != "reference":
        refuse_transforms("neighbor_consistency_loss", p_anchor, p_neighbor)
    if name == "numba":
        return consistency_loss(p_anchor, p_neighbor, entropy_weight, from_logits)
    compute = consistency_reference if name == "reference" else custom_ops.consistency
    loss = compute(p_anchor, p_neighbor, from_logits) / p_anchor.shape[0]
    if entropy_weight == 0.0:
        return loss
    return loss - entropy_weight * marginal_entropy(p_anchor, from_logits=from_logits, backend=backend).to(loss.dtype)
