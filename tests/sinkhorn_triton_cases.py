"""Values of the GPU kernels of the Sinkhorn room; run by ``test_sinkhorn_triton.py`` in a process of its own."""

import math
import os

import pytest
import torch

from fastdc.kernels._accuracy import assert_not_worse_than_torch, relative_error
from fastdc.kernels.sinkhorn import (
    optimal_transport_labels,
    optimal_transport_loss,
    sinkhorn_assign,
    sinkhorn_assign_features,
    swapped_prediction_loss,
)
from tests.sinkhorn_cases import (
    DTYPES,
    exact_assign,
    loss_and_gradients,
    make_scores,
    make_views,
    name_shape,
    plain_assign,
    plain_swapped,
)

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
SHAPES = [(1, 1), (7, 3), (140, 150), (300, 20)]  # n_samples, n_prototypes

# the interpreter's numpy warns where a GPU is silent: logarithms of zero, and infinity less infinity
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def assign(scores, *options, **named):
    named = {name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in named.items()}
    return sinkhorn_assign(scores.to(DEVICE), *options, backend="triton", **named).cpu()


@pytest.mark.parametrize("shape", SHAPES, ids=name_shape)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches(shape, dtype):
    working = torch.float64 if dtype == torch.float64 else torch.float32
    scores = make_scores(*shape, dtype)
    got = assign(scores)
    assert got.dtype == working
    case = (got, plain_assign(scores.to(working)), exact_assign(scores))
    assert_not_worse_than_torch([case], factor=2, dtype=working)
    assert (got.sum(1) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("n_iters", [1, 5])
def test_marginals(n_iters):
    scores = make_scores(150, 30, torch.float64)
    options = {"row_marginal": torch.rand(150) + 0.1, "column_marginal": torch.rand(30) + 0.1}
    options["column_marginal"][3] = 0.0
    got = assign(scores, 0.1, n_iters, **options)
    expected = sinkhorn_assign(scores, 0.1, n_iters, **options, backend="reference")
    assert torch.allclose(got, expected, rtol=1e-9)
    assert (got[:, 3] == 0).all()


def test_tol():
    scores = make_scores(90, 12, torch.float64)
    error = [float((assign(scores, 0.2, n).mean(0) - 1 / 12).abs().sum()) for n in (4, 5)]
    stopped = assign(scores, 0.2, 50, tol=sum(error) / 2)
    assert torch.allclose(stopped, assign(scores, 0.2, 5), rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_T36_large_logits(dtype):
    scores = (torch.rand(100, 40) * 2 - 1).to(dtype)
    assert (assign(scores, 1e-3) - exact_assign(scores, 1e-3)).abs().max() < 1e-5
    scores = ((torch.rand(100, 40) * 2 - 1) * 1e4).to(dtype)
    q = assign(scores, 1e-3)
    assert bool(torch.isfinite(q).all())
    assert (q.sum(1) - 1).abs().max() < 1e-5


def test_T37_dead_prototypes_and_what_has_no_codes():
    scores = make_scores(50, 9)
    scores[:, 4] = -math.inf
    scores[8, :5] = -math.inf
    q = assign(scores)
    assert torch.allclose(q, sinkhorn_assign(scores, backend="reference"), atol=1e-6)
    assert (q[:, 4] == 0).all()
    for bad in (math.nan, math.inf):
        broken = scores.clone()
        broken[3, 1] = bad
        assert bool(assign(broken).isnan().any())
    scores[3] = -math.inf
    assert bool(assign(scores).isnan().any())


def test_strides_and_bits():
    scores = make_scores(140, 40)
    wide = torch.zeros(280, 80)
    wide[::2, ::2] = scores
    q = assign(scores)
    assert torch.equal(assign(wide[::2, ::2]), q)
    assert torch.equal(assign(scores.t().contiguous().t()), q)
    assert torch.equal(assign(scores), q)


def test_swapped_loss():
    tensors = make_views(60, 20, 12)
    got = loss_and_gradients(lambda *t: swapped_prediction_loss(*t, backend="triton"), *(t.to(DEVICE) for t in tensors))
    exact = loss_and_gradients(plain_swapped, *(t.double() for t in tensors))
    for a, b in zip(got, exact):
        assert relative_error(a.cpu(), b) < 1e-5


def test_queue():
    z1, z2, prototypes = (t.to(DEVICE) for t in make_views(40, 20, 12))
    queue = torch.stack(make_views(30, 20, 12, seed=3)[:2]).to(DEVICE)
    got, expected = (
        swapped_prediction_loss(z1, z2, prototypes, queue=queue, backend=backend) for backend in ("triton", "reference")
    )
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_transport_from_features(dtype):
    x, centers, prototypes = (t.to(DEVICE) for t in make_views(60, 20, 12, dtype))
    double = x.double(), prototypes.double()
    q = sinkhorn_assign_features(x, prototypes, backend="triton")
    assert relative_error(q, sinkhorn_assign_features(*double, backend="reference")) < 1e-5
    found = optimal_transport_labels(x, prototypes, backend="triton")
    expected = optimal_transport_labels(*double, backend="reference")
    assert torch.equal(found.labels, expected.labels)
    assert relative_error(found.confidence, expected.confidence) < 1e-5
    results = []
    for backend, tensors in (("triton", (x, centers)), ("reference", (x.double(), centers.double()))):
        leaves = [t.clone().requires_grad_() for t in tensors]
        loss = optimal_transport_loss(*leaves, 0.5, 5, tol=None, backend=backend)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    allowed = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 1e-5)
    for a, b in zip(*results):
        assert relative_error(a, b) < allowed
