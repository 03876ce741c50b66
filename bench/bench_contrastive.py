"""Contrastive losses: NT-Xent, InfoNCE with and without a memory bank, supervised contrast."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from bench._gpu_peers import make_inf_cl, on_gpu
from bench._harness import Bench, Cost, Inputs, Provider, Rows, make_compiled, make_plain

TEMPERATURE = 0.5
VIEW_SHAPES = [{"b": 8192, "d": 128}, {"b": 2048, "d": 128}, {"b": 256, "d": 128}]
BANK_SHAPES = [{"n": 8192, "m": 0, "d": 128}, {"n": 512, "m": 65536, "d": 128}]  # m further keys
LABEL_SHAPES = [{"n": 8192, "k": 100, "d": 128}, {"n": 1024, "k": 10, "d": 128}]
PART = 1024  # rows of the truth that are held against all others at once


def make_fastdc(op: str, backend: str) -> Callable[..., Tensor]:
    from fastdc.kernels import contrastive

    def run(**inputs: Any) -> Tensor:
        symmetric = {"symmetric": "extra_keys" not in inputs} if op == "info_nce" else {}
        return getattr(contrastive, op)(temperature=TEMPERATURE, backend=backend, **symmetric, **inputs)

    return run


# --- inputs


def views_of(n: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, d, generator=generator)
    return points, points + torch.randn(n, d, generator=generator)


def view_inputs(*, b: int, d: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    return dict(zip(("z1", "z2"), (view.to(device, dtype) for view in views_of(b, d, seed))))


def bank_inputs(*, n: int, m: int, d: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    inputs = dict(zip(("queries", "keys"), views_of(n, d, seed)))
    if m:
        inputs["extra_keys"] = views_of(m, d, seed + 1)[0]
    return {name: rows.to(device, dtype) for name, rows in inputs.items()}


def label_inputs(*, n: int, k: int, d: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    labels = torch.randint(k, (n,), generator=torch.Generator().manual_seed(seed + 1))
    return {"z": views_of(n, d, seed)[0].to(device, dtype), "labels": labels.to(device)}


# --- plain torch


def nt_xent_lightly(z1: Tensor, z2: Tensor) -> Tensor:
    """As lightly's NTXentLoss has it: four products, the diagonals picked out by a mask, one cross-entropy."""
    z1, z2 = normalize(z1, dim=1), normalize(z2, dim=1)
    b = len(z1)
    others = ~torch.eye(b, dtype=torch.bool, device=z1.device)
    within1, across1, across2, within2 = (torch.einsum("nc,mc->nm", x, y) for x in (z1, z2) for y in (z1, z2))
    within1, within2 = ((x / TEMPERATURE)[others].view(b, -1) for x in (within1, within2))
    first = torch.cat([across1 / TEMPERATURE, within1], dim=1)
    second = torch.cat([across2 / TEMPERATURE, within2], dim=1)
    return cross_entropy(torch.cat([first, second]), torch.arange(b, device=z1.device).repeat(2))


def nt_xent_plain(z1: Tensor, z2: Tensor) -> Tensor:
    """The best plain form: one product, its diagonal overwritten, positives by rows."""
    z1, z2 = normalize(z1, dim=1), normalize(z2, dim=1)
    z = torch.cat([z1, z2])
    scores = (z @ (z / TEMPERATURE).T).fill_diagonal_(-torch.inf)
    return scores.logsumexp(dim=1).mean() - (z1 * z2).sum(dim=1).mean() / TEMPERATURE


def info_nce_plain(queries: Tensor, keys: Tensor, extra_keys: Tensor | None = None) -> Tensor:
    q, k = normalize(queries, dim=1), normalize(keys, dim=1)
    every = k if extra_keys is None else torch.cat([k, normalize(extra_keys, dim=1)])
    scores = q @ (every / TEMPERATURE).T
    sums = scores.logsumexp(dim=1)
    if extra_keys is None:
        sums = (sums + scores.logsumexp(dim=0)) / 2
    return (sums - (q * k).sum(dim=1) / TEMPERATURE).mean()


def sup_con_plain(z: Tensor, labels: Tensor) -> Tensor:
    """As the authors' code has it, but for its shift."""
    z = normalize(z, dim=1)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    scores = (z @ (z / TEMPERATURE).T).masked_fill(own, -torch.inf)
    positive = (labels[:, None] == labels) & ~own
    log_p = scores - scores.logsumexp(dim=1, keepdim=True)
    return -(torch.where(positive, log_p, 0.0).sum(dim=1) / positive.sum(dim=1).clamp(min=1)).mean()


# --- truth: sums over parts of the rows, in float64


