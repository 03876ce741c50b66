"""Inputs and plain forms that the tests of the pairwise room share."""

import torch

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def make_clusters(n, d, k, dtype=torch.float32, seed=0, offset=0.0, spread=1.0):
    """Rows around k points, and their labels; every label has a row where n >= k."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(k, (n,), generator=generator)
    labels[: min(n, k)] = torch.arange(min(n, k))
    centers = 2 * torch.randn(k, d, generator=generator)
    x = offset + centers[labels] + spread * torch.randn(n, d, generator=generator)
    return x.to(dtype), labels


def working(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def plain_silhouette(x, labels, k):
    """In the dtype of x, as the docstring has it."""
    one_hot = torch.nn.functional.one_hot(labels, k)
    own, counts = one_hot.bool(), one_hot.sum(0)
    dists = (x[:, None] - x).square().sum(2).sqrt()
    sums = dists @ one_hot.to(dists)
    a, b = sums[own] / (counts[labels] - 1), (sums / counts).masked_fill(own, torch.inf).amin(1)
    return torch.where(counts[labels] == 1, 0.0, (b - a) / torch.maximum(a, b))


def loss_and_gradient(function, x, *arguments, **options):
    leaf = x.detach().clone().requires_grad_()
    loss = function(leaf, *arguments, **options)
    loss.backward()
    return loss.detach(), leaf.grad
