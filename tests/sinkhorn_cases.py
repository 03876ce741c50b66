"""Inputs and plain forms that the tests of the Sinkhorn room share."""

import numpy as np
import torch
from scipy.special import logsumexp

from fastdc.kernels.sinkhorn import swapped_prediction_loss

SHAPES = [(1, 1), (7, 3), (5, 40), (300, 77), (257, 1100), (1200, 64)]  # n_samples, n_prototypes
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def name_shape(shape):
    return "N{}-K{}".format(*shape)


def make_scores(n, k, dtype=torch.float32, spread=1.0, seed=0):
    """Cosines of random directions with some structure, times ``spread``."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.nn.functional.normalize(torch.randn(k, 16, generator=generator))
    near = prototypes[torch.randint(k, (n,), generator=generator)]
    x = torch.nn.functional.normalize(near + 0.3 * torch.randn(n, 16, generator=generator))
    return (x @ prototypes.T * spread).to(dtype)


def make_views(n, k, d, dtype=torch.float32, seed=0, noise=0.4):
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.nn.functional.normalize(torch.randn(k, d, generator=generator))
    near = prototypes[torch.randint(k, (n,), generator=generator)]
    views = [near + noise * torch.randn(n, d, generator=generator) for _ in range(2)]
    return tuple(t.to(dtype) for t in (*map(torch.nn.functional.normalize, views), prototypes))


def plain_assign(scores, epsilon=0.05, n_iters=3, row_marginal=None, column_marginal=None):
    """The log domain in plain torch, in the dtype of the scores."""
    n, k = scores.shape
    a = torch.full((n,), 1.0 / n).to(scores) if row_marginal is None else row_marginal.to(scores)
    b = torch.full((k,), 1.0 / k).to(scores) if column_marginal is None else column_marginal.to(scores)
    log_q, u = scores / epsilon, torch.zeros_like(a)
    for _ in range(n_iters):
        v = b.log() - (log_q + u[:, None]).logsumexp(0)
        u = a.log() - (log_q + v).logsumexp(1)
    return (log_q + v).softmax(1)


def exact_assign(scores, epsilon=0.05, n_iters=3):
    """float64 numpy, by SciPy's logsumexp."""
    log_q = scores.double().numpy() / epsilon
    n, k = log_q.shape
    u = np.zeros(n)
    for _ in range(n_iters):
        v = -np.log(k) - logsumexp(log_q + u[:, None], axis=0)
        u = -np.log(n) - logsumexp(log_q + v, axis=1)
    return torch.from_numpy(np.exp(log_q + u[:, None] + v) * n)


def swav_assign(scores, epsilon=0.05, n_iters=3):
    """The exponential without a shift, as SwAV computes its codes."""
    q = (scores / epsilon).exp().T
    q = q / q.sum()
    for _ in range(n_iters):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def plain_swapped(z1, z2, prototypes, temperature=0.1, epsilon=0.05, n_iters=3):
    """The loss in plain torch, in the dtype of the inputs."""
    s1, s2 = z1 @ prototypes.T, z2 @ prototypes.T
    q1, q2 = (plain_assign(s.detach(), epsilon, n_iters) for s in (s1, s2))
    p1, p2 = ((s / temperature).log_softmax(1) for s in (s1, s2))
    return -((q2 * p1).sum(1) + (q1 * p2).sum(1)).mean() / 2


def loss_and_gradients(function, *tensors, **options):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    loss = function(*leaves, **options)
    loss.backward()
    return loss.detach(), *(leaf.grad for leaf in leaves)


def fused(backend):
    return lambda *tensors, **options: swapped_prediction_loss(*tensors, backend=backend, **options)


def held_plan(x, centers, epsilon, n_iters, a=None, b=None):
    """POT's ``sinkhorn_log`` written out: float64 numpy."""
    cost = np.square(x.double().numpy()[:, None] - centers.double().numpy()).sum(2)
    a = np.full(len(x), 1 / len(x)) if a is None else (a.double() / a.double().sum()).numpy()
    b = np.full(len(centers), 1 / len(centers)) if b is None else (b.double() / b.double().sum()).numpy()
    u = np.zeros(len(x))
    for _ in range(n_iters):
        v = np.log(b) - logsumexp(u[:, None] - cost / epsilon, axis=0)
        u = np.log(a) - logsumexp(v - cost / epsilon, axis=1)
    return np.exp(u[:, None] + v - cost / epsilon), cost
