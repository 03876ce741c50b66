"""All pairs of rows: exact silhouettes, and losses over the pairs of a batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench._harness import Bench, Cost, Inputs, Provider, Rows, make_compiled, make_plain

TRUTH_ROWS = 512  # of a silhouette whose truth is computed
TEMPERATURE = 64.0
MARGIN = 0.2


def make_fastdc(op: str, **options: Any) -> Callable[..., Tensor]:
    from fastdc.kernels import pairwise

    return partial(getattr(pairwise, op), **options)


# --- inputs


def cluster_inputs(*, n: int, d: int, k: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(k, (n,), generator=generator)
    x = torch.randn(k, d, generator=generator)[labels] + torch.randn(n, d, generator=generator)
    return {"x": x.to(device, dtype), "labels": labels.to(device)}


def silhouette_inputs(*, n: int, d: int, k: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    return {**cluster_inputs(n=n, d=d, k=k, dtype=dtype, device=device, seed=seed), "n_clusters": k}


def feature_inputs(*, n: int, k: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    """Softmax outputs, about half of them confident."""
    logits = 4.0 * torch.randn(n, k, generator=torch.Generator().manual_seed(seed))
    return {"f": logits.softmax(1).to(device, dtype)}


# --- plain torch and the peer


def make_scikit_learn() -> Callable[..., Any]:
    from sklearn.metrics import silhouette_samples

    return lambda x, labels, n_clusters: silhouette_samples(x, labels)


def to_numpy(inputs: Inputs) -> Inputs:
    return {name: value.numpy() if isinstance(value, Tensor) else value for name, value in inputs.items()}


def silhouette_eager(x: Tensor, labels: Tensor, n_clusters: int) -> Tensor:
    dists = torch.cdist(x, x)
    own = torch.nn.functional.one_hot(labels, n_clusters)
    counts, sums = own.sum(0), dists @ own.to(dists)
    a = (sums * own).sum(1) / (counts[labels] - 1)
    b = (sums / counts).masked_fill(own.bool(), torch.inf).amin(1)
    return (b - a) / torch.maximum(a, b)


def bce_eager(f: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(f, dim=1)
    g = unit @ unit.T
    positive = g >= 0.95
    selected = (positive | (g < 0.455)).fill_diagonal_(False)
    g = g.clamp(0, 1)
    terms = -torch.where(positive, g + 1e-6, 1 - g + 1e-6).log()
    return torch.where(selected, terms, 0.0).sum() / selected.sum()


def sq_dists(x: Tensor) -> Tensor:
    norms = x.square().sum(1)
    return (norms[:, None] + norms - 2.0 * x @ x.T).clamp(min=0)


def neighbors_eager(x: Tensor, labels: Tensor) -> Tensor:
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    scores = -sq_dists(x) / TEMPERATURE
    log_all = scores.masked_fill(itself, -torch.inf).logsumexp(1)
    other = (labels != labels[:, None]) | itself
    return (log_all - scores.masked_fill(other, -torch.inf).logsumexp(1)).mean()


def triplets_eager(x: Tensor, labels: Tensor) -> Tensor:
    dists = sq_dists(x).clamp(min=1e-12).sqrt()
    same = labels == labels[:, None]
    far, near = dists.masked_fill(~same, -torch.inf).amax(1), dists.masked_fill(same, torch.inf).amin(1)
    return torch.nn.functional.softplus(far - near).mean()


def all_triplets_eager(x: Tensor, labels: Tensor) -> Tensor:
    """The triplets that are valid, in a list: fewer than n^3, and the best of torch's forms where classes are small."""
    dists = sq_dists(x).clamp(min=1e-12).sqrt()
    same = labels == labels[:, None]
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    anchor, positive = (same & ~itself).nonzero(as_tuple=True)
    terms = (MARGIN + dists[anchor, positive][:, None] - dists[anchor]).masked_fill(same[anchor], 0.0).relu()
    return terms.sum() / (terms > 0).sum()


# --- truth and cost


