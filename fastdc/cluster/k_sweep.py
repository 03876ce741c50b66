"""How many clusters: a sweep over numbers of them, and what each of several criteria says of it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from tqdm import tqdm

from fastdc._input import read_count, read_points, read_seed
from fastdc.cluster.gaussian_mixture import GaussianMixture
from fastdc.cluster.kmeans import KMeans
from fastdc.data import RowSource
from fastdc.metrics import silhouette_score

CRITERIA = ("silhouette", "bic", "mixture_bic", "gap")


class KSweep(NamedTuple):
    """What :func:`choose_k` found.

    ``table`` has a dict for each number of clusters: ``k``, ``inertia``, ``seconds`` and a value for each criterion,
    for "gap" also ``gap_error``; None where a criterion does not apply. ``suggested`` names the number of clusters that
    each criterion prefers, or None.
    """

    table: list[dict[str, Any]]
    suggested: dict[str, int | None]


def choose_k(
    X: Any,
    k: Iterable[int] = range(2, 11),
    *,
    criteria: Sequence[str] = ("silhouette", "bic", "gap"),
    n_init: int = 3,
    max_iter: int = 100,
    sample_size: int | None = 10_000,
    n_references: int = 10,
    device: torch.device | str | None = None,
    random_state: Any = None,
    verbose: int = 0,
) -> KSweep:
    r"""K-means for each number of clusters in ``k``, and criteria of how well it fits.

    Parameters
    ----------
    X : array-like or RowSource of shape (n_samples, n_features)
    k : iterable of int
        Numbers of clusters, from 1 to n_samples.
    criteria : sequence of {"silhouette", "bic", "mixture_bic", "gap"}
        "silhouette": the mean silhouette; the largest is best; not for one cluster.
        "bic": of k-means as a mixture of round Gaussians of one variance (x-means), :math:`-2 \log L + p \log n`, so
        the least is best. "mixture_bic": of :class:`GaussianMixture` with diagonal covariances, fitted for it.
        "gap": :math:`E^* \log W_k - \log W_k`, W the inertia and E* its mean over uniform data in the box of the
        points' principal axes; the smallest k is best whose gap is no less than the next one's less its error.
    n_init, max_iter : int
        Runs of k-means, and most iterations of each.
    sample_size : int or None
        Most rows that silhouettes and gaps are computed on, drawn by chance; None takes all.
    n_references : int
        Sets of uniform data.
    device : str or torch.device, optional
        None computes where a tensor lies, and otherwise on the GPU if there is one.
    random_state : int, numpy RandomState or Generator, optional
        The same integer gives the same result.
    verbose : int
        1 shows a progress bar on standard error.

    Returns
    -------
    KSweep

    Raises
    ------
    ValueError, TypeError
        For bad arguments and bad data.

    Notes
    -----
    "bic" and the inertia are of all rows; of a row source they are read a block at a time, but for "mixture_bic",
    which needs them all. No criterion finds clusters of every shape: look at several.

    References
    ----------
    Rousseeuw. Silhouettes: a graphical aid to the interpretation and validation of cluster analysis. 1987.
    Pelleg, Moore. X-means: extending k-means with efficient estimation of the number of clusters. ICML 2000.
    Tibshirani, Walther, Hastie. Estimating the number of clusters in a data set via the gap statistic. JRSS B, 2001.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> X, _ = make_blobs(300, centers=[[0, 0], [9, 0], [0, 9], [9, 9]], random_state=0)
    >>> choose_k(X, range(2, 8), random_state=0).suggested
    {'silhouette': 4, 'bic': 4, 'gap': 4}
    """
    rows = X if isinstance(X, RowSource) else read_points(X, device=device)
    numbers = _read_numbers(k, len(rows))
    unknown = [name for name in criteria if name not in CRITERIA]
    if unknown or not criteria:
        raise ValueError(f"criteria must be some of {CRITERIA}, got {tuple(criteria)}")
    n_init, max_iter = read_count(n_init, "n_init"), read_count(max_iter, "max_iter")
    n_references = read_count(n_references, "n_references")
    random = np.random.default_rng(read_seed(random_state))
    drawn = _sample(rows, sample_size, random)
    options: dict[str, Any] = {
        "n_init": n_init,
        "max_iter": max_iter,
        "device": device,
        "random_state": int(random.integers(2**31 - 1)),
    }
    sample = _take(rows, drawn) if {"silhouette", "gap"} & set(criteria) else None
    references = _references(sample, n_references, random) if "gap" in criteria else []
    table = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of rows that repeat, and of mixtures that still move
        for number in tqdm(numbers, desc="choose k", disable=not verbose):
            started = time.perf_counter()
            model = KMeans(number, **options).fit(rows)
            row: dict[str, Any] = {"k": number, "inertia": model.inertia_}
            labels = torch.as_tensor(model.labels_).cpu().numpy()
            for name in criteria:
                if name == "silhouette":
                    row[name] = _silhouette(sample, labels if drawn is None else labels[drawn])
                elif name == "bic":
                    row[name] = kmeans_bic(model.inertia_, np.bincount(labels, minlength=number), rows.shape[1])
                elif name == "mixture_bic":
                    row[name] = _mixture_bic(rows, number, options)
                else:
                    sample_inertia = model.inertia_
                    if drawn is not None:
                        sample_inertia = KMeans(number, **options).fit(sample).inertia_
                    row |= _gap(sample_inertia, [KMeans(number, **options).fit(one).inertia_ for one in references])
            table.append(row | {"seconds": time.perf_counter() - started})
    return KSweep(table, {name: _suggested(table, name) for name in criteria})


def kmeans_bic(inertia: float, sizes: NDArray[np.int64], n_features: int) -> float | None:
    r"""BIC of clusters as Gaussians of one variance in all directions, the lower the better; x-means, section 3.2.

    .. math:: -2 \Big(\sum_j n_j \log\frac{n_j}{n} - \frac{n d}{2} \log(2 \pi \sigma^2) - \frac{d (n - k)}{2}\Big)
              + (k (d + 1)) \log n, \quad \sigma^2 = \frac{\mathrm{inertia}}{d (n - k)}

    with k - 1 shares, k d coordinates and one variance as parameters. None where no variance is left.

    >>> round(kmeans_bic(4.0, np.array([2, 2]), 1), 4)
    23.2145
    """
    n, k, d = int(sizes.sum()), len(sizes), n_features
    if n <= k or inertia <= 0:
        return None
    filled = sizes[sizes > 0]
    variance = inertia / (d * (n - k))
    shares = float((filled * np.log(filled / n)).sum())
    log_likelihood = shares - n * d / 2 * math.log(2 * math.pi * variance) - d * (n - k) / 2
    return -2 * log_likelihood + k * (d + 1) * math.log(n)


def _read_numbers(k: Iterable[int], n_samples: int) -> list[int]:
    numbers = sorted({read_count(number, "k", high=n_samples, high_name="n_samples") for number in k})
    if not numbers:
        raise ValueError("k must hold at least one number of clusters, got none")
    return numbers


def _sample(rows: Any, size: int | None, random: np.random.Generator) -> NDArray[np.int64] | None:
    """Numbers of the rows that are drawn; None is all."""
    if size is None or read_count(size, "sample_size", low=2) >= len(rows):
        return None
    return np.sort(random.choice(len(rows), size, replace=False))


def _take(rows: Any, drawn: NDArray[np.int64] | None) -> Any:
    if isinstance(rows, RowSource):
        return np.asarray(rows) if drawn is None else rows.take(drawn)
    return rows if drawn is None else rows[torch.from_numpy(drawn).to(rows.device)]


def _silhouette(x: Any, labels: NDArray) -> float | None:
    n_found = len(np.unique(labels))
    return silhouette_score(x, labels) if 2 <= n_found < len(labels) else None


def _mixture_bic(rows: Any, number: int, options: dict[str, Any]) -> float | None:
    if len(rows) < 2:
        return None
    return GaussianMixture(number, **options | {"n_init": 1}).fit(rows).bic(rows)


def _references(x: Any, n_sets: int, random: np.random.Generator) -> list[NDArray]:
    """Uniform data of the shape and dtype of x in the box of its principal axes."""
    points = np.asarray(x.cpu() if isinstance(x, torch.Tensor) else x)
    mean = points.mean(axis=0, dtype=np.float64)
    axes = np.linalg.eigh(np.cov((points - mean).T).reshape(points.shape[1], -1))[1]
    along = (points - mean) @ axes
    low, high = along.min(axis=0), along.max(axis=0)
    return [(random.uniform(low, high, size=points.shape) @ axes.T + mean).astype(points.dtype) for _ in range(n_sets)]


def _gap(inertia: float, of_references: list[float]) -> dict[str, float | None]:
    if inertia <= 0 or min(of_references) <= 0:
        return {"gap": None, "gap_error": None}
    logs = np.log(of_references)
    return {
        "gap": float(logs.mean() - math.log(inertia)),
        "gap_error": float(logs.std() * math.sqrt(1 + 1 / len(logs))),
    }


def _suggested(table: list[dict[str, Any]], name: str) -> int | None:
    known = [row for row in table if row[name] is not None]
    if not known:
        return None
    if name == "silhouette":
        return max(known, key=lambda row: row[name])["k"]
    if name != "gap":
        return min(known, key=lambda row: row[name])["k"]
    for row, after in pairwise(known):
        if row["gap"] >= after["gap"] - after["gap_error"]:
            return row["k"]
    return None
