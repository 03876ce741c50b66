"""Values and gradients of the GPU kernels; run by ``test_graph_triton.py`` in a process of its own.

With TRITON_INTERPRET=1 tensors stay on the CPU.
"""

import os

import pytest
import torch

from fastdc.kernels import _triton
from fastdc.kernels._accuracy import relative_error
from fastdc.kernels.graph import (
    Adjacency,
    EdgeList,
    heat_weights,
    laplacian_loss,
    neighbor_consistency_loss,
    propagate,
    triton_kernel,
)
from tests.graph_cases import DTYPES, check, make_graph, make_matrix, value_and_gradients
from tests.mutual_information_cases import make_logits, make_probabilities

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"

# the interpreter's numpy warns where a GPU is silent: logarithms of zero, and rows beyond the last
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture
def _small_tiles(monkeypatch):
    """Tiles that every loop goes round more than once."""
    monkeypatch.setattr(triton_kernel, "TILE", 16)
    monkeypatch.setattr(triton_kernel, "WIDEST", 4)
    monkeypatch.setattr(_triton, "WIDEST", 16)


def laplacian_case(shape, dtype, seed):
    z, edges, weights = make_graph(shape, dtype, seed, device=DEVICE)
    graph = EdgeList.prepare(edges, shape[0])
    return lambda z, w, backend: laplacian_loss(z, graph, w, backend=backend), (z, weights)


def propagate_case(shape, dtype, seed, **options):
    adjacency = Adjacency.prepare(make_matrix(shape[:2], seed=seed, device=DEVICE))
    x = make_logits(shape[1:], dtype, seed=seed, device=DEVICE)
    return lambda x, backend: propagate(adjacency, x, backend=backend, **options), (x,)


def consistency_case(shape, dtype, seed, from_logits):
    make = make_logits if from_logits else make_probabilities
    views = tuple(make(shape, dtype, seed=seed + v, device=DEVICE) for v in (0, 50))
    return lambda a, b, backend: neighbor_consistency_loss(a, b, from_logits=from_logits, backend=backend), views


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 0, 2), (40, 160, 10)], ids=str)
def test_laplacian_matches(shape):
    check(lambda seed: laplacian_case(shape, torch.float32, seed), torch.float32, "triton", seeds=2)


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (70, 10)], ids=str)
def test_consistency_matches(shape, from_logits):
    check(lambda seed: consistency_case(shape, torch.float32, seed, from_logits), torch.float32, "triton", seeds=2)


@pytest.mark.parametrize("shape", [(1, 1, 1), (30, 20, 10)], ids=str)
def test_propagate_matches(shape):
    check(lambda seed: propagate_case(shape, torch.float32, seed), torch.float32, "triton", seeds=2)


@pytest.mark.usefixtures("_small_tiles")
def test_small_tiles():
    check(lambda seed: laplacian_case((20, 120, 6), torch.float32, seed), torch.float32, "triton", seeds=2)
    check(lambda seed: propagate_case((20, 20, 6), torch.float32, seed, n_steps=2), torch.float32, "triton", seeds=2)
    for from_logits in (True, False):
        check(lambda s, f=from_logits: consistency_case((20, 40), torch.float32, s, f), torch.float32, "triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_stride(dtype):
    cases = [
        laplacian_case((20, 40, 6), dtype, 0),
        propagate_case((20, 20, 6), dtype, 0, n_steps=2),
        consistency_case((40, 6), dtype, 0, True),
    ]
    for function, (x, *rest) in cases:
        check(lambda _, f=function, leaves=(x, *rest): (f, leaves), dtype, "triton", seeds=1)
        wide = torch.zeros(2 * len(x), 12, dtype=dtype, device=DEVICE)
        wide[::2, ::2] = x
        contiguous = value_and_gradients(lambda *x, f=function: f(*x, "triton"), x, *rest)
        strided = value_and_gradients(lambda *x, f=function: f(*x, "triton"), wide[::2, ::2], *rest)
        assert all(torch.equal(a, b) for a, b in zip(contiguous, strided))


def test_forward_alone_and_heat_weights():
    z, edges, weights = make_graph((40, 160, 10), device=DEVICE)
    truth = laplacian_loss(z.double(), edges, weights, backend="reference")
    for w, t in ((weights, truth), (None, laplacian_loss(z.double(), edges, backend="reference"))):
        assert relative_error(laplacian_loss(z, edges, w, backend="triton"), t) < 1e-6
    got, expected = (heat_weights(z, edges, backend=b) for b in ("triton", "reference"))
    assert torch.allclose(got, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="edges must lie between 0 and 38"):
        laplacian_loss(z[:39], edges.clamp(min=39), backend="triton")


def test_gradcheck():
    function, leaves = laplacian_case((6, 12, 2), torch.float64, 0)
    assert torch.autograd.gradcheck(lambda *x: function(*x, "triton"), [x.requires_grad_() for x in leaves])
    for from_logits in (True, False):
        function, leaves = consistency_case((4, 3), torch.float64, 0, from_logits)
        leaves = [x.requires_grad_() for x in leaves]
        assert torch.autograd.gradcheck(lambda *x, f=function: f(*x, "triton"), leaves)


def test_masked_and_extreme_logits():
    a, b = (make_logits((70, 20), seed=s, device=DEVICE) for s in (0, 1))
    a[:, :17], b[:, :17] = -torch.inf, -torch.inf
    a[0], b[1, 18], a[2, 19], b[2, 18] = 6e4, 3e4, 1e4, 1e4
    results = [
        value_and_gradients(lambda a, b, k=k: neighbor_consistency_loss(a, b, from_logits=True, backend=k), a, b)
        for k in ("triton", "reference")
    ]
    for got, expected in zip(*results):
        assert bool(got.isfinite().all())
        assert torch.allclose(got, expected, rtol=1e-4, atol=5e-6)  # exponents of 2,000 know 1e-4, a row 1/70 of it
    p = torch.eye(2, device=DEVICE)
    assert 80 < neighbor_consistency_loss(p, p.flip(0), 0.0, backend="triton") < 110


def test_nan_shows_and_same_bits_again():
    z, edges, weights = make_graph((40, 160, 10), device=DEVICE)
    runs = [
        value_and_gradients(lambda z, w: laplacian_loss(z, edges, w, backend="triton"), z, weights) for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs))
    z[edges[0, 0], 9] = float("nan")
    assert laplacian_loss(z, edges, backend="triton").isnan()
    for from_logits, make in ((True, make_logits), (False, make_probabilities)):
        p = make((10, 5), device=DEVICE)
        p[7, 3] = float("nan")
        assert neighbor_consistency_loss(p, p.flip(0), 0.0, from_logits=from_logits, backend="triton").isnan()
