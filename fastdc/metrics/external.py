"""Agreement of a clustering with known classes. Every score follows from one contingency table.

Labels are any integer ids, as numpy arrays, torch tensors on any device, or lists. All functions also take a
ready table (``contingency=``), so that several scores, or labels that come in chunks, need one count only.
"""

from __future__ import annotations

from typing import Any

import torch

from fastdc.kernels.contingency import ContingencyTable, as_integers, contingency_table, scores
from fastdc.kernels.contingency.scores import Summary


def evaluate(labels_true: Any = None, labels_pred: Any = None, *, contingency: Any = None) -> dict[str, float]:
    """Every score of this module, and the numbers of samples, classes and clusters, from one table.

    Parameters
    ----------
    labels_true, labels_pred : array, Tensor or list of shape (n_samples,), integers
        Class and cluster of each sample; any ids.
    contingency : ContingencyTable or array of shape (n_classes, n_clusters), optional
        The counts, instead of the labels.

    Returns
    -------
    dict
        Score by function name, and ``n_samples``, ``n_classes``, ``n_clusters``.

    Examples
    --------
    >>> from fastdc.metrics import evaluate
    >>> scores = evaluate([0, 0, 1, 1], [1, 1, 0, 0])
    >>> scores["clustering_accuracy"], scores["n_clusters"]
    (1.0, 2)
    """
    summary = _summary(labels_true, labels_pred, contingency)
    information = scores.information(summary)
    homogeneous, complete = scores.homogeneity_completeness(summary, information)
    return {
        "clustering_accuracy": scores.accuracy(summary),
        "normalized_mutual_info": scores.normalized_mutual_info(summary, information, "arithmetic"),
        "adjusted_mutual_info": scores.adjusted_mutual_info(summary, information, "arithmetic"),
        "adjusted_rand_index": scores.adjusted_rand_index(summary),
        "purity": scores.purity(summary),
        "homogeneity": homogeneous,
        "completeness": complete,
        "v_measure": scores.f_measure(homogeneous, complete, 1.0),
        "pair_f_measure": scores.pair_f_measure(summary, 1.0),
        "n_samples": summary.n_samples,
        "n_classes": len(summary.class_sizes),
        "n_clusters": len(summary.cluster_sizes),
    }


def clustering_accuracy(labels_true: Any = None, labels_pred: Any = None, *, contingency: Any = None) -> float:
    r"""Share of samples in the right class under the best one-to-one map of clusters to classes.

    .. math:: \max_\pi \frac{1}{n} \sum_j n_{\pi(j), j}

    Pairs that count as much as their row's and column's next best together are matched at once, which is
    optimal. SciPy solves the rest (``linear_sum_assignment``, or for large sparse tables
    ``min_weight_full_bipartite_matching``), with counts as float64: exact up to 2^53. Where there are more
    clusters than classes, those left over count as errors. No samples: 1.0.

    Parameters
    ----------
    labels_true, labels_pred, contingency
        As for :func:`evaluate`.

    Examples
    --------
    >>> from fastdc import clustering_accuracy
    >>> clustering_accuracy([0, 0, 1, 1], [5, 5, 5, 3])
    0.75
    """
    return scores.accuracy(_summary(labels_true, labels_pred, contingency))


def label_map(labels_true: Any = None, labels_pred: Any = None, *, contingency: Any = None) -> dict[int, int]:
    """Class of each cluster under the best one-to-one map (see :func:`clustering_accuracy`).

    Clusters left over, where there are more clusters than classes, and clusters matched to a class with which
    they share no sample, are not in the map.

    Parameters
    ----------
    labels_true, labels_pred, contingency
        As for :func:`evaluate`; with an array of counts, ids are its row and column numbers.

    Examples
    --------
    >>> from fastdc.metrics import label_map
    >>> label_map([0, 0, 1, 1], [5, 5, 5, 3])
    {3: 1, 5: 0}
    """
    summary = _summary(labels_true, labels_pred, contingency)
    rows, columns, _ = scores.best_matching(summary)
    matched = zip(summary.clusters[columns].tolist(), summary.classes[rows].tolist())
    return dict(sorted(matched))


def normalized_mutual_info(
    labels_true: Any = None,
    labels_pred: Any = None,
    *,
    contingency: Any = None,
    average_method: str = "arithmetic",
) -> float:
    """Mutual information over the mean of the two entropies, from 0 to 1; scikit-learn's definition.

    Parameters
    ----------
    labels_true, labels_pred, contingency
        As for :func:`evaluate`.
    average_method : {"arithmetic", "geometric", "min", "max"}
        The mean of the entropies.

    Examples
    --------
    >>> from fastdc import normalized_mutual_info
    >>> normalized_mutual_info([0, 0, 1, 1], [1, 1, 0, 0])
    1.0
    """
    summary = _summary(labels_true, labels_pred, contingency)
    return scores.normalized_mutual_info(summary, scores.information(summary), average_method)


def adjusted_mutual_info(
    labels_true: Any = None,
    labels_pred: Any = None,
    *,
    contingency: Any = None,
    average_method: str = "arithmetic",
) -> float:
    """Mutual information adjusted for chance: 1 for equal partitions, 0 on average for independent ones.

    Takes time by the number of *distinct* sizes of classes and clusters. The expectation comes from ratios of
    neighbouring probabilities, without log-gamma, and so keeps its precision at any number of samples.

    Parameters
    ----------
    labels_true, labels_pred, contingency, average_method
        As for :func:`normalized_mutual_info`.

    References
    ----------
    Vinh, Epps, Bailey. Information Theoretic Measures for Clusterings Comparison. JMLR 2010.

    Examples
    --------
    >>> from fastdc import adjusted_mutual_info
    >>> adjusted_mutual_info([0, 0, 1, 1], [1, 1, 0, 0])
    1.0
    """
    summary = _summary(labels_true, labels_pred, contingency)
    return scores.adjusted_mutual_info(summary, scores.information(summary), average_method)


