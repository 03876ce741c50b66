"""Codes by Sinkhorn's iteration, and the swapped prediction loss of SwAV."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench._harness import Bench, Cost, Inputs, Provider, Rows

EPSILON, N_ITERS, TEMPERATURE = 0.05, 3, 0.1
SHAPES = [{"n": 4096, "k": 3000}, {"n": 16384, "k": 1000}, {"n": 512, "k": 3000}]
SWAPPED_SHAPES = [
    {"n": n, "k": k, "d": 128} for n, k in ((4096, 3000), (512, 3000), (64, 3000), (256, 300), (512, 100))
]


def unit(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, columns, generator=generator))


def views_of(n: int, k: int, d: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    """Two views of n points near k prototypes, all of length one."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = unit(k, d, generator)
    near = prototypes[torch.randint(k, (n,), generator=generator)]
    views = [torch.nn.functional.normalize(near + 0.5 * unit(n, d, generator)) for _ in range(2)]
    named = {"z1": views[0], "z2": views[1], "prototypes": prototypes}
    return {name: t.to(device, dtype) for name, t in named.items()}


def scores_of(n: int, k: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    views = views_of(n, k, 128, torch.float32, device, seed)
    return {"scores": (views["z1"] @ views["prototypes"].T).to(dtype)}


# --- plain torch


def codes_swav(scores: Tensor) -> Tensor:
    """As SwAV has it: the exponential without a shift, in place."""
    q = torch.exp(scores / EPSILON).t()
    k, n = q.shape
    q /= q.sum()
    for _ in range(N_ITERS):
        q /= q.sum(dim=1, keepdim=True)
        q /= k
        q /= q.sum(dim=0, keepdim=True)
        q /= n
    q *= n
    return q.t()


def codes_log_domain(scores: Tensor) -> Tensor:
    log_q = scores / EPSILON
    n, k = scores.shape
    u = torch.zeros_like(log_q[:, 0])
    a, b = torch.full_like(u, 1.0 / n).log(), torch.full_like(log_q[0], 1.0 / k).log()
    for _ in range(N_ITERS):
        v = b - torch.logsumexp(log_q + u[:, None], dim=0)
        u = a - torch.logsumexp(log_q + v, dim=1)
    return torch.softmax(log_q + v, dim=1)


def codes_vectors(scores: Tensor) -> Tensor:
    """The best plain form: one exponential, scalings as vectors, their sums as matrix-vector products."""
    kernel = torch.exp(scores / EPSILON)
    n, k = scores.shape
    u = torch.ones_like(scores[:, 0])
    for _ in range(N_ITERS):
        v = 1.0 / (k * (kernel.T @ u))
        u = 1.0 / (n * (kernel @ v))
    return kernel.mul_(v).mul_(u[:, None] * n)


def swapped(codes: Callable[[Tensor], Tensor], z1: Tensor, z2: Tensor, prototypes: Tensor) -> Tensor:
    s1, s2 = z1 @ prototypes.T, z2 @ prototypes.T
    with torch.no_grad():
        q1, q2 = codes(s1), codes(s2)
    p1, p2 = torch.log_softmax(s1 / TEMPERATURE, dim=1), torch.log_softmax(s2 / TEMPERATURE, dim=1)
    return -((q2 * p1).sum(dim=1) + (q1 * p2).sum(dim=1)).mean() / 2


# --- truth and cost


def truth_of_codes(inputs: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
    return {"q": codes_log_domain(inputs["scores"].double())}


def truth_of_loss(inputs: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
    leaves = {name: t.detach().double().requires_grad_() for name, t in inputs.items()}
    loss = swapped(codes_log_domain, **leaves)
    found: dict[str, Tensor | Rows] = {"loss": loss.detach()}
    if gradients:
        found.update((f"grad_{n}", g) for n, g in zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))
    return found


def cost_of_codes(*, n: int, k: int, itemsize: int, mode: str) -> Cost:
    """The scores are read once an iteration and once for the result, which is written once."""
    return Cost(flops=0.0, bytes_moved=float((N_ITERS + 2) * n * k * itemsize))


def cost_of_loss(*, n: int, k: int, d: int, itemsize: int, mode: str) -> Cost:
    """Of an implementation that holds no scores: for each view their product once an iteration and once for the
    loss, and two more products for the gradients."""
    products = {"forward": N_ITERS + 1, "backward": 2, "both": N_ITERS + 3}[mode]
    return Cost(flops=4.0 * products * n * k * d, bytes_moved=float(2 * (N_ITERS + 2) * n * d * itemsize))


# --- providers


def make_codes(backend: str) -> Callable[..., Any]:
    from fastdc.kernels.sinkhorn import sinkhorn_assign

    return partial(sinkhorn_assign, epsilon=EPSILON, n_iters=N_ITERS, backend=backend)


def make_loss(backend: str) -> Callable[..., Any]:
    from fastdc.kernels.sinkhorn import swapped_prediction_loss

    options = {"temperature": TEMPERATURE, "epsilon": EPSILON, "n_iters": N_ITERS}
    return partial(swapped_prediction_loss, **options, backend=backend)


def make_pot() -> Callable[..., Any]:
    import ot

    def codes(scores: Tensor) -> Tensor:
        n, k = scores.shape
        a, b = torch.full((n,), 1.0 / n).to(scores), torch.full((k,), 1.0 / k).to(scores)
        return n * ot.bregman.sinkhorn_log(a, b, -scores, EPSILON, numItermax=N_ITERS, stopThr=0, warn=False)

    return codes


def matrices(number: int) -> Callable[..., int]:
    """Bytes of so many n x k matrices."""
    return lambda *, n, k, itemsize, **_: number * n * k * itemsize


def ours(make: Callable[[str], Callable[..., Any]], reference_matrices: int) -> dict[str, Provider]:
    return {
        "reference": Provider(partial(make, "reference"), matrices(reference_matrices)),
        "numba": Provider(partial(make, "numba"), devices=("cpu",)),
        "triton": Provider(partial(make, "triton"), devices=("cuda",)),
    }


def compiled(function: Callable[..., Tensor], number: int) -> Provider:
    return Provider(lambda: torch.compile(function), matrices(number), compiles_each_shape=True)


BENCHES = [
    Bench(
        op="sinkhorn_assign",
        shapes=SHAPES,
        tiny={"n": 70, "k": 9},
        inputs=scores_of,
        outputs=("q",),
        truth=truth_of_codes,
        cost=cost_of_codes,
        providers=ours(make_codes, 10)
        | {
            "swav": Provider(lambda: codes_swav, matrices(2)),
            "log_domain": Provider(lambda: codes_log_domain, matrices(4)),
            "vectors": Provider(lambda: codes_vectors, matrices(2)),
            "torch_compile_log_domain": compiled(codes_log_domain, 2),
            "torch_compile_swav": compiled(codes_swav, 2),
            "pot": Provider(make_pot, matrices(5)),
        },
    ),
    Bench(
        op="swapped_prediction_loss",
        shapes=SWAPPED_SHAPES,
        tiny={"n": 70, "k": 9, "d": 5},
        inputs=views_of,
        outputs=("loss",),
        gradients=("z1", "z2", "prototypes"),
        truth=truth_of_loss,
        cost=cost_of_loss,
        providers=ours(make_loss, 20)
        | {
            "eager_swav": Provider(lambda: partial(swapped, codes_swav), matrices(10)),
            "eager_vectors": Provider(lambda: partial(swapped, codes_vectors), matrices(10)),
            "torch_compile_swav": compiled(partial(swapped, codes_swav), 6),
        },
    ),
]
