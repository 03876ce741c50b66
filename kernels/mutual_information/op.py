"""The public functions over rows: entropies and divergences. Their docstrings are the specification."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from fastdc.kernels._autograd import refuse_transforms
from fastdc.kernels._backend import choose
from fastdc.kernels._checks import check_not_negative
from fastdc.kernels.mutual_information import custom_ops
from fastdc.kernels.mutual_information.checks import check_pair, check_rows
from fastdc.kernels.mutual_information.reference import entropy_of_mass, entropy_rows_reference, vat_kl_reference


class EntropyStatistics(NamedTuple):
    """Sums over rows from which both entropies follow. ``merge`` puts the sums of chunks together."""

    entropy_sum: Tensor
    mass: Tensor
    n_samples: int

    @property
    def conditional_entropy(self) -> Tensor:
        """H(Y|X): the mean entropy of a row."""
        return self.entropy_sum / self.n_samples

    @property
    def marginal_entropy(self) -> Tensor:
        """H(Y): the entropy of the mean row."""
        return entropy_of_mass(self.mass, self.n_samples)

    @staticmethod
    def merge(parts: Iterable[EntropyStatistics]) -> EntropyStatistics:
        """Statistics of all rows from those of chunks: they add up."""
        chunks = list(parts)
        if not chunks:
            raise ValueError("merge() needs the statistics of at least one chunk, got none")
        return EntropyStatistics(
            entropy_sum=torch.stack([c.entropy_sum for c in chunks]).sum(dim=0),
            mass=torch.stack([c.mass for c in chunks]).sum(dim=0),
            n_samples=sum(c.n_samples for c in chunks),
        )


def entropy_statistics(p: Tensor, *, from_logits: bool = False, backend: str | None = None) -> EntropyStatistics:
    """Sum of the rows' entropies and sum of the rows, from one pass; both add up over chunks of rows.

    Same as::

        entropy_sum = torch.special.entr(p).sum((-2, -1))
        mass = p.sum(-2)

    Parameters
    ----------
    p : Tensor of shape (n_samples, n_clusters) or (n_heads, n_samples, n_clusters)
        Probabilities, rows summing to 1; or logits. float32, float64, float16 or bfloat16, any strides.
    from_logits : bool
        Whether the rows are logits, of which the softmax is meant.
    backend
        As in :func:`conditional_entropy`.

    Returns
    -------
    entropy_sum : Tensor of shape () or (n_heads,), float64
        In nats.
    mass : Tensor of shape (n_clusters,) or (n_heads, n_clusters), float64
    n_samples : int

    Notes
    -----
    Gradients: none; the results are detached.
    Memory: a number a row, and 520 bytes a cluster and thread.
    Streaming: ``EntropyStatistics.merge`` adds up; its properties are the entropies over all rows.

    Examples
    --------
    >>> import torch
    >>> s = entropy_statistics(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> s.entropy_sum.item(), s.mass, round(s.marginal_entropy.item(), 4)
    (0.0, tensor([1., 1.], dtype=torch.float64), 0.6931)
    """
    check_rows(p, "p")
    entropy, mass = _entropy_rows("entropy_statistics", p.detach(), from_logits, True, backend)
    n_samples = p.shape[-2]
    return EntropyStatistics(_like(p, entropy.sum(dim=1, dtype=mass.dtype)), _like(p, mass), n_samples)


def conditional_entropy(p: Tensor, *, from_logits: bool = False, backend: str | None = None) -> Tensor:
    r"""Mean entropy of a row, H(Y|X): how undecided the assignments are.

    .. math:: H(Y|X) = -\frac{1}{n} \sum_i \sum_j p_{ij} \log p_{ij}

    Same as::

        p = torch.softmax(p, -1) if from_logits else p
        entropy = torch.special.entr(p).sum(-1).mean(-1)

    Parameters
    ----------
    p : Tensor of shape (n_samples, n_clusters) or (n_heads, n_samples, n_clusters)
        Probabilities, rows summing to 1; or logits. float32, float64, float16 or bfloat16, any strides.
    from_logits : bool
        Whether the rows are logits, of which the softmax is meant. Then everything stays in the log domain, and a
        logit of minus infinity (a cluster that is masked) adds nothing.
    backend : {None, "reference", "numba", "triton"}
        None chooses by device (see ``fastdc.explain``); a name forces it or raises ``BackendError``.

    Returns
    -------
    entropy : Tensor, zero-dimensional, or of shape (n_heads,); float32 (float64 where the input is)
        In nats, between 0 and log n_clusters.

    Notes
    -----
    Gradients: to p, once (a second derivative raises). Of probabilities it is -(1 + log p) / n with p no smaller
    than the smallest normal number, so that it is finite at p = 0.
    Memory: a number a row, and 520 bytes a cluster and thread; the gradient.
    Precision: computed in float32 or wider; means over rows are made in float64.
    Determinism: same bits for any number of threads on CPUs; on GPUs sums are made in a fixed order.

    References
    ----------
    Krause, Perona, Gomes. Discriminative Clustering by Regularized Information Maximization. NIPS 2010.

    Examples
    --------
    >>> import torch
    >>> round(conditional_entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]])).item(), 4)
    0.3466
    """
    check_rows(p, "p")
    entropy, mass = _entropy_rows("conditional_entropy", p, from_logits, True, backend)
    return _like(p, entropy.mean(dim=1, dtype=mass.dtype).to(entropy.dtype))


def marginal_entropy(p: Tensor, *, from_logits: bool = False, backend: str | None = None) -> Tensor:
    r"""Entropy of the mean row, H(Y): how evenly the clusters are used.

    .. math:: H(Y) = -\sum_j m_j \log m_j, \quad m_j = \frac{1}{n} \sum_i p_{ij}

    Same as::

        p = torch.softmax(p, -1) if from_logits else p
        entropy = torch.special.entr(p.mean(-2)).sum(-1)

    Parameters
    ----------
    p, from_logits, backend
        As in :func:`conditional_entropy`.

    Returns
    -------
    entropy : Tensor, zero-dimensional, or of shape (n_heads,); float32 (float64 where the input is)
        In nats, between 0 and log n_clusters.

    Notes
    -----
    As of :func:`conditional_entropy`.

    References
    ----------
    Krause, Perona, Gomes. Discriminative Clustering by Regularized Information Maximization. NIPS 2010.

    Examples
    --------
    >>> import torch
    >>> round(marginal_entropy(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).item(), 4)
    0.6931
    """
    check_rows(p, "p")
    entropy, mass = _entropy_rows("marginal_entropy", p, from_logits, False, backend)
    return _like(p, entropy_of_mass(mass, p.shape[-2]).to(entropy.dtype))


def rim_loss(logits: Tensor, marginal_weight: float = 1.0, *, backend: str | None = None) -> Tensor:
    r"""Negative information between rows and clusters: the objective of RIM and of IMSAT, to be minimised.

    .. math:: L = H(Y|X) - \mu H(Y)

    Same as, without any (n_samples, n_clusters) matrix but the gradient::

        loss = conditional_entropy(logits, from_logits=True)
        loss = loss - marginal_weight * marginal_entropy(logits, from_logits=True)

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_clusters) or (n_heads, n_samples, n_clusters)
        float32, float64, float16 or bfloat16, any strides.
    marginal_weight : float >= 0
        :math:`\mu`: 1 is the mutual information (RIM), IMSAT takes 4.
    backend
        As in :func:`conditional_entropy`.

    Returns
    -------
    loss : Tensor, zero-dimensional, or of shape (n_heads,); float32 (float64 where the input is)

    Notes
    -----
    Gradients: to the logits, once (a second derivative raises).
    Memory: one pass over the rows forward, one backward; otherwise as :func:`conditional_entropy`.

    References
    ----------
    Krause, Perona, Gomes. Discriminative Clustering by Regularized Information Maximization. NIPS 2010.
    Hu, Miyato, Tokui, Matsumoto, Sugiyama. Learning Discrete Representations via Information Maximizing
    Self-Augmented Training. ICML 2017, eq. (6).

    Examples
    --------
    >>> import torch
    >>> logits = torch.tensor([[9.0, -9.0], [-9.0, 9.0]], requires_grad=True)
    >>> loss = rim_loss(logits)
    >>> loss.backward()
    >>> round(loss.item(), 4)
    -0.6931
    """
    check_rows(logits, "logits")
    weight = check_not_negative(marginal_weight, "marginal_weight")
    entropy, mass = _entropy_rows("rim_loss", logits, True, True, backend)
    loss = entropy.mean(dim=1, dtype=mass.dtype) - weight * entropy_of_mass(mass, logits.shape[-2])
    return _like(logits, loss.to(entropy.dtype))


def vat_kl(logits: Tensor, perturbed_logits: Tensor, *, backend: str | None = None) -> Tensor:
    r"""Divergence of the predictions at perturbed inputs from those at the inputs, as VAT and IMSAT penalise it.

    .. math:: L = \frac{1}{n} \sum_i KL(p_i \| q_i), \quad p = softmax(logits),\ q = softmax(perturbed)

    Same as::

        log_p, log_q = logits.detach().log_softmax(-1), perturbed_logits.log_softmax(-1)
        loss = (log_p.exp() * (log_p - log_q)).sum(-1).mean()

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_clusters) or (n_heads, n_samples, n_clusters)
        Predictions at the inputs: a constant, it gets no gradient.
    perturbed_logits : Tensor of the same shape
        Predictions at the perturbed inputs; may differ in floating dtype.
    backend
        As in :func:`conditional_entropy`.

    Returns
    -------
    loss : Tensor, zero-dimensional, float32 (float64 where an input is)
        Mean over all rows, of all heads.

    Notes
    -----
    Gradients: to ``perturbed_logits``, computed in the forward pass; a second derivative raises.
    Memory: the gradient, and 520 bytes a cluster and thread.
    Precision: computed in float32 or wider. The CPU and GPU kernels lose no digits where the two predictions are
    close: the loss is a sum of positive terms of second order in the perturbation and the gradient of first order,
    while a difference of two softmaxes is noise below 1e-7. The finite differences of VAT's power iteration
    (xi = 1e-6) live there.
    Limits: a cluster whose logit is minus infinity in both has no effect; where it is so in the perturbed ones
    alone the loss is infinite.

    References
    ----------
    Miyato, Maeda, Koyama, Ishii. Virtual Adversarial Training. TPAMI 2018.
    Hu, Miyato, Tokui, Matsumoto, Sugiyama. Learning Discrete Representations via Information Maximizing
    Self-Augmented Training. ICML 2017.

    Examples
    --------
    >>> import torch
    >>> round(vat_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]])).item(), 4)
    0.1201
    """
    check_pair(logits, perturbed_logits, "logits", "perturbed_logits", same_clusters=True)
    name = choose("vat_kl", perturbed_logits, backend)
    n_rows = perturbed_logits.numel() // perturbed_logits.shape[-1]
    logits = logits.detach()
    if name == "reference":
        return vat_kl_reference(logits, perturbed_logits) / n_rows
    refuse_transforms("vat_kl", perturbed_logits, logits)
    return custom_ops.vat_kl(name, _with_heads(perturbed_logits), _with_heads(logits)) / n_rows


def _entropy_rows(
    op: str, x: Tensor, from_logits: bool, want_entropy: bool, backend: str | None
) -> tuple[Tensor, Tensor]:
    """Entropy of each row (h, n) and sum of p over rows (h, k), by the backend of choice."""
    name = choose(op, x, backend)
    if name == "reference":
        return entropy_rows_reference(_with_heads(x), bool(from_logits))
    refuse_transforms(op, x)
    return custom_ops.entropy_rows(name, _with_heads(x), bool(from_logits), want_entropy)


def _with_heads(x: Tensor) -> Tensor:
    return x if x.ndim == 3 else x[None]


def _like(x: Tensor, result: Tensor) -> Tensor:
    """Drops the axis of heads where x has none."""
    return result if x.ndim == 3 else result[0]
