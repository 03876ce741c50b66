"""One iteration of EM of a diagonal Gaussian mixture, and the loss of VaDE with all its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench._harness import Bench, Cost, Inputs, Provider, Rows, make_compiled, make_plain

STEP_SHAPES = [{"n": 1_000_000, "k": 32, "d": 16}, {"n": 200_000, "k": 100, "d": 64}]
LOSS_SHAPES = [{"n": 65_536, "k": 10, "d": 10}, {"n": 1024, "k": 10, "d": 10}, {"n": 8192, "k": 50, "d": 32}]
LEAVES = ("z", "mu", "log_var", "means", "log_vars", "logits")
REG_COVAR = 1e-6
CHUNK = 20_000  # rows of the truth at a time
LOG_2_PI = math.log(2.0 * math.pi)


def make_iteration(backend: str | None = None) -> Callable[..., tuple[Tensor, ...]]:
    from fastdc.kernels.gaussian_mixture import gmm_step, gmm_update

    def iteration(x: Tensor, means: Tensor, covariances: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        step = gmm_step(x, means, covariances, weights, backend=backend)
        return step.log_likelihood, *gmm_update(step, means, covariances, reg_covar=REG_COVAR)

    return iteration


def make_loss(backend: str | None = None) -> Callable[..., Tensor]:
    from fastdc.kernels.gaussian_mixture import vade_loss

    return partial(vade_loss, backend=backend)


def make_scikit_learn() -> Callable[..., tuple[Any, ...]]:
    from sklearn.mixture import GaussianMixture

    def iteration(x: Any, means: Any, covariances: Any, weights: Any) -> tuple[Any, ...]:
        model = GaussianMixture(len(means), covariance_type="diag", reg_covar=REG_COVAR)
        model.means_, model.covariances_, model.weights_ = means, covariances, weights
        model.precisions_cholesky_ = covariances**-0.5
        bound, log_responsibilities = model._e_step(x)
        model._m_step(x, log_responsibilities)
        return float(bound) * len(x), model.means_, model.covariances_, model.weights_

    return iteration


def as_numpy(inputs: Inputs) -> Inputs:
    return {name: value.numpy() for name, value in inputs.items()}


# --- inputs and plain torch


def mixture_inputs(*, n: int, k: int, d: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    """Rows of a mixture of unit variance, and a start from k of them."""
    generator = torch.Generator().manual_seed(seed)
    centers = 3.0 * torch.randn(k, d, generator=generator)
    x = centers[torch.randint(k, (n,), generator=generator)] + torch.randn(n, d, generator=generator)
    inputs = {"x": x, "means": x[:k].clone(), "covariances": torch.full((k, d), 2.0), "weights": torch.ones(k) / k}
    return {name: value.to(device, dtype) for name, value in inputs.items()}


def latent_inputs(*, n: int, k: int, d: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    """What an encoder of clustered data gives, and a mixture near it."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    means, log_var = 3.0 / d**0.5 * normal(k, d), normal(n, d) / 2 - 1.0
    mu = means[torch.randint(k, (n,), generator=generator)] + normal(n, d)
    z = mu + (log_var / 2).exp() * normal(n, d)
    tensors = (z, mu, log_var, means, normal(k, d) / 2, normal(k))
    return {name: value.to(device, dtype) for name, value in zip(LEAVES, tensors)}


