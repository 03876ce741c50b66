"""Self-expression: the loss of DSC-Net's layer, and sparse codes by orthogonal matching pursuit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench._harness import Bench, Cost, Inputs, Provider, Rows, make_compiled, make_plain

REGULARIZATION = 0.1
N_SUBSPACES, RANK = 20, 4


def make_fastdc(op: str, **options: Any) -> Callable[..., Tensor]:
    from fastdc.kernels import self_expression

    return partial(getattr(self_expression, op), **options)


def layer_inputs(*, n: int, d: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    z, c = torch.randn(n, d, generator=generator), torch.randn(n, n, generator=generator) / n
    return {"z": z.to(device, dtype), "c": c.to(device, dtype)}


def subspace_inputs(*, n: int, d: int, k: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    """Points near subspaces of dimension 4, and how many points a code names."""
    generator = torch.Generator().manual_seed(seed)
    bases = torch.randn(N_SUBSPACES, RANK, d, generator=generator)
    points = torch.randn(N_SUBSPACES, -(-n // N_SUBSPACES), RANK, generator=generator) @ bases
    noise = 0.05 * torch.randn(n, d, generator=generator)
    return {"z": (points.reshape(-1, d)[:n] + noise).to(device, dtype), "n_nonzero": k}


# --- peers


def loss_eager(z: Tensor, c: Tensor) -> Tensor:
    """As it is written in papers' code: a masked copy of C."""
    c0 = c - torch.diag(c.diagonal())
    return (z - c0 @ z).square().sum() + REGULARIZATION * c0.square().sum()


def loss_without_copy(z: Tensor, c: Tensor) -> Tensor:
    """The plain form with fewest n x n passes: the diagonal's share is taken off afterwards."""
    diagonal = c.diagonal()
    residual = z - c @ z + diagonal[:, None] * z
    return residual.square().sum() + REGULARIZATION * (torch.linalg.vector_norm(c) ** 2 - diagonal.square().sum())


def pursue_scikit_learn(z: Tensor, n_nonzero: int) -> Tensor:
    """Row by row; the row itself is a column of zeros of the dictionary, which is never chosen."""
    from sklearn.linear_model import orthogonal_mp

    unit = torch.nn.functional.normalize(z).numpy()
    dictionary = np.array(unit.T, order="F")
    codes = np.zeros((len(unit), len(unit)), unit.dtype)
    for i, row in enumerate(unit):
        dictionary[:, i] = 0
        codes[i] = orthogonal_mp(dictionary, row, n_nonzero_coefs=n_nonzero)
        dictionary[:, i] = row
    return torch.from_numpy(codes)


# --- truth and cost


def loss_truth(inputs: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
    z, c = (inputs[name].double().requires_grad_(gradients) for name in ("z", "c"))
    loss = loss_eager(z, c)
    results: dict[str, Tensor | Rows] = {"loss": loss.detach()}
    if gradients:
        results["grad_z"], results["grad_c"] = torch.autograd.grad(loss, (z, c))
    return results


def codes_truth(inputs: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
    from fastdc.kernels.self_expression import orthogonal_matching_pursuit

    codes = orthogonal_matching_pursuit(inputs["z"].double(), inputs["n_nonzero"], backend="reference")
    return {"codes": codes.to_dense()}


def codes_error(got: Tensor, expected: Tensor, inputs: Inputs) -> float:
    """How much longer the residuals are than those of the truth: where two candidates tie, codes may differ."""
    unit = torch.nn.functional.normalize(inputs["z"].double())
    dense = got.to_dense() if got.layout == torch.sparse_csr else got
    left, least = ((unit - codes.double() @ unit).norm(dim=1).mean() for codes in (dense, expected))
    if bool(dense.diagonal().any()) or int((dense != 0).sum(1).max()) > inputs["n_nonzero"]:
        return float("inf")
    return float((left - least).abs() / least)


def loss_cost(*, n: int, d: int, itemsize: int, mode: str) -> Cost:
    """One product forward, two backward; C is read, its gradient written."""
    products = {"forward": 1, "backward": 2, "both": 3}[mode]
    passes = {"forward": 1, "backward": 2, "both": 2}[mode]
    return Cost(flops=2.0 * products * n * n * d, bytes_moved=float(passes * n * n * itemsize))


def pursue_cost(*, n: int, d: int, k: int, itemsize: int, mode: str) -> Cost:
    """Correlations of every residual with every point, in each step."""
    return Cost(flops=2.0 * k * n * n * d, bytes_moved=float(n * d * itemsize + n * k * (8 + itemsize)))


def square_bytes(*, n: int, d: int, itemsize: int) -> int:
    """A masked copy, its square's gradient, and that of the product."""
    return 3 * n * n * itemsize


BENCHES = [
    Bench(
        op="self_expression_loss",
        shapes=[{"n": 4096, "d": 64}, {"n": 1440, "d": 300}],
        tiny={"n": 40, "d": 5},
        inputs=layer_inputs,
        outputs=("loss",),
        gradients=("z", "c"),
        truth=loss_truth,
        cost=loss_cost,
        providers={
            "fastdc": Provider(partial(make_fastdc, "self_expression_loss", regularization=REGULARIZATION)),
            "eager": Provider(partial(make_plain, loss_eager), square_bytes),
            "eager_without_copy": Provider(partial(make_plain, loss_without_copy), square_bytes),
            "torch_compile": Provider(partial(make_compiled, loss_eager), square_bytes, compiles_each_shape=True),
        },
    ),
    Bench(
        op="orthogonal_matching_pursuit",
        shapes=[{"n": 2000, "d": 30, "k": 4}, {"n": 10_000, "d": 64, "k": 4}],
        tiny={"n": 60, "d": 10, "k": 3},
        inputs=subspace_inputs,
        outputs=("codes",),
        truth=codes_truth,
        cost=pursue_cost,
        errors={"codes": codes_error},
        providers={
            "reference": Provider(partial(make_fastdc, "orthogonal_matching_pursuit", backend="reference")),
            "numba": Provider(partial(make_fastdc, "orthogonal_matching_pursuit", backend="numba"), devices=("cpu",)),
            # in float32 its residuals are about 1 % longer
            "scikit_learn": Provider(partial(make_plain, pursue_scikit_learn), devices=("cpu",), tolerance=2e-2),
        },
    ),
]
