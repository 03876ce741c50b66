"""Losses over the edges of a graph, on CPUs; Triton's kernels have a file of their own."""

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.csgraph
import torch

import fastdc
from fastdc.kernels import BackendError
from fastdc.kernels._accuracy import relative_error
from fastdc.kernels.graph import EdgeList, custom_ops, heat_weights, laplacian_loss, locality_preserving_loss
from fastdc.kernels.graph.edges import bucket_edges, bucket_edges_by_sorting, index_dtype
from fastdc.losses import LaplacianLoss, LocalityPreservingLoss
from tests.graph_cases import DTYPES, SHAPES, check, make_graph, value_and_gradients

BACKENDS = ["reference", "numba"]


def loss_of(edges):
    """laplacian_loss as a function of z, the weights and the backend."""
    return lambda z, weights, backend: laplacian_loss(z, edges, weights, backend=backend)


# --- by hand, and by independent formulas


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    z = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0]], requires_grad=True)
    edges, weights = torch.tensor([[0, 1, 1], [1, 2, 0]]), torch.tensor([1.0, 0.5, 2.0], requires_grad=True)
    loss = laplacian_loss(z, edges, weights, backend=backend)
    loss.backward()
    assert loss.item() == 25.0 + 8.0 + 50.0
    assert torch.equal(z.grad, torch.tensor([[-18.0, -24.0], [18.0, 28.0], [0.0, -4.0]]))
    assert torch.equal(weights.grad, torch.tensor([25.0, 16.0, 25.0]))
    assert laplacian_loss(z, edges, reduction="mean", backend=backend).item() == pytest.approx(66.0 / 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_quadratic_form_of_the_laplacian(backend):
    """With both directions listed it is 2 tr(Z' L Z): no hidden half, no division."""
    z, edges, weights = make_graph((60, 300, 4), torch.float64)
    matrix = scipy.sparse.coo_array((weights.numpy(), edges.numpy()), (60, 60)).toarray()
    laplacian = scipy.sparse.csgraph.laplacian(matrix + matrix.T)
    energy = np.trace(z.numpy().T @ laplacian @ z.numpy())
    assert laplacian_loss(z, edges, weights, backend=backend).item() == pytest.approx(energy, rel=1e-12)
    both = torch.cat([edges, edges.flip(0)], dim=1)
    twice = laplacian_loss(z, both, weights.repeat(2), backend=backend).item()
    assert twice == pytest.approx(2 * energy, rel=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_locality_preserving_by_its_formula(backend):
    z, edges, _ = make_graph((50, 200, 3), torch.float64)
    x = make_graph((50, 0, 8), torch.float64, seed=1)[0]
    lengths = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")[edges[0], edges[1]] ** 2
    moved = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")[edges[0], edges[1]] ** 2
    for bandwidth in (0.7, None):
        t = lengths.mean() if bandwidth is None else bandwidth
        weights = heat_weights(x, edges, bandwidth, backend=backend)
        assert torch.allclose(weights, torch.exp(-lengths / t), rtol=1e-12)
        loss = locality_preserving_loss(z, x, edges, bandwidth, backend=backend)
        assert loss.item() == pytest.approx(float((torch.exp(-lengths / t) * moved).sum()), rel=1e-12)
    assert not heat_weights(x.requires_grad_(), edges, backend=backend).requires_grad


# --- no worse than torch


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches(shape, dtype):
    def make_case(seed):
        z, edges, weights = make_graph(shape, dtype, seed)
        return loss_of(edges), (z, weights)

    check(make_case, dtype, "numba")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_weights_matches(dtype):
    def make_case(seed):
        z, edges, _ = make_graph((100, 700, 10), dtype, seed)
        return lambda z, backend: laplacian_loss(z, edges, reduction="mean", backend=backend), (z,)

    check(make_case, dtype, "numba")


@pytest.mark.parametrize("d", [7, 8, 9, 16, 17, 24, 25, 32, 33, 64])
def test_every_number_of_vectors(d):
    z, edges, weights = make_graph((30, 90, d))
    truth = value_and_gradients(lambda z: laplacian_loss(z, edges, weights, backend="reference"), z.double())
    got = value_and_gradients(lambda z: laplacian_loss(z, edges, weights, backend="numba"), z)
    assert all(relative_error(a, b) < 1e-6 for a, b in zip(got, truth))


def test_T15_large_offset():
    def make_case(seed):
        z, edges, weights = make_graph((200, 900, 6), offset=1e6, seed=seed)
        return loss_of(edges), (z, weights)

    check(make_case, torch.float32, "numba")


def test_T16_T17_half_rows_whose_sums_overflow_half():
    z, edges, weights = make_graph((300, 5000, 8), torch.float16)
    z = z * 200
    truth = laplacian_loss(z.double(), edges, weights.double())
    assert truth > 65504
    assert relative_error(laplacian_loss(z, edges, weights), truth) < 1e-6


def test_half_gradients_do_not_vanish():
    z, edges, weights = make_graph((2000, 9000, 4), torch.float16)
    *_, exact = value_and_gradients(lambda z: laplacian_loss(z, edges, weights.double(), "mean"), z.double())
    *_, got = value_and_gradients(lambda z: laplacian_loss(z, edges, weights, "mean") * 65536.0, z)
    assert got.dtype == torch.float16
    assert relative_error(got.double() / 65536.0, exact) < 1e-3


# --- invariances


def test_T44_same_bits_for_any_number_of_threads(n_threads, set_threads):
    z, edges, weights = make_graph((5000, 40_000, 5))
    graph = EdgeList.prepare(edges, 5000)
    set_threads(1)
    one = value_and_gradients(lambda z, w: laplacian_loss(z, EdgeList.prepare(edges, 5000), w), z, weights)
    set_threads(n_threads)
    many = value_and_gradients(lambda z, w: laplacian_loss(z, EdgeList.prepare(edges, 5000), w), z, weights)
    assert all(torch.equal(a, b) for a, b in zip(one, many))
    assert all(torch.equal(a, b) for a, b in zip(graph, EdgeList.prepare(edges, 5000)))


def test_prepared_listed_and_csr_edges_agree():
    z, edges, _ = make_graph((90, 500, 6))
    edges = torch.unique(edges, dim=1)  # in the order of a CSR tensor
    weights = torch.rand(edges.shape[1])
    csr = torch.sparse_coo_tensor(edges, weights, (90, 90)).to_sparse_csr()
    listed = value_and_gradients(lambda z: laplacian_loss(z, edges, weights), z)
    for graph, given in ((EdgeList.prepare(edges, 90), weights), (csr, None), (csr, weights)):
        for backend in BACKENDS:
            got = value_and_gradients(lambda z, g=graph, w=given, b=backend: laplacian_loss(z, g, w, backend=b), z)
            assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(got, listed))


def test_order_of_edges_does_not_matter():
    z, edges, weights = make_graph((80, 400, 5), torch.float64)
    order = torch.randperm(400)
    a = value_and_gradients(lambda z, w: laplacian_loss(z, edges, w), z, weights)
    b = value_and_gradients(lambda z, w: laplacian_loss(z, edges[:, order], w), z, weights[order])
    assert a[0].item() == pytest.approx(b[0].item(), rel=1e-13)
    assert torch.allclose(a[1], b[1], rtol=1e-11, atol=1e-12)
    assert torch.allclose(a[2][order], b[2], rtol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_T20_strides(dtype):
    z, edges, weights = make_graph((50, 200, 10), dtype)
    wide = torch.zeros(100, 20, dtype=dtype)
    wide[::2, ::2] = z
    pairs, spread = edges.T.contiguous(), torch.zeros(400, dtype=dtype)
    spread[::2] = weights
    contiguous = value_and_gradients(lambda z, w: laplacian_loss(z, edges, w), z, weights)
    strided = value_and_gradients(lambda z, w: laplacian_loss(z, pairs.T, w), wide[::2, ::2], spread[::2])
    turned = value_and_gradients(lambda z, w: laplacian_loss(z, pairs.T, w), z.T.contiguous().T, weights)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(contiguous, strided, turned))


def test_buckets():
    _, edges, _ = make_graph((70, 300, 1))
    for both in (True, False):
        got = bucket_edges(edges[0], edges[1], 70, both)
        assert all(torch.equal(a, b) for a, b in zip(got, bucket_edges_by_sorting(edges[0], edges[1], 70, both)))
    graph = EdgeList.prepare(edges, 70)
    assert (graph.n_nodes, graph.n_edges) == (70, 300)
    ends = torch.repeat_interleave(graph.indptr.diff())
    assert torch.equal(torch.bincount(graph.edge_ids), torch.full((300,), 2))
    pairs = torch.stack([ends, graph.neighbors.long()]).sort(dim=0).values
    assert torch.equal(pairs, edges[:, graph.edge_ids.long()].sort(dim=0).values)


def test_T30_wide_indices():
    """Beyond 2^31 ends of edges the numbers of nodes and edges are int64."""
    z, edges, weights = make_graph((70, 300, 9))
    graph = EdgeList.prepare(edges, 70)
    wide = graph._replace(neighbors=graph.neighbors.long(), edge_ids=graph.edge_ids.long())
    assert index_dtype(2**31 - 1) == torch.int32
    assert index_dtype(2**31) == torch.int64
    a, b = (value_and_gradients(lambda z, w, g=g: laplacian_loss(z, g, w), z, weights) for g in (graph, wide))
    assert all(torch.equal(x, y) for x, y in zip(a, b))


def test_no_edges_and_lonely_nodes():
    none = torch.empty(2, 0, dtype=torch.int64)
    for backend in BACKENDS:
        for reduction in ("sum", "mean"):
            loss = lambda z, b=backend, r=reduction: laplacian_loss(z, none, reduction=r, backend=b)  # noqa: E731
            value, gradient = value_and_gradients(loss, torch.ones(3, 2))
            assert value == 0
            assert torch.equal(gradient, torch.zeros(3, 2))
    assert heat_weights(torch.ones(3, 2), torch.tensor([[0], [1]])).item() == 1.0  # edges of length 0


def test_T05_T06_constant_rows():
    edges = make_graph((40, 100, 1))[1]
    value, gradient = value_and_gradients(lambda z: laplacian_loss(z, edges), torch.full((40, 6), 1e-40))
    assert value == 0
    assert torch.equal(gradient, torch.zeros(40, 6))


def test_a_row_with_nan_shows():
    z, edges, weights = make_graph((40, 300, 9))
    z[edges[0, 0], 8] = float("nan")
    assert laplacian_loss(z, edges, weights).isnan()
    value, gradient = value_and_gradients(lambda z: laplacian_loss(z, edges, weights), z)
    assert value.isnan()
    assert gradient.isnan().any()


def test_inputs_are_not_written_to():
    z, edges, weights = make_graph((40, 300, 9))
    copies = z.clone(), edges.clone(), weights.clone()
    value_and_gradients(lambda z, w: laplacian_loss(z, edges, w), z, weights)
    heat_weights(z, edges)
    assert all(torch.equal(a, b) for a, b in zip((z, edges, weights), copies))


def test_a_hub_of_every_node():
    z, _, weights = make_graph((3000, 2999, 4))
    edges = torch.stack([torch.arange(1, 3000), torch.zeros(2999, dtype=torch.int64)])
    check(lambda _: (loss_of(edges), (z, weights)), torch.float32, "numba", seeds=1)


# --- autograd and the compiler


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    z, edges, weights = (t.requires_grad_() if t.is_floating_point() else t for t in make_graph((6, 15, 3), DTYPES[0]))
    for graph in (edges, EdgeList.prepare(edges, 6)):
        assert torch.autograd.gradcheck(lambda z, w, g=graph: loss_of(g)(z, w, backend), (z, weights))
    assert torch.autograd.gradcheck(lambda w: loss_of(edges)(z.detach(), w, backend), (weights,))


def test_retain_graph_and_second_derivatives():
    z, edges, weights = make_graph((40, 300, 9))
    z, weights = z.requires_grad_(), weights.requires_grad_()
    loss = laplacian_loss(z, edges, weights)
    first = torch.autograd.grad(loss, (z, weights), retain_graph=True)
    copies = [g.clone() for g in first]
    second = torch.autograd.grad(3 * loss, (z, weights), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, copies))
    assert all(torch.allclose(a, 3 * b) for a, b in zip(second, first))
    (gradient,) = torch.autograd.grad(loss, z, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.sum().backward()


def test_transforms_without_a_rule_raise():
    z, edges, _ = make_graph((40, 300, 9))
    with pytest.raises(NotImplementedError, match="laplacian_loss has no rule"):
        torch.func.grad(lambda z: laplacian_loss(z, edges))(z)
    with pytest.raises(NotImplementedError, match="heat_weights has no rule"):
        torch.func.jvp(lambda z: heat_weights(z, edges), (z,), (z,))


def test_opcheck():
    z, edges, weights = make_graph((40, 100, 9))
    graph = EdgeList.prepare(edges, 40)
    z, weights = z.requires_grad_(), weights.requires_grad_()
    torch.library.opcheck(custom_ops.LAPLACIAN["numba"], (z, weights, *graph, True, True))
    torch.library.opcheck(custom_ops.LAPLACIAN["numba"], (z, None, *graph, True, False))
    torch.library.opcheck(bucket_edges, (edges[0].clone(), edges[1].clone(), 40, True))


@pytest.mark.parametrize("prepared", [True, False])
def test_compiles_into_one_graph(prepared):
    z, edges, weights = make_graph((60, 200, 6))
    graph = EdgeList.prepare(edges, 60) if prepared else edges

    def training_loss(z, w):
        return laplacian_loss(z * 1.0, graph, w) + locality_preserving_loss(z * 1.0, z.detach(), graph)

    compiled = torch.compile(training_loss, fullgraph=True, backend="aot_eager", dynamic=True)
    got, expected = (value_and_gradients(f, z, weights) for f in (compiled, training_loss))
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(got, expected))


