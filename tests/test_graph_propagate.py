"""Propagation over a sparse matrix, on CPUs; Triton's kernels have a file of their own."""

import numpy as np
import pytest
import torch

from fastdc.kernels import BackendError
from fastdc.kernels._accuracy import relative_error
from fastdc.kernels.graph import Adjacency, custom_ops, propagate
from tests.graph_cases import DTYPES, check, make_matrix, value_and_gradients

BACKENDS = ["reference", "numba"]
SHAPES = [(1, 1, 1), (8, 5, 3), (40, 70, 10), (200, 150, 33), (30, 90, 130)]  # rows, columns, features


def make_case(shape, dtype, seed, **options):
    rows, columns, d = shape
    adjacency = Adjacency.prepare(make_matrix((rows, columns), seed=seed))
    x = torch.randn(columns, d, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return lambda x, backend: propagate(adjacency, x, backend=backend, **options), (x,)


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    adjacency = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0], [0.0, 0.0, 0.0]]).to_sparse_csr()
    x = torch.tensor([[1.0], [10.0], [100.0]], requires_grad=True)
    y = propagate(adjacency, x, backend=backend)
    y.sum().backward()
    assert torch.equal(y, torch.tensor([[20.0], [301.0], [0.0]]))
    assert torch.equal(x.grad, torch.tensor([[1.0], [2.0], [3.0]]))
    assert torch.equal(propagate(adjacency, x, 2, backend=backend), torch.tensor([[602.0], [20.0], [0.0]]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize("normalize", [None, "symmetric", "row"])
@pytest.mark.parametrize("n_steps", [1, 2, 5])
def test_is_the_dense_formula(backend, self_loops, normalize, n_steps):
    matrix = make_matrix((50, 50), torch.float64)
    matrix = matrix.to_dense().abs().to_sparse_csr()
    dense = matrix.to_dense() + (torch.eye(50) if self_loops else 0.0)
    degrees = dense.sum(1)
    if normalize == "symmetric":
        scale = torch.where(degrees > 0, degrees.pow(-0.5), 0.0)
        dense = scale[:, None] * dense * scale
    elif normalize == "row":
        dense = torch.where(degrees[:, None] > 0, dense / degrees[:, None], 0.0)
    x = torch.randn(50, 4, dtype=torch.float64)
    options = {"normalize": normalize, "self_loops": self_loops, "backend": backend}
    got = value_and_gradients(lambda x: propagate(matrix, x, n_steps, **options), x)
    expected = value_and_gradients(lambda x: torch.linalg.matrix_power(dense, n_steps) @ x, x)
    assert all(torch.allclose(a, b, rtol=1e-11, atol=1e-12) for a, b in zip(got, expected))


def test_is_gcns_rule():
    """The matrix of Kipf and Welling's renormalisation, with the row sums of A + I."""
    dense = torch.zeros(30, 30, dtype=torch.float64)
    edges = torch.randint(30, (2, 60))
    dense[edges[0], edges[1]] = dense[edges[1], edges[0]] = 1.0
    dense.fill_diagonal_(0.0)
    renormalised = dense + torch.eye(30)
    inverse = renormalised.sum(1).rsqrt().diag().double()
    x = torch.randn(30, 3, dtype=torch.float64)
    got = propagate(dense.to_sparse_csr(), x, normalize="symmetric", self_loops=True)
    assert torch.allclose(got, inverse @ renormalised @ inverse @ x, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches(shape, dtype):
    check(lambda seed: make_case(shape, dtype, seed), dtype, "numba")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_steps_match(dtype):
    check(lambda seed: make_case((60, 60, 6), dtype, seed, n_steps=3), dtype, "numba")


def test_float64_values_and_half_rows():
    matrix = make_matrix((40, 40), torch.float64)
    x = torch.randn(40, 5)
    assert propagate(matrix, x.double()).dtype == torch.float64
    assert propagate(matrix, x.half()).dtype == torch.float16
    half = make_matrix((40, 40), torch.float16)
    assert relative_error(propagate(half, x), half.to_dense().double() @ x.double()) < 1e-6


def test_T44_same_bits_for_any_number_of_threads(n_threads, set_threads):
    function, (x,) = make_case((3000, 3000, 5), torch.float32, 0, n_steps=2)
    set_threads(1)
    one = value_and_gradients(lambda x: function(x, "numba"), x)
    set_threads(n_threads)
    assert all(torch.equal(a, b) for a, b in zip(one, value_and_gradients(lambda x: function(x, "numba"), x)))


def test_T20_strides():
    function, (x,) = make_case((40, 70, 10), torch.float32, 0)
    wide = torch.zeros(140, 20)
    wide[::2, ::2] = x
    for other in (wide[::2, ::2], x.T.contiguous().T):
        assert torch.equal(function(other, "numba"), function(x, "numba"))
    copy = x.clone()
    function(x, "numba")
    assert torch.equal(x, copy)


def test_int32_indices_and_repeated_calls():
    matrix = make_matrix((40, 40))
    narrow = torch.sparse_csr_tensor(
        matrix.crow_indices().int(), matrix.col_indices().int(), matrix.values(), (40, 40), check_invariants=True
    )
    x = torch.randn(40, 3)
    expected = propagate(matrix, x)
    assert torch.equal(propagate(narrow, x), expected)
    prepared = Adjacency.prepare(matrix)
    assert prepared.shape == (40, 40)
    assert torch.equal(propagate(prepared, x), expected)
    assert torch.equal(propagate(prepared, x), expected)


def test_an_empty_matrix_and_nan():
    empty = torch.zeros(4, 3).to_sparse_csr()
    value, gradient = value_and_gradients(lambda x: propagate(empty, x), torch.ones(3, 2))
    assert torch.equal(value, torch.zeros(4, 2))
    assert torch.equal(gradient, torch.zeros(3, 2))
    x = torch.ones(4, 9)
    x[2, 8] = float("nan")
    y = propagate(torch.eye(4).to_sparse_csr(), x)
    assert y[2, 8].isnan()
    assert int(y.isnan().sum()) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_of_any_order(backend):
    function, (x,) = make_case((6, 6, 2), torch.float64, 0, n_steps=2)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: function(x, backend), (x,))
    assert torch.autograd.gradgradcheck(lambda x: function(x, backend).square(), (x,))


def test_transforms_without_a_rule_raise():
    function, (x,) = make_case((6, 6, 2), torch.float32, 0)
    with pytest.raises(NotImplementedError, match="propagate has no rule"):
        torch.func.jvp(lambda x: function(x, "numba"), (x,), (x,))


def test_opcheck():
    prepared = Adjacency.prepare(make_matrix((40, 70)))
    x = torch.randn(70, 5, requires_grad=True)
    torch.library.opcheck(custom_ops.PROPAGATE["numba"], (x, *prepared, 1))


def test_compiles_into_one_graph():
    function, (x,) = make_case((50, 50, 5), torch.float32, 0, n_steps=2)
    layer = lambda x: function(x * 1.0, None).relu()  # noqa: E731
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    got, expected = value_and_gradients(compiled, x), value_and_gradients(layer, x)
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


def test_T25_inference_mode():
    with torch.inference_mode():
        assert propagate(make_matrix((40, 40)), torch.randn(40, 3)).isfinite().all()


MATRIX, X = torch.ones(3, 2).to_sparse_csr(), torch.zeros(2, 4)
OUTSIDE = torch.sparse_csr_tensor(
    torch.tensor([0, 1, 1]), torch.tensor([5]), torch.ones(1), (2, 2), check_invariants=False
)
BAD = [
    (lambda: propagate(np.eye(2), X), TypeError, "adjacency must be a torch.Tensor, got ndarray"),
    (
        lambda: propagate(torch.eye(2), X),
        TypeError,
        r"adjacency must have layout torch.sparse_csr, got torch.strided; convert it with adjacency.to_sparse_csr\(\)",
    ),
    (lambda: propagate(MATRIX, X[0]), ValueError, "x must be 2-D"),
    (lambda: propagate(MATRIX, X[:1]), ValueError, "adjacency has 2 columns but x has 1 rows; both must be the nodes"),
    (lambda: propagate(Adjacency.prepare(MATRIX), X[:1]), ValueError, "adjacency has 2 columns but x has 1 rows"),
    (lambda: propagate(MATRIX, X, 2), ValueError, r"n_steps = 2 needs a square adjacency, got shape \(3, 2\)"),
    (lambda: propagate(MATRIX, X, 0), ValueError, "n_steps must be at least 1, got 0"),
    (lambda: propagate(MATRIX, X, 1.0), TypeError, "n_steps must be an int, got 1.0"),
    (lambda: propagate(MATRIX, X, True), TypeError, "n_steps must be an int, got True"),
    (
        lambda: propagate(MATRIX, X, normalize="sym"),
        ValueError,
        r"normalize must be one of \(None, 'symmetric', 'row'\), got 'sym'",
    ),
    (lambda: propagate(MATRIX, X, self_loops=True), ValueError, r"adjacency has shape \(3, 2\); self loops and"),
    (
        lambda: propagate(Adjacency.prepare(MATRIX), X, normalize="row"),
        ValueError,
        r"normalize and self_loops belong into Adjacency.prepare\(\)",
    ),
    (
        lambda: propagate(OUTSIDE, X),
        ValueError,
        "columns of adjacency must lie between 0 and 1, the numbers of the 2 nodes, got 5",
    ),
    (lambda: propagate(MATRIX.to(torch.complex64), X), TypeError, "adjacency must hold float32, .*got torch.complex64"),
    (lambda: propagate(MATRIX, X, backend="triton"), BackendError, "triton kernels need GPU tensors"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
