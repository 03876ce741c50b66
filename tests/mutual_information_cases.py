"""Inputs and comparisons that the tests of the mutual information room share."""

import torch

from fastdc.kernels._accuracy import assert_not_worse_than_torch, relative_error
from fastdc.kernels.mutual_information import conditional_entropy, marginal_entropy, rim_loss, vat_kl

SHAPES = [(1, 1), (7, 3), (64, 16), (257, 10), (3, 130, 37), (2, 70, 300)]  # (heads,) rows, clusters
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
OF_LOGITS = {
    "conditional": lambda x, backend: conditional_entropy(x, from_logits=True, backend=backend),
    "marginal": lambda x, backend: marginal_entropy(x, from_logits=True, backend=backend),
    "rim": lambda x, backend: rim_loss(x, 2.0, backend=backend),
}
OF_PROBABILITIES = {
    "conditional": lambda p, backend: conditional_entropy(p, backend=backend),
    "marginal": lambda p, backend: marginal_entropy(p, backend=backend),
}


def make_logits(shape, dtype=torch.float32, spread=3.0, offset=0.0, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * spread + offset).to(device, dtype)


def make_probabilities(shape, dtype=torch.float32, seed=0, device="cpu"):
    return make_logits(shape, torch.float64, seed=seed, device=device).softmax(-1).to(dtype)


def value_and_gradient(function, x, *others):
    x = x.detach().requires_grad_()
    value = function(x, *others)
    value.sum().backward()
    return value.detach(), x.grad


def vat(logits):
    """vat_kl as a function of the perturbed logits and the backend."""
    return lambda x, backend: vat_kl(logits.to(x.dtype), x, backend=backend)


def check(backend, make_case, dtype, seeds=4):
    """Value and gradient of ``make_case(seed) -> function, x`` against those of torch, over several draws."""
    results = []
    for seed in range(seeds):
        function, x = make_case(seed)
        truth = value_and_gradient(function, x.double(), "reference")
        plain = value_and_gradient(function, x, "reference")
        got = value_and_gradient(function, x, backend)
        assert [t.dtype for t in got] == [t.dtype for t in plain]
        results.append(list(zip(got, plain, truth)))
    for name, factor, cases in zip(("value", "gradient"), (2, 3), zip(*results)):
        if all(bool((truth == 0).all()) for *_, truth in cases):  # one cluster: nothing to be relative to
            assert all(bool(got.abs().max() < 1e-6) for got, *_ in cases), name
        elif dtype == torch.float64:  # the truth has no more digits than what is tested
            assert max(relative_error(got, truth) for got, _, truth in cases) < 1e-13, name
        else:
            assert_not_worse_than_torch(cases, factor=factor, dtype=dtype, name=name)
