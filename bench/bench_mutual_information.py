"""Information between rows and clusters: IIC's joint distribution and loss, the objectives of RIM, IMSAT and VAT."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench._harness import Bench, Cost, Inputs, Provider, Rows, make_compiled, make_plain

JOINT_SHAPES = [
    {"h": 5, "n": 4096, "k": 100},
    {"h": 5, "n": 4096, "k": 10},
    {"h": 1, "n": 200_000, "k": 100},
]
ROW_SHAPES = [
    {"n": 1_000_000, "k": 10},
    {"n": 100_000, "k": 100},
    {"n": 8192, "k": 1000},
]
EPS = 2.220446049250313e-16


def make_fastdc(op: str, **options: Any) -> Callable[..., Tensor]:
    from fastdc.kernels import mutual_information

    return partial(getattr(mutual_information, op), **options)


# --- inputs and plain torch


def logits_of(shape: tuple[int, ...], seed: int) -> Tensor:
    return 2.0 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def views(*, h: int, n: int, k: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    """Probabilities of two views that agree about half."""
    logits = logits_of((h, n, k), seed)
    moved = logits + logits_of((h, n, k), seed + 1) / 2
    return {"p1": logits.softmax(-1).to(device, dtype), "p2": moved.softmax(-1).to(device, dtype)}


def joint_inputs(*, h: int, n: int, k: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    grad_output = torch.randn(h, k, k, generator=torch.Generator().manual_seed(seed + 2))
    return {**views(h=h, n=n, k=k, dtype=dtype, device=device, seed=seed), "grad_output": grad_output.to(device, dtype)}


def logit_inputs(*, n: int, k: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    return {"logits": logits_of((n, k), seed).to(device, dtype)}


def probability_inputs(*, n: int, k: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    return {"p": logits_of((n, k), seed).softmax(-1).to(device, dtype)}


def perturbed_inputs(*, n: int, k: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    logits = logits_of((n, k), seed)
    perturbed = logits + logits_of((n, k), seed + 1) / 10
    return {"logits": logits.to(device, dtype), "perturbed_logits": perturbed.to(device, dtype)}


def joint_product(p1: Tensor, p2: Tensor) -> Tensor:
    joint = p1.mT @ p2 / p1.shape[1]
    return (joint + joint.mT) / 2


def joint_broadcast(p1: Tensor, p2: Tensor) -> Tensor:
    """The form of the paper's code: n x k x k."""
    joint = (p1.unsqueeze(3) * p2.unsqueeze(2)).mean(1)
    return (joint + joint.mT) / 2


def iic_of(joint: Tensor) -> Tensor:
    rows, columns = joint.sum(2, keepdim=True).clamp(min=EPS), joint.sum(1, keepdim=True).clamp(min=EPS)
    joint = joint.clamp(min=EPS)
    return -(joint * (joint.log() - rows.log() - columns.log())).sum((1, 2)).mean()


def iic_product(p1: Tensor, p2: Tensor) -> Tensor:
    return iic_of(joint_product(p1, p2))


def iic_broadcast(p1: Tensor, p2: Tensor) -> Tensor:
    return iic_of(joint_broadcast(p1, p2))


