"""Inputs and comparisons that the tests of the Student t room share."""

import torch

from fastdc.kernels._accuracy import assert_not_worse_than_torch
from fastdc.kernels.student_t import dec_loss

SHAPES = [(1, 1, 1), (7, 3, 5), (257, 10, 33), (320, 129, 64), (65, 20, 10), (300, 5, 17)]  # n, k, d
EXPONENTS = [(1.0, 2.0, 1.0), (2.5, 1.5, 0.5)]  # alpha, power, frequency_power
TARGETS = ["batch", "frequency", "given", "frozen"]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def name_shape(shape):
    return "N{}-K{}-D{}".format(*shape)


def make_points(n, k, d, dtype=torch.float32, offset=0.0, spread=0.7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(k, d, generator=generator) * 2
    rows = torch.randint(k, (n,), generator=generator)
    x = centers[rows] + torch.randn(n, d, generator=generator) * spread
    return (x + offset).to(dtype), (centers + offset).to(dtype)


def make_target(kind, x, centers, seed=1):
    generator = torch.Generator().manual_seed(seed)
    n, k = x.shape[0], centers.shape[0]
    frequency = torch.rand(k, generator=generator, dtype=torch.float64) + 0.1
    if kind == "frequency":
        return {"frequency": frequency}
    if kind == "given":
        return {"target": torch.rand(n, k, generator=generator).softmax(1).to(x.dtype)}
    if kind == "frozen":
        moved = x + 0.1 * torch.randn(x.shape, generator=generator).to(x.dtype)
        return {"target_x": moved, "target_centers": centers + 0.1, "frequency": frequency}
    return {}


def loss_and_gradients(x, centers, backend, **options):
    x, centers = x.detach().requires_grad_(), centers.detach().requires_grad_()
    loss = dec_loss(x, centers, backend=backend, **options)
    loss.backward()
    return loss.detach(), x.grad, centers.grad


def in_float64(options):
    return {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}


def check_loss(make_case, dtype=torch.float32, seeds=4):
    """Loss and both gradients of ``make_case(seed) -> x, centers, options`` against torch's, over several draws."""
    results = []
    for seed in range(seeds):
        x, centers, options = make_case(seed)
        truth = loss_and_gradients(x.double(), centers.double(), "reference", **in_float64(options))
        plain = loss_and_gradients(x, centers, "reference", **options)
        got = loss_and_gradients(x, centers, "numba", **options)
        results.append(list(zip(got, plain, truth)))
    for name, factor, cases in zip(("loss", "x", "centers"), (2, 3, 3), zip(*results)):
        assert_not_worse_than_torch(cases, factor=factor, dtype=dtype, name=name)
