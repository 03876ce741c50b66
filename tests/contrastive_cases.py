"""Inputs and plain forms that the tests of the contrastive room share."""

import torch
from torch.nn.functional import cross_entropy

from fastdc.kernels.contrastive import info_nce, nt_xent, sup_con

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def unit(x, normalize=True):
    return torch.nn.functional.normalize(x, dim=1) if normalize else x


def plain_nt_xent(z1, z2, temperature=0.5, normalize=True):
    z = unit(torch.cat([z1, z2]), normalize)
    scores = (z @ z.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    return cross_entropy(scores, torch.arange(len(z)).roll(len(z1)))


def plain_info_nce(queries, keys, extra_keys=None, temperature=0.1, symmetric=True, normalize=True):
    q, k, own = unit(queries, normalize), unit(keys, normalize), torch.arange(len(queries))
    every = k if extra_keys is None else torch.cat([k, unit(extra_keys, normalize)])
    scores = q @ every.T / temperature
    loss = cross_entropy(scores, own)
    return (loss + cross_entropy(scores[:, : len(q)].T, own)) / 2 if symmetric else loss


def plain_sup_con(z, labels, temperature=0.1, normalize=True):
    z = unit(z, normalize)
    scores, own = z @ z.T / temperature, torch.eye(len(z), dtype=torch.bool)
    log_p = scores - scores.masked_fill(own, -torch.inf).logsumexp(1, keepdim=True)
    positive = (labels[:, None] == labels) & ~own
    return -((positive * log_p).sum(1) / positive.sum(1).clamp(min=1)).mean()


def _nt_xent(*tensors, **options):
    return nt_xent(*tensors, **options)


def _info_nce(queries, keys, extra_keys=None, **options):
    return info_nce(queries, keys, extra_keys=extra_keys, **options)


LOSSES = {
    "nt_xent": (nt_xent, plain_nt_xent),
    "info_nce": (_info_nce, plain_info_nce),
    "sup_con": (sup_con, plain_sup_con),
}


def make_views(n, d, dtype=torch.float32, seed=0, spread=1.0, n_views=2):
    """Views of n points: ``spread`` is how far they are from the point itself."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, d, generator=generator)
    return [(points + spread * torch.randn(n, d, generator=generator)).to(dtype) for _ in range(n_views)]


def make_inputs(name, n, d, dtype=torch.float32, seed=0, spread=1.0):
    """(tensors with gradients, constants) of a loss."""
    views = make_views(n, d, dtype, seed, spread, n_views=3)
    if name == "sup_con":
        return [torch.cat(views[:2])], [torch.arange(2 * n) % max(1, n // 3) - 5]
    return (views if name == "info_nce" else views[:2]), []


def loss_and_gradients(function, tensors, constants=(), **options):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    loss = function(*leaves, *constants, **options)
    loss.backward()
    return loss.detach(), *(leaf.grad for leaf in leaves)