def rim_eager(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    mean = p.mean(0)
    return torch.xlogy(mean, mean).sum() - (p * log_p).sum(1).mean()


def conditional_eager(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(1).mean()


def marginal_eager(p: Tensor) -> Tensor:
    mean = p.mean(0)
    return -torch.xlogy(mean, mean).sum()


def vat_eager(logits: Tensor, perturbed_logits: Tensor) -> Tensor:
    log_p, log_q = logits.log_softmax(1), perturbed_logits.log_softmax(1)
    return torch.nn.functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


# --- truth and cost


def truth_of(function: Callable[..., Tensor], output: str, leaves: tuple[str, ...]) -> Callable[..., Any]:
    """Of a plain form, in float64."""

    def truth(inputs: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
        exact = {name: value.detach().double() for name, value in inputs.items()}
        grad_output = exact.pop("grad_output", None)
        if gradients:
            for name in leaves:
                exact[name].requires_grad_()
        value = function(**exact)
        results: dict[str, Tensor | Rows] = {output: value.detach()}
        if gradients:
            grads = torch.autograd.grad(value, [exact[name] for name in leaves], grad_output)
            results |= {f"grad_{name}": grad for name, grad in zip(leaves, grads)}
        return results

    return truth


def joint_cost(*, h: int, n: int, k: int, itemsize: int, mode: str) -> Cost:
    """One product forward, two backward; both views are read in each, two gradients written."""
    products = {"forward": 1, "backward": 2, "both": 3}[mode]
    transfers = {"forward": 2, "backward": 4, "both": 6}[mode]
    return Cost(flops=2.0 * products * h * n * k * k, bytes_moved=float(transfers * h * n * k * itemsize))


def row_cost(*, n: int, k: int, itemsize: int, mode: str) -> Cost:
    """Rows are read forward, and again backward, where the gradient is written."""
    transfers = {"forward": 1, "backward": 2, "both": 3}[mode]
    return Cost(flops=0.0, bytes_moved=float(transfers * n * k * itemsize))


def vat_cost(*, n: int, k: int, itemsize: int, mode: str) -> Cost:
    """Both views are read once, the gradient is written in the same pass."""
    transfers = {"forward": 2, "backward": 1, "both": 3}[mode]
    return Cost(flops=0.0, bytes_moved=float(transfers * n * k * itemsize))


def broadcast_bytes(*, h: int, n: int, k: int, itemsize: int) -> int:
    """The products and their gradient."""
    return 2 * h * n * k * k * itemsize


def eager_bytes(*, n: int, k: int, itemsize: int) -> int:
    """Six matrices at the peak of the backward pass."""
    return 6 * n * k * itemsize


def compiled_bytes(*, n: int, k: int, itemsize: int) -> int:
    return 2 * n * k * itemsize


def _joint_providers(op: str, product: Callable[..., Tensor], broadcast: Callable[..., Tensor]) -> dict[str, Provider]:
    return {
        "fastdc": Provider(partial(make_fastdc, op)),
        "eager_product": Provider(partial(make_plain, product)),
        "torch_compile_product": Provider(partial(make_compiled, product), compiles_each_shape=True),
        "broadcast": Provider(partial(make_plain, broadcast), broadcast_bytes),
    }


def _row_providers(op: str, eager: Callable[..., Tensor]) -> dict[str, Provider]:
    return {
        "reference": Provider(partial(make_fastdc, op, backend="reference"), eager_bytes),
        "numba": Provider(partial(make_fastdc, op, backend="numba"), devices=("cpu",)),
        "triton": Provider(partial(make_fastdc, op, backend="triton"), devices=("cuda",)),
        "eager": Provider(partial(make_plain, eager), eager_bytes),
        "torch_compile": Provider(partial(make_compiled, eager), compiled_bytes, compiles_each_shape=True),
    }


def _joint_bench(op: str, output: str, inputs: Callable[..., Inputs], *plain: Callable[..., Tensor]) -> Bench:
    return Bench(
        op=op,
        shapes=JOINT_SHAPES,
        tiny={"h": 2, "n": 60, "k": 5},
        inputs=inputs,
        outputs=(output,),
        gradients=("p1", "p2"),
        truth=truth_of(plain[0], output, ("p1", "p2")),
        cost=joint_cost,
        providers=_joint_providers(op, *plain),
    )


def _row_bench(op: str, inputs: Callable[..., Inputs], leaf: str, plain: Callable[..., Tensor]) -> Bench:
    return Bench(
        op=op,
        shapes=ROW_SHAPES,
        tiny={"n": 60, "k": 5},
        inputs=inputs,
        outputs=("value",),
        gradients=(leaf,),
        truth=truth_of(plain, "value", (leaf,)),
        cost=vat_cost if op == "vat_kl" else row_cost,
        providers=_row_providers(op, plain),
    )


BENCHES = [
    _joint_bench("joint_distribution", "joint", joint_inputs, joint_product, joint_broadcast),
    _joint_bench("iic_loss", "loss", views, iic_product, iic_broadcast),
    _row_bench("rim_loss", logit_inputs, "logits", rim_eager),
    _row_bench("conditional_entropy", probability_inputs, "p", conditional_eager),
    _row_bench("marginal_entropy", probability_inputs, "p", marginal_eager),
    _row_bench("vat_kl", perturbed_inputs, "perturbed_logits", vat_eager),
]