def nt_xent_part(part: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    z = normalize(torch.cat([z1, z2]), dim=1)
    own = part[:, None] == torch.arange(len(z), device=z.device)
    scores = (z[part] @ z.T / TEMPERATURE).masked_fill(own, -torch.inf)
    return cross_entropy(scores, (part + len(z1)) % len(z), reduction="sum")


def info_nce_part(part: Tensor, queries: Tensor, keys: Tensor, extra_keys: Tensor | None = None) -> Tensor:
    q, k = normalize(queries, dim=1), normalize(keys, dim=1)
    if extra_keys is not None:
        return cross_entropy(
            q[part] @ torch.cat([k, normalize(extra_keys, dim=1)]).T / TEMPERATURE, part, reduction="sum"
        )
    both = (q[part] @ k.T / TEMPERATURE, k[part] @ q.T / TEMPERATURE)
    return sum(cross_entropy(scores, part, reduction="sum") for scores in both) / 2


def sup_con_part(part: Tensor, z: Tensor, labels: Tensor) -> Tensor:
    z = normalize(z, dim=1)
    own = part[:, None] == torch.arange(len(z), device=z.device)
    scores = (z[part] @ z.T / TEMPERATURE).masked_fill(own, -torch.inf)
    positive = (labels[part, None] == labels) & ~own
    log_p = scores - scores.logsumexp(dim=1, keepdim=True)
    return -(torch.where(positive, log_p, 0.0).sum(dim=1) / positive.sum(dim=1).clamp(min=1)).sum()


def truth_of(loss_of_part: Callable[..., Tensor], n_rows: Callable[[Inputs], int], leaves: tuple[str, ...]) -> Any:
    def truth(inputs: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
        exact = {name: t.detach().double() if t.is_floating_point() else t for name, t in inputs.items()}
        wanted = [exact[name].requires_grad_(gradients) for name in leaves]
        n, total = n_rows(inputs), torch.zeros((), dtype=torch.float64, device=wanted[0].device)
        for part in torch.arange(n, device=wanted[0].device).split(PART):
            loss = loss_of_part(part, **exact) / n
            total += loss.detach()
            if gradients:
                loss.backward()
        results: dict[str, Tensor | Rows] = {"loss": total}
        if gradients:
            results |= {f"grad_{name}": leaf.grad for name, leaf in zip(leaves, wanted) if leaf.grad is not None}
        return results

    return truth


# --- cost: of an implementation that holds no products, which are made again for the gradients


def view_cost(*, b: int, d: int, itemsize: int, mode: str) -> Cost:
    """The matrix of products is symmetric: one triangle a pass, and one whole product for the gradient."""
    units = {"forward": 1, "backward": 3, "both": 4}[mode]
    return Cost(flops=4.0 * units * b * b * d, bytes_moved=float(4 * b * d * itemsize))


def bank_cost(*, n: int, m: int, d: int, itemsize: int, mode: str) -> Cost:
    """One product a pass; gradients by queries against all keys, and by keys, not those of the bank.

    What the bank pulls queries to needs no second look at it.
    """
    products = {"forward": n + m, "backward": 3 * n + m, "both": 4 * n + 2 * m}[mode]
    return Cost(flops=2.0 * n * products * d, bytes_moved=float((4 * n + m) * d * itemsize))


def label_cost(*, n: int, k: int, d: int, itemsize: int, mode: str) -> Cost:
    units = {"forward": 1, "backward": 3, "both": 4}[mode]
    return Cost(flops=1.0 * units * n * n * d, bytes_moved=float(2 * n * d * itemsize))


def matrices(number: int) -> Callable[..., int]:
    """Bytes of so many matrices of all products."""

    def count(*, itemsize: int, d: int, b: int = 0, n: int = 0, m: int = 0, k: int = 0) -> int:
        return number * itemsize * (4 * b * b + n * (n + m))

    return count


def _providers(op: str, plain: Callable[..., Tensor], **more: Provider) -> dict[str, Provider]:
    return {
        "reference": Provider(partial(make_fastdc, op, "reference"), matrices(6)),
        "numba": Provider(partial(make_fastdc, op, "numba"), devices=("cpu",)),
        "triton": Provider(partial(make_fastdc, op, "triton"), devices=("cuda",)),
        **more,
        "eager": Provider(partial(make_plain, plain), matrices(4)),
        "torch_compile": Provider(partial(make_compiled, plain), matrices(3), compiles_each_shape=True),
    }


BENCHES = [
    Bench(
        op="nt_xent",
        shapes=VIEW_SHAPES,
        tiny={"b": 30, "d": 5},
        inputs=view_inputs,
        outputs=("loss",),
        gradients=("z1", "z2"),
        truth=truth_of(nt_xent_part, lambda inputs: 2 * len(inputs["z1"]), ("z1", "z2")),
        cost=view_cost,
        providers=_providers(
            "nt_xent", nt_xent_plain, lightly=Provider(partial(make_plain, nt_xent_lightly), matrices(8))
        ),
    ),
    Bench(
        op="info_nce",
        shapes=BANK_SHAPES,
        tiny={"n": 30, "m": 20, "d": 5},
        inputs=bank_inputs,
        outputs=("loss",),
        gradients=("queries", "keys"),
        truth=truth_of(info_nce_part, lambda inputs: len(inputs["queries"]), ("queries", "keys")),
        cost=bank_cost,
        providers=_providers("info_nce", info_nce_plain) | {"inf-cl": on_gpu(partial(make_inf_cl, TEMPERATURE))},
    ),
    Bench(
        op="sup_con",
        shapes=LABEL_SHAPES,
        tiny={"n": 30, "k": 3, "d": 5},
        inputs=label_inputs,
        outputs=("loss",),
        gradients=("z",),
        truth=truth_of(sup_con_part, lambda inputs: len(inputs["z"]), ("z",)),
        cost=label_cost,
        providers=_providers("sup_con", sup_con_plain),
    ),
]