def test_backend_switch_recompiles():
    z, edges, _ = make_graph((60, 200, 6))
    compiled = torch.compile(lambda z: laplacian_loss(z, edges), fullgraph=True, backend="eager")
    first = compiled(z)
    with fastdc.use_backend("reference"):
        assert torch.allclose(compiled(z), first, rtol=1e-5)


def test_dtypes_may_differ():
    z, edges, weights = make_graph((60, 200, 6))
    loss, grad_z, grad_w = value_and_gradients(lambda z, w: laplacian_loss(z, edges, w), z.half(), weights)
    assert (loss.dtype, grad_z.dtype, grad_w.dtype) == (torch.float32, torch.float16, torch.float32)
    assert laplacian_loss(z, edges, weights.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(laplacian_loss(z, edges, weights), laplacian_loss(z, edges, weights))
        assert laplacian_loss(z, edges, weights).dtype == torch.float32


def test_T25_inference_mode():
    z, edges, weights = make_graph((60, 200, 6))
    with torch.inference_mode():
        assert laplacian_loss(z * 1.0, edges, weights).isfinite()
        assert heat_weights(z * 1.0, edges).isfinite().all()


def test_modules():
    z, edges, weights = make_graph((60, 200, 6))
    x = make_graph((60, 0, 9), seed=1)[0]
    assert torch.equal(LaplacianLoss("mean")(z, edges, weights), laplacian_loss(z, edges, weights, "mean"))
    criterion = LocalityPreservingLoss(x, edges, bandwidth=3.0)
    got = value_and_gradients(criterion, z)
    expected = value_and_gradients(lambda z: locality_preserving_loss(z, x, edges, 3.0), z)
    assert all(torch.equal(a, b) for a, b in zip(got, expected))
    assert criterion.state_dict() == {}
    assert criterion.to("meta").edges.is_meta


# --- errors

Z = torch.zeros(3, 2)
EDGES = torch.tensor([[0, 1], [1, 2]])
CSR = torch.eye(3).to_sparse_csr()
WRONG_POINTERS = torch.sparse_csr_tensor(
    torch.tensor([0, 2, 1]), torch.tensor([0]), torch.ones(1), (2, 2), check_invariants=False
)
BAD = [
    (lambda: laplacian_loss(np.zeros((3, 2)), EDGES), TypeError, "z must be a torch.Tensor, got ndarray"),
    (lambda: laplacian_loss(Z.long(), EDGES), TypeError, "z must be float32, float64, float16 or bfloat16"),
    (lambda: laplacian_loss(Z[:0], EDGES), ValueError, r"z is empty, shape \(0, 2\)"),
    (lambda: laplacian_loss(Z, [[0], [1]]), TypeError, "edges must be a torch.Tensor of shape .*, got list"),
    (
        lambda: laplacian_loss(Z, EDGES.new_zeros(5, 2)),
        ValueError,
        r"edges must have shape \(2, n_edges\), sources first, got \(5, 2\); rows of pairs are edges.T",
    ),
    (lambda: laplacian_loss(Z, EDGES.int()), TypeError, r"edges must be int64, got torch.int32; convert it with"),
    (
        lambda: laplacian_loss(Z, EDGES + 1),
        ValueError,
        "edges must lie between 0 and 2, the numbers of the 3 nodes, got 3",
    ),
    (lambda: laplacian_loss(Z, EDGES + 1, backend="reference"), ValueError, "edges must lie between 0 and 2"),
    (
        lambda: laplacian_loss(Z.clone().requires_grad_(), EDGES - 1),
        ValueError,
        "edges must lie between 0 and 2.* got -1",
    ),
    (lambda: heat_weights(Z, EDGES - 1), ValueError, "edges must lie between 0 and 2.* got -1"),
    (lambda: EdgeList.prepare(EDGES, 2), ValueError, "edges must lie between 0 and 1, .* got 2"),
    (
        lambda: laplacian_loss(Z, EdgeList.prepare(EDGES, 4)),
        ValueError,
        "edges are of 4 nodes but there are 3 rows; prepare them anew",
    ),
    (lambda: laplacian_loss(Z[:2], CSR), ValueError, r"edges has shape \(3, 3\) but there are 2 rows"),
    (lambda: laplacian_loss(Z[:2], WRONG_POINTERS), ValueError, "edges is no valid CSR tensor: its row pointers"),
    (
        lambda: laplacian_loss(Z, EDGES, torch.ones(3)),
        ValueError,
        r"weights must have shape \(2,\), one entry for each of the edges, got \(3,\)",
    ),
    (lambda: laplacian_loss(Z, EDGES, torch.ones(2).long()), TypeError, "weights must be float32, .*got torch.int64"),
    (lambda: laplacian_loss(Z, EDGES.to("meta")), ValueError, r"edges is on meta but z is on cpu"),
    (
        lambda: laplacian_loss(Z, EDGES, reduction="none"),
        ValueError,
        r"reduction must be one of \('sum', 'mean'\), got 'none'",
    ),
    (lambda: laplacian_loss(Z, EDGES, backend="cuda"), ValueError, "backend must be one of"),
    (lambda: laplacian_loss(Z, EDGES, backend="triton"), BackendError, "triton kernels need GPU tensors"),
    (lambda: heat_weights(Z, EDGES, 0.0), ValueError, "bandwidth must be a finite number above 0, got 0.0"),
    (
        lambda: locality_preserving_loss(Z, Z[:2], EDGES),
        ValueError,
        "x has 2 rows but z has 3; both need one for each node",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
