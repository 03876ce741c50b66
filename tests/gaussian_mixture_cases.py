"""Inputs and comparisons that the tests of the Gaussian mixture room share."""

import torch

from fastdc.kernels._accuracy import assert_not_worse_than_torch, relative_error
from fastdc.kernels.gaussian_mixture import gmm_log_density, gmm_responsibilities, gmm_step, vade_loss

KINDS = ["diag", "spherical", "tied", "full"]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1, 1, 1), (7, 3, 2), (64, 4, 16), (150, 33, 5), (200, 5, 37)]  # n_samples, n_components, n_features
LEAVES = ("z", "mu", "log_var", "means", "log_vars", "logits")


def make_mixture(n, k, d, kind, dtype=torch.float32, seed=0, offset=0.0):
    """x, means, covariances, weights."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    means = 3.0 / d**0.5 * normal(k, d)
    x = means[torch.randint(k, (n,), generator=generator)] + normal(n, d)
    root = normal(k, d, d) / d**0.5
    full = root @ root.mT + 0.5 * torch.eye(d, dtype=torch.float64)
    covariances = {
        "full": full,
        "tied": full[0],
        "diag": full.diagonal(dim1=1, dim2=2),
        "spherical": full[:, 0, 0],
    }[kind]
    weights = normal(k).softmax(0)
    return [t.clone().to(dtype) for t in (x + offset, means + offset, covariances, weights)]


def double(tensors):
    return [t.double() for t in tensors]


def everything(mixture, kind, backend, sample_weight=None):
    """All results of the three ops by name."""
    responsibilities, log_density = gmm_responsibilities(*mixture, kind, backend=backend)
    other, labels = gmm_log_density(*mixture, kind, backend=backend)
    assert torch.allclose(log_density, other, rtol=0, atol=0, equal_nan=True)
    step = gmm_step(*mixture, kind, sample_weight=sample_weight, backend=backend)
    return {"responsibilities": responsibilities, "log_density": log_density, "labels": labels, **step._asdict()}


def check_mixture_ops(backend, shape, kind, dtype, seeds=3):
    """Every result against those of torch in the same dtype, over several draws."""
    working = torch.float64 if dtype == torch.float64 else torch.float32
    results = []
    for seed in range(seeds):
        mixture = make_mixture(*shape, kind, dtype, seed)
        weight = torch.rand(shape[0], generator=torch.Generator().manual_seed(seed)) + 0.1
        got, plain = (everything(mixture, kind, b, weight) for b in (backend, "reference"))
        truth = everything(double(mixture), kind, "reference", weight)
        assert got["responsibilities"].dtype == got["log_density"].dtype == working
        assert got["counts"].dtype == got["sums"].dtype == got["scatters"].dtype == torch.float64
        assert got["n_invalid"] == 0
        likely = truth["responsibilities"].gather(1, got["labels"][:, None])[:, 0]
        assert (likely >= truth["responsibilities"].amax(1) - 1e-4).all()
        results.append((got, plain, truth))
    for name in ("responsibilities", "log_density", "log_likelihood", "counts", "sums", "scatters"):
        cases = [tuple(result[name] for result in triple) for triple in results]
        if dtype == torch.float64:  # the truth has no more digits than what is tested
            assert max(relative_error(got, truth) for got, _, truth in cases) < 1e-12, name
        else:
            assert_not_worse_than_torch(cases, factor=2, dtype=working, name=f"{kind} {name}")


def make_latent(n, k, d, dtype=torch.float32, seed=0, offset=0.0):
    """z, mu, log_var, means, log_vars, logits."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    means, log_vars = 3.0 / d**0.5 * normal(k, d) + offset, 0.5 * normal(k, d)
    mu, log_var = means[torch.randint(k, (n,), generator=generator)] + normal(n, d), normal(n, d) - 1.0
    z = mu + (log_var / 2).exp() * normal(n, d)
    return [t.to(dtype) for t in (z, mu, log_var, means, log_vars, normal(k))]


def loss_and_gradients(tensors, **options):
    """The loss, and its gradients to all six tensors."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    loss = vade_loss(*leaves, **options)
    return [loss.detach(), *torch.autograd.grad(loss, leaves, materialize_grads=True)]


def check_vade(backend, shape, dtype, detached, seeds=3):
    """Loss and gradients against those of torch in the same dtype, over several draws."""
    results = []
    for seed in range(seeds):
        tensors = make_latent(*shape, dtype, seed)
        options = {"detach_responsibilities": detached}
        got, plain = (loss_and_gradients(tensors, **options, backend=b) for b in (backend, "reference"))
        truth = loss_and_gradients(double(tensors), **options, backend="reference")
        assert [t.dtype for t in got] == [t.dtype for t in plain]
        results.append(list(zip(got, plain, truth)))
    for name, cases in zip(("loss", *LEAVES), zip(*results)):
        if all(bool((truth.abs() < 1e-12).all()) for *_, truth in cases):  # nothing to be relative to
            assert all(bool(got.abs().max() < 1e-6) for got, *_ in cases), name
        elif dtype == torch.float64:
            assert max(relative_error(got, truth) for got, _, truth in cases) < 1e-12, name
        else:
            assert_not_worse_than_torch(cases, factor=2 if name == "loss" else 3, dtype=dtype, name=name)
