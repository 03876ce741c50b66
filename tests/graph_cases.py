"""Inputs and comparisons that the tests of the graph room share."""

import torch

from fastdc.kernels._accuracy import assert_not_worse_than_torch, relative_error

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1, 1, 1), (5, 0, 2), (7, 20, 3), (100, 600, 10), (257, 1500, 33), (40, 300, 130)]  # nodes, edges, features


def make_graph(shape, dtype=torch.float32, seed=0, offset=0.0, device="cpu"):
    """(z, edges, weights): edges in no order, with repeated ones, self loops and nodes without any."""
    n, m, d = shape
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, generator=generator, dtype=torch.float64) + offset
    edges = (torch.rand(2, m, generator=generator) ** 2 * n).long()
    weights = torch.rand(m, generator=generator, dtype=torch.float64)
    return z.to(device, dtype), edges.to(device), weights.to(device, dtype)


def make_matrix(shape, dtype=torch.float32, seed=0, device="cpu"):
    """Sparse CSR (rows, columns) with some empty rows, values of either sign."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(shape, generator=generator, dtype=torch.float64)
    dense[torch.rand(shape, generator=generator) < 0.8] = 0.0
    dense[::7] = 0.0
    return dense.to(device, dtype).to_sparse_csr()


def value_and_gradients(function, *leaves):
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    value = function(*leaves)
    generator = torch.Generator().manual_seed(99)
    toward = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value) if value.ndim else None
    return value.detach(), *torch.autograd.grad(value, leaves, toward)


def check(make_case, dtype, backend, seeds=3):
    """Value and gradients of ``make_case(seed) -> function, leaves`` against those of torch, over several draws."""
    results = []
    for seed in range(seeds):
        function, leaves = make_case(seed)
        truth = value_and_gradients(lambda *x, f=function: f(*x, "reference"), *(leaf.double() for leaf in leaves))
        plain = value_and_gradients(lambda *x, f=function: f(*x, "reference"), *leaves)
        got = value_and_gradients(lambda *x, f=function: f(*x, backend), *leaves)
        assert [t.dtype for t in got] == [t.dtype for t in plain]
        results.append(list(zip(got, plain, truth)))
    for place, cases in enumerate(zip(*results)):
        if all(truth.numel() == 0 or bool((truth == 0).all()) for *_, truth in cases):
            assert all(bool((got == 0).all()) for got, *_ in cases)
        elif dtype == torch.float64:  # the truth has no more digits than what is tested
            assert max(relative_error(got, truth) for got, _, truth in cases) < 1e-13
        else:
            assert_not_worse_than_torch(cases, factor=3 if place else 2, dtype=dtype, name=f"result {place}")