def em_sums(x: Tensor, means: Tensor, covariances: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    """Log-likelihood, and the sums of responsibilities, weighted rows and weighted squares, by products."""
    precisions = covariances.reciprocal()
    norm = weights.log() + (precisions.log() - LOG_2_PI - means.square() * precisions).sum(1) / 2
    log_joint = norm + x @ (means * precisions).T - x.square() @ precisions.T / 2
    log_density = log_joint.logsumexp(1, keepdim=True)
    gamma = (log_joint - log_density).exp()
    return log_density.sum(), gamma.sum(0), gamma.T @ x, gamma.T @ x.square()


def em_update(log_likelihood: Tensor, counts: Tensor, sums: Tensor, squares: Tensor) -> tuple[Tensor, ...]:
    means = sums / counts[:, None]
    return log_likelihood, means, squares / counts[:, None] - means.square() + REG_COVAR, counts / counts.sum()


def em_eager(x: Tensor, means: Tensor, covariances: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    return em_update(*em_sums(x, means, covariances, weights))


def vade_broadcast(z: Tensor, mu: Tensor, log_var: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor) -> Tensor:
    """The form of the papers' codes: n x k x d."""
    log_weights, precisions = logits.log_softmax(0), (-log_vars).exp()
    sq_dists = ((z[:, None] - means).square() * precisions).sum(2)
    log_gamma = (log_weights - (log_vars.sum(1) + sq_dists) / 2).log_softmax(1)
    spread = (mu[:, None] - means).square() + log_var.exp()[:, None]
    expected = (log_vars + spread * precisions).sum(2) / 2
    return (log_gamma.exp() * (expected - log_weights + log_gamma)).sum(1).mean() - (1 + log_var).sum(1).mean() / 2


def vade_product(z: Tensor, mu: Tensor, log_var: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor) -> Tensor:
    """The same by products, which lose digits: n x k."""
    log_weights, precisions = logits.log_softmax(0), (-log_vars).exp()
    scaled = means * precisions
    norm = log_vars.sum(1) + (means * scaled).sum(1)
    log_gamma = (log_weights - norm / 2 + z @ scaled.T - z.square() @ precisions.T / 2).log_softmax(1)
    expected = norm / 2 - mu @ scaled.T + (mu.square() + log_var.exp()) @ precisions.T / 2
    return (log_gamma.exp() * (expected - log_weights + log_gamma)).sum(1).mean() - (1 + log_var).sum(1).mean() / 2


# --- truth and cost


def step_truth(inputs: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
    x, *parameters = (value.double() for value in inputs.values())
    chunks = [em_sums(rows, *parameters) for rows in x.split(CHUNK)]
    result = em_update(*(torch.stack(parts).sum(0) for parts in zip(*chunks)))
    return dict(zip(("log_likelihood", "means", "covariances", "weights"), result))


def loss_truth(inputs: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
    leaves = [inputs[name].detach().double().requires_grad_(gradients) for name in LEAVES]
    loss = vade_broadcast(*leaves)
    results: dict[str, Tensor | Rows] = {"loss": loss.detach()}
    if gradients:
        results |= {f"grad_{name}": grad for name, grad in zip(LEAVES, torch.autograd.grad(loss, leaves))}
    return results


def step_cost(*, n: int, k: int, d: int, itemsize: int, mode: str) -> Cost:
    """Distances and weighted sums, each a product of the rows and their squares; the rows are read once."""
    return Cost(flops=8.0 * n * k * d, bytes_moved=float(n * d * itemsize))


def loss_cost(*, n: int, k: int, d: int, itemsize: int, mode: str) -> Cost:
    """Four products forward, eight backward; three matrices are read, three gradients written."""
    products = {"forward": 4, "backward": 8, "both": 12}[mode]
    matrices = {"forward": 3, "backward": 3, "both": 6}[mode]
    return Cost(flops=2.0 * products * n * k * d, bytes_moved=float(matrices * n * d * itemsize))


def product_bytes(*, n: int, k: int, d: int, itemsize: int) -> int:
    return 6 * n * k * itemsize


def broadcast_bytes(*, n: int, k: int, d: int, itemsize: int) -> int:
    """Six intermediates at the peak of the backward pass."""
    return 6 * n * k * d * itemsize


BENCHES = [
    Bench(
        op="gmm_step",
        shapes=STEP_SHAPES,
        tiny={"n": 200, "k": 4, "d": 3},
        inputs=mixture_inputs,
        outputs=("log_likelihood", "means", "covariances", "weights"),
        truth=step_truth,
        cost=step_cost,
        providers={
            "reference": Provider(partial(make_iteration, "reference"), lambda **s: 4 * broadcast_bytes(**s)),
            "numba": Provider(partial(make_iteration, "numba"), devices=("cpu",)),
            "triton": Provider(partial(make_iteration, "triton"), devices=("cuda",)),
            "eager_product": Provider(partial(make_plain, em_eager), product_bytes, tolerance=1e-2),
            "torch_compile_product": Provider(
                partial(make_compiled, em_eager), product_bytes, compiles_each_shape=True, tolerance=1e-2
            ),
            "scikit_learn": Provider(
                make_scikit_learn, product_bytes, devices=("cpu",), prepare=as_numpy, tolerance=1e-2
            ),
        },
    ),
    Bench(
        op="vade_loss",
        shapes=LOSS_SHAPES,
        tiny={"n": 60, "k": 4, "d": 3},
        inputs=latent_inputs,
        outputs=("loss",),
        gradients=LEAVES,
        truth=loss_truth,
        cost=loss_cost,
        providers={
            "reference": Provider(partial(make_loss, "reference"), broadcast_bytes),
            "numba": Provider(partial(make_loss, "numba"), devices=("cpu",)),
            "triton": Provider(partial(make_loss, "triton"), devices=("cuda",)),
            "eager": Provider(partial(make_plain, vade_broadcast), broadcast_bytes),
            "torch_compile": Provider(partial(make_compiled, vade_broadcast), product_bytes, compiles_each_shape=True),
            "eager_product": Provider(partial(make_plain, vade_product), product_bytes, tolerance=1e-2),
            "torch_compile_product": Provider(
                partial(make_compiled, vade_product), product_bytes, compiles_each_shape=True, tolerance=1e-2
            ),
        },
    ),
]