def adjusted_rand_index(labels_true: Any = None, labels_pred: Any = None, *, contingency: Any = None) -> float:
    """Rand index adjusted for chance, in exact integers up to the last division.

    Parameters
    ----------
    labels_true, labels_pred, contingency
        As for :func:`evaluate`.

    References
    ----------
    Hubert, Arabie. Comparing partitions. Journal of Classification 1985.

    Examples
    --------
    >>> from fastdc import adjusted_rand_index
    >>> adjusted_rand_index([0, 0, 1, 1], [0, 0, 1, 2])
    0.571428...
    """
    return scores.adjusted_rand_index(_summary(labels_true, labels_pred, contingency))


def purity(labels_true: Any = None, labels_pred: Any = None, *, contingency: Any = None) -> float:
    """Share of samples that belong to the largest class of their cluster. No samples: 1.0.

    Parameters
    ----------
    labels_true, labels_pred, contingency
        As for :func:`evaluate`.

    Examples
    --------
    >>> from fastdc import purity
    >>> purity([0, 0, 1, 1], [5, 5, 5, 3])
    0.75
    """
    return scores.purity(_summary(labels_true, labels_pred, contingency))


def homogeneity(labels_true: Any = None, labels_pred: Any = None, *, contingency: Any = None) -> float:
    """Mutual information over the entropy of the classes: 1 where each cluster holds one class only.

    Parameters
    ----------
    labels_true, labels_pred, contingency
        As for :func:`evaluate`.

    Examples
    --------
    >>> from fastdc.metrics import homogeneity
    >>> homogeneity([0, 0, 1, 1], [0, 1, 2, 2])
    1.0
    """
    summary = _summary(labels_true, labels_pred, contingency)
    return scores.homogeneity_completeness(summary, scores.information(summary))[0]


def completeness(labels_true: Any = None, labels_pred: Any = None, *, contingency: Any = None) -> float:
    """Mutual information over the entropy of the clusters: 1 where each class lies in one cluster.

    Parameters
    ----------
    labels_true, labels_pred, contingency
        As for :func:`evaluate`.

    Examples
    --------
    >>> from fastdc.metrics import completeness
    >>> completeness([0, 1, 2, 2], [0, 0, 1, 1])
    1.0
    """
    summary = _summary(labels_true, labels_pred, contingency)
    return scores.homogeneity_completeness(summary, scores.information(summary))[1]


def v_measure(labels_true: Any = None, labels_pred: Any = None, *, contingency: Any = None, beta: float = 1.0) -> float:
    """Weighted harmonic mean of homogeneity and completeness; ``beta`` above 1 weighs completeness more.

    Parameters
    ----------
    labels_true, labels_pred, contingency
        As for :func:`evaluate`.
    beta : float, default=1.0
        The weight, at least 0.

    Examples
    --------
    >>> from fastdc.metrics import v_measure
    >>> v_measure([0, 0, 1, 1], [0, 0, 0, 0])
    0.0
    """
    _check_beta(beta)
    summary = _summary(labels_true, labels_pred, contingency)
    return scores.f_measure(*scores.homogeneity_completeness(summary, scores.information(summary)), beta)


def pair_f_measure(
    labels_true: Any = None, labels_pred: Any = None, *, contingency: Any = None, beta: float = 1.0
) -> float:
    """F-measure of pairs: two samples in one class are a positive, two in one cluster a predicted one.

    Where neither partition joins any pair the score is 1.0.

    Parameters
    ----------
    labels_true, labels_pred, contingency
        As for :func:`evaluate`.
    beta : float, default=1.0
        The weight of recall, squared, at least 0.

    Examples
    --------
    >>> from fastdc.metrics import pair_f_measure
    >>> pair_f_measure([0, 0, 1, 1], [0, 0, 1, 2])
    0.666666...
    """
    _check_beta(beta)
    return scores.pair_f_measure(_summary(labels_true, labels_pred, contingency), beta)


def _summary(labels_true: Any, labels_pred: Any, contingency: Any) -> Summary:
    """The non-zero counts and the margins, from labels or from a ready table."""
    if contingency is None:
        if labels_true is None or labels_pred is None:
            raise TypeError("labels_true and labels_pred must both be given, or contingency=")
        labels_true = as_integers(labels_true, "labels_true")
        labels_pred = as_integers(labels_pred, "labels_pred")
        if labels_true.device.type == "cpu":
            labels_true = labels_true.to(labels_pred.device)
        labels_pred = labels_pred.to(labels_true.device)
        return scores.summary_of(contingency_table(labels_true, labels_pred, sparse=None))
    if labels_true is not None or labels_pred is not None:
        raise TypeError("give either labels_true and labels_pred, or contingency=, not both")
    if not isinstance(contingency, ContingencyTable):
        counts = as_integers(contingency, "contingency", ndim=2).long()
        contingency = ContingencyTable(counts, *(torch.arange(size) for size in counts.shape))
    if bool((contingency.counts._values() if contingency.counts.is_sparse else contingency.counts).lt(0).any()):
        raise ValueError("contingency holds negative counts; it must count samples")
    return scores.summary_of(contingency)


def _check_beta(beta: float) -> None:
    if not 0.0 <= beta < float("inf"):
        raise ValueError(f"beta must be a finite number, at least 0, got {beta}")
