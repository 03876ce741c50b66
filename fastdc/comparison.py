"""Clusterers side by side on one data set: the same rows, several seeds, mean and spread of every score."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone

from fastdc import metrics

__all__ = ["Comparison", "Outcome", "compare"]

EXTERNAL = {"ACC": "clustering_accuracy", "NMI": "normalized_mutual_info", "ARI": "adjusted_rand_index"}
INTERNAL = ("silhouette", "agreement")


class Outcome(NamedTuple):
    """One clusterer's results, an entry for each seed.

    Attributes
    ----------
    name : str
    scores : dict of str to list of float
    seconds : list of float
    n_clusters : list of int
        Clusters that have members.
    """

    name: str
    scores: dict[str, list[float]]
    seconds: list[float]
    n_clusters: list[int]


class Comparison(NamedTuple):
    """What :func:`compare` found. ``table()`` is Markdown; ``fastdc.score_plots.comparison_figure`` draws it."""

    outcomes: list[Outcome]

    def table(self) -> str:
        """One row a clusterer, each score as mean ± standard deviation over the seeds."""
        names = list(self.outcomes[0].scores)
        lines = [
            "| method | " + " | ".join(names) + " | clusters | seconds |",
            "|---|" + "---|" * (len(names) + 2),
        ]
        for outcome in self.outcomes:
            cells = [with_spread(outcome.scores[name], 3) for name in names]
            found = sorted(set(outcome.n_clusters))
            cells.append(str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}")
            lines.append(f"| {outcome.name} | " + " | ".join([*cells, with_spread(outcome.seconds, 1)]) + " |")
        return "\n".join(lines) + "\n"


def compare(
    estimators: Sequence[Any] | Mapping[str, Any], X: Any, y: Any = None, *, seeds: int | Iterable[int] = 5
) -> Comparison:
    """Fit each clusterer with each seed and score what it finds.

    Parameters
    ----------
    estimators : sequence or mapping of str to clusterer
        Anything with scikit-learn's ``fit_predict``; copies are fitted. Where there is a parameter
        ``random_state``, the seed goes there. Without names they go by their class.
    X : array-like of shape (n_samples, n_features)
    y : array of shape (n_samples,), optional
        Classes, for accuracy (by the best one-to-one map), NMI and ARI. Without them the scores are the silhouette in
        ``X`` and the agreement: the mean ARI between the labels of two seeds. No clusterer ever sees them.
    seeds : int or iterable of int
        A number means 0, 1, ...

    Returns
    -------
    Comparison

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from fastdc import KMeans
    >>> X, y = make_blobs(60, centers=3, cluster_std=0.2, random_state=0)
    >>> result = compare({"k-means": KMeans(3), "two": KMeans(2)}, X, y, seeds=2)
    >>> result.outcomes[0].scores["ACC"], result.outcomes[1].n_clusters
    ([1.0, 1.0], [2, 2])
    """
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not chosen:
        raise ValueError("seeds must name at least one seed, got none")
    named = dict(estimators) if isinstance(estimators, Mapping) else _by_class(estimators)
    if not named:
        raise ValueError("estimators must hold at least one clusterer, got none")
    return Comparison([_outcome(name, estimator, X, y, chosen) for name, estimator in named.items()])


def _outcome(name: str, estimator: Any, X: Any, y: Any, seeds: Sequence[int]) -> Outcome:
    labels, seconds = [], []
    for seed in seeds:
        model = clone(estimator)
        if "random_state" in model.get_params():
            model.set_params(random_state=seed)
        started = time.perf_counter()
        found = model.fit_predict(X)
        seconds.append(time.perf_counter() - started)
        labels.append(np.asarray(found))
    scores = _internal(X, labels) if y is None else _external(y, labels)
    return Outcome(name, scores, seconds, [len(np.unique(found[found >= 0])) for found in labels])


def _external(y: Any, labels: Sequence[np.ndarray]) -> dict[str, list[float]]:
    found = [metrics.evaluate(y, one) for one in labels]
    return {short: [scores[name] for scores in found] for short, name in EXTERNAL.items()}


def _internal(X: Any, labels: Sequence[np.ndarray]) -> dict[str, list[float]]:
    pairs = [(a, b) for i, a in enumerate(labels) for b in labels[:i]]
    agreement = [metrics.adjusted_rand_index(a, b) for a, b in pairs] or [float("nan")]
    nan = float("nan")
    silhouettes = [metrics.silhouette_score(X, one) if len(np.unique(one)) > 1 else nan for one in labels]
    return dict(zip(INTERNAL, (silhouettes, agreement)))


def _by_class(estimators: Iterable[Any]) -> dict[str, Any]:
    """Names from classes; the second KMeans is "KMeans 2"."""
    named: dict[str, Any] = {}
    for estimator in estimators:
        name, number = type(estimator).__name__, 1
        while (name if number == 1 else f"{name} {number}") in named:
            number += 1
        named[name if number == 1 else f"{name} {number}"] = estimator
    return named


def with_spread(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation of some values, the mean alone of one."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"
