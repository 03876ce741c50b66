"""The contingency table of two partitions, and the scores that follow from it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench._harness import Bench, Cost, Inputs, Provider

SHAPES = [{"n": 10_000_000, "k": 10}, {"n": 10_000_000, "k": 1000}]
TINY = {"n": 500, "k": 4}
EXACT = dict.fromkeys((torch.float64, torch.float32, torch.float16, torch.bfloat16), 0.0)
CLOSE = dict.fromkeys((torch.float64, torch.float32, torch.float16, torch.bfloat16), 1e-12)


def inputs(n: int, k: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    """int64 labels, whatever the dtype: 70 % of samples in the cluster of their class, the rest anywhere."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(k, (n,), generator=generator)
    anywhere = torch.randint(k, (n,), generator=generator)
    pred = torch.where(torch.rand(n, generator=generator) < 0.7, true, anywhere)
    return {"labels_true": true.to(device), "labels_pred": pred.to(device)}


def as_numpy(given: Inputs) -> Inputs:
    return {name: labels.cpu().numpy() for name, labels in given.items()}


def table_truth(given: Inputs, gradients: bool) -> dict[str, Tensor]:
    k = int(given["labels_true"].max()) + 1
    counts = torch.bincount(given["labels_true"] * k + given["labels_pred"], minlength=k * k)
    return {"counts": counts.view(k, k)}


def make_table(backend: str) -> Callable[..., Tensor]:
    from fastdc.kernels.contingency import contingency_table

    return lambda labels_true, labels_pred: contingency_table(labels_true, labels_pred, backend=backend).counts


def make_numpy_bincount() -> Callable[..., Any]:
    import numpy as np

    def count(labels_true: np.ndarray, labels_pred: np.ndarray) -> np.ndarray:
        k = int(max(labels_true.max(), labels_pred.max())) + 1
        return np.bincount(labels_true * k + labels_pred, minlength=k * k).reshape(k, k)

    return count


def make_numpy_add_at() -> Callable[..., Any]:
    import numpy as np

    def count(labels_true: np.ndarray, labels_pred: np.ndarray) -> np.ndarray:
        k = int(max(labels_true.max(), labels_pred.max())) + 1
        counts = np.zeros((k, k), dtype=np.int64)
        np.add.at(counts, (labels_true, labels_pred), 1)
        return counts

    return count


def make_sklearn_table() -> Callable[..., Any]:
    from sklearn.metrics.cluster import contingency_matrix

    return contingency_matrix


def table_cost(n: int, k: int, itemsize: int, mode: str) -> Cost:
    return Cost(flops=0, bytes_moved=16 * n + 8 * k * k)


def scores_truth(given: Inputs, gradients: bool) -> dict[str, Tensor]:
    """Both scores from the float64 table, by their definitions."""
    counts = table_truth(given, gradients)["counts"].double()
    n, rows, columns = counts.sum(), counts.sum(1), counts.sum(0)
    mutual = torch.special.xlogy(counts / n, counts * n / torch.outer(rows, columns)).sum()
    entropies = [-torch.special.xlogy(sizes / n, sizes / n).sum() for sizes in (rows, columns)]
    same, same_true, same_pred = ((v * (v - 1) / 2).sum() for v in (counts, rows, columns))
    chance = same_true * same_pred / (n * (n - 1) / 2)
    rand = (same - chance) / ((same_true + same_pred) / 2 - chance)
    return {"nmi": 2 * mutual / sum(entropies), "ari": rand}


def float64(score: float) -> Tensor:
    return torch.tensor(score, dtype=torch.float64)


def make_scores(backend: str) -> Callable[..., Any]:
    from fastdc import adjusted_rand_index, contingency_table, normalized_mutual_info

    def scores(labels_true: Tensor, labels_pred: Tensor) -> tuple[Tensor, Tensor]:
        table = contingency_table(labels_true, labels_pred, sparse=None, backend=backend)
        return float64(normalized_mutual_info(contingency=table)), float64(adjusted_rand_index(contingency=table))

    return scores


def make_sklearn_scores() -> Callable[..., Any]:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return lambda labels_true, labels_pred: (
        float64(normalized_mutual_info_score(labels_true, labels_pred)),
        float64(adjusted_rand_score(labels_true, labels_pred)),
    )


def on_cpu(make: Callable[[], Callable[..., Any]]) -> Provider:
    """A peer that takes numpy arrays."""
    return Provider(make, devices=("cpu",), prepare=as_numpy)


def ours(make: Callable[[str], Callable[..., Any]]) -> dict[str, Provider]:
    return {
        "reference": Provider(partial(make, "reference")),
        "numba": Provider(partial(make, "numba"), devices=("cpu",)),
        "triton": Provider(partial(make, "triton"), devices=("cuda",)),
    }


BENCHES = [
    Bench(
        op="contingency_table",
        shapes=SHAPES,
        tiny=TINY,
        inputs=inputs,
        outputs=("counts",),
        truth=table_truth,
        cost=table_cost,
        tolerances=EXACT,
        providers=ours(make_table)
        | {
            "np.bincount": on_cpu(make_numpy_bincount),
            "np.add.at": on_cpu(make_numpy_add_at),
            "sklearn": on_cpu(make_sklearn_table),
        },
    ),
    Bench(
        op="nmi_and_ari",
        shapes=SHAPES,
        tiny=TINY,
        inputs=inputs,
        outputs=("nmi", "ari"),
        truth=scores_truth,
        cost=table_cost,
        tolerances=CLOSE,
        providers=ours(make_scores) | {"sklearn": on_cpu(make_sklearn_scores)},
    ),
]