def silhouette_truth(inputs: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
    """Of the first rows, in float64."""
    x, labels, k = inputs["x"].double(), inputs["labels"], inputs["n_clusters"]
    which = torch.arange(min(TRUTH_ROWS, len(x)), device=x.device)
    dists = torch.cdist(x[which], x, compute_mode="donot_use_mm_for_euclid_dist")
    own = torch.nn.functional.one_hot(labels, k).double()
    counts, sums = own.sum(0), dists @ own
    a = (sums * own[which]).sum(1) / (counts[labels[which]] - 1)
    b = (sums / counts).masked_fill(own[which].bool(), torch.inf).amin(1)
    return {"s": Rows(which, (b - a) / torch.maximum(a, b))}


def truth_of(function: Callable[..., Tensor], leaf: str) -> Callable[..., Any]:
    """Of a plain form, in float64."""

    def truth(inputs: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
        exact = dict(inputs)
        exact[leaf] = inputs[leaf].detach().double().requires_grad_(gradients)
        loss = function(**exact)
        results: dict[str, Tensor | Rows] = {"loss": loss.detach()}
        if gradients:
            results[f"grad_{leaf}"] = torch.autograd.grad(loss, exact[leaf])[0]
        return results

    return truth


def silhouette_cost(*, n: int, d: int, k: int, itemsize: int, mode: str) -> Cost:
    """One product of all rows with all rows."""
    return Cost(flops=2.0 * n * n * d, bytes_moved=float(n * (d + 1) * itemsize))


def loss_cost(*, n: int, width: int, itemsize: int, mode: str) -> Cost:
    """Products of all pairs, by halves since they are symmetric, and again of their weights with the rows."""
    products = {"forward": 0.5, "backward": 1.0, "both": 1.5}[mode]
    return Cost(flops=2.0 * products * n * n * width, bytes_moved=float(2 * n * width * itemsize))


def bce_cost(*, n: int, k: int, itemsize: int, mode: str) -> Cost:
    return loss_cost(n=n, width=k, itemsize=itemsize, mode=mode)


def neighbors_cost(*, n: int, d: int, k: int, itemsize: int, mode: str) -> Cost:
    return loss_cost(n=n, width=d, itemsize=itemsize, mode=mode)


def triplets_cost(*, n: int, d: int, k: int, itemsize: int, mode: str) -> Cost:
    """The distances of all pairs, by halves; the gradient is of the order of the rows."""
    flops = 0.0 if mode == "backward" else float(n * n * d)
    return Cost(flops=flops, bytes_moved=float(4 * n * d * itemsize))


def all_triplets_cost(*, n: int, d: int, k: int, itemsize: int, mode: str) -> Cost:
    """The distances of all pairs, and their weights times the rows in the gradient."""
    return loss_cost(n=n, width=d, itemsize=itemsize, mode=mode)


def triplets_bytes(*, n: int, k: int, itemsize: int, **rest: int) -> int:
    """Six numbers a triplet."""
    return 6 * n * n * n // k * itemsize


def square_bytes(*, n: int, itemsize: int, copies: int, **rest: int) -> int:
    return copies * n * n * itemsize


def _providers(op: str, eager: Callable[..., Tensor], copies: int, **options: Any) -> dict[str, Provider]:
    held = partial(square_bytes, copies=copies)
    return {
        "reference": Provider(partial(make_fastdc, op, backend="reference", **options), held),
        "numba": Provider(partial(make_fastdc, op, backend="numba", **options), devices=("cpu",)),
        "triton": Provider(partial(make_fastdc, op, backend="triton", **options), devices=("cuda",)),
        "eager": Provider(partial(make_plain, eager), held),
        "torch_compile": Provider(partial(make_compiled, eager), held, compiles_each_shape=True),
    }


def _loss_bench(op: str, leaf: str, eager: Callable[..., Tensor], **described: Any) -> Bench:
    options = {"temperature": TEMPERATURE} if op == "soft_nearest_neighbor_loss" else {}
    return Bench(
        op=op,
        outputs=("loss",),
        gradients=(leaf,),
        truth=truth_of(eager, leaf),
        providers=_providers(op, eager, 8, **options),
        **described,
    )


PAIRS: dict[str, Any] = {
    "shapes": [{"n": 4096, "d": 64, "k": 10}, {"n": 1024, "d": 128, "k": 100}],
    "tiny": {"n": 60, "d": 5, "k": 3},
    "inputs": cluster_inputs,
}
BENCHES = [
    Bench(
        op="silhouette_coefficients",
        shapes=[{"n": 20_000, "d": 32, "k": 10}, {"n": 10_000, "d": 128, "k": 100}],
        tiny=PAIRS["tiny"],
        inputs=silhouette_inputs,
        outputs=("s",),
        truth=silhouette_truth,
        cost=silhouette_cost,
        providers={
            **_providers("silhouette_coefficients", silhouette_eager, 4),
            "scikit_learn": Provider(make_scikit_learn, devices=("cpu",), prepare=to_numpy),
        },
    ),
    _loss_bench(
        "pairwise_bce",
        "f",
        bce_eager,
        shapes=[{"n": 4096, "k": 10}, {"n": 4096, "k": 100}],
        tiny={"n": 60, "k": 5},
        inputs=feature_inputs,
        cost=bce_cost,
    ),
    _loss_bench("soft_nearest_neighbor_loss", "x", neighbors_eager, cost=neighbors_cost, **PAIRS),
    _loss_bench("triplet_loss", "x", triplets_eager, cost=triplets_cost, **PAIRS),
    Bench(
        op="triplet_loss_all",
        shapes=[{"n": 1024, "d": 128, "k": 100}, {"n": 512, "d": 64, "k": 10}],
        tiny=PAIRS["tiny"],
        inputs=cluster_inputs,
        outputs=("loss",),
        gradients=("x",),
        truth=truth_of(all_triplets_eager, "x"),
        cost=all_triplets_cost,
        providers={
            **{
                name: Provider(partial(make_fastdc, "triplet_loss", margin=MARGIN, mining="all", backend=name), **where)
                for name, where in (("reference", {}), ("numba", {"devices": ("cpu",)}))
            },
            "eager": Provider(partial(make_plain, all_triplets_eager), triplets_bytes),
        },
    ),
]
