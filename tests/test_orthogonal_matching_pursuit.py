"""Sparse self-expression by orthogonal matching pursuit."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import orthogonal_mp

from fastdc.kernels import BackendError
from fastdc.kernels.self_expression import orthogonal_matching_pursuit
from fastdc.kernels.self_expression.numba_tiles import CANDIDATES
from tests.graph_cases import DTYPES

BACKENDS = ["reference", "numba"]


def make_points(n, d, dtype=torch.float64, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_scikit_learn(z, n_nonzero, tol=None):
    """Codes of each row by the others, as a dense matrix."""
    z = torch.nn.functional.normalize(z).numpy()
    codes = np.zeros((len(z), len(z)))
    for i in range(len(z)):
        others = np.delete(np.arange(len(z)), i)
        # its tol is the squared length, and replaces the number of points
        codes[i, others] = orthogonal_mp(
            z[others].T, z[i], n_nonzero_coefs=None if tol else n_nonzero, tol=tol and tol**2
        )
    return torch.from_numpy(codes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    z = torch.tensor([[1.0, 1.0], [3.0, 0.0], [0.0, 2.0], [0.0, -1.0]])
    codes = orthogonal_matching_pursuit(z, 2, normalize=False, backend=backend)
    assert codes.layout == torch.sparse_csr
    expected = [[0, 1 / 3, 0.5, 0], [3, 0, -1.5, 0], [2, -2 / 3, 0, 0], [0, 0, -0.5, 0]]
    assert torch.allclose(codes.to_dense(), torch.tensor(expected), atol=1e-6)
    one = orthogonal_matching_pursuit(z, 1, normalize=False, backend=backend).to_dense()
    assert torch.allclose(one[0], torch.tensor([0.0, 1 / 3, 0.0, 0.0]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(60, 12), (CANDIDATES + 70, 20), (20, 40)], ids=str)
@pytest.mark.parametrize("n_nonzero", [1, 4, 9])
def test_is_scikit_learns(backend, shape, n_nonzero):
    z = make_points(*shape)
    got = orthogonal_matching_pursuit(z, n_nonzero, backend=backend).to_dense()
    rows = min(len(z), 80)
    assert torch.allclose(got[:rows], by_scikit_learn(z, n_nonzero)[:rows], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tolerance_is_scikit_learns(backend):
    z = make_points(50, 8)
    got = orthogonal_matching_pursuit(z, 8, 0.4, backend=backend).to_dense()
    assert torch.allclose(got, by_scikit_learn(z, 8, tol=0.4), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_lower_precisions_do_as_well(backend, dtype):
    """Near ties may fall otherwise; what is left of a point may not be longer for it."""
    z = make_points(300, 16, dtype)
    unit = torch.nn.functional.normalize(z.double())
    exact = orthogonal_matching_pursuit(z.double(), 5, backend="reference").to_dense()
    codes = orthogonal_matching_pursuit(z, 5, backend=backend)
    assert codes.dtype == torch.float32
    dense = codes.to_dense().double()
    assert float((dense - exact).abs().gt(1e-4).any(1).double().mean()) < 0.02
    left = [(unit - c @ unit).norm(dim=1).mean().item() for c in (dense, exact)]
    assert left[0] == pytest.approx(left[1], rel=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_points_of_a_subspace_use_their_own_kind(backend):
    generator = torch.Generator().manual_seed(0)
    bases = torch.linalg.qr(torch.randn(4, 30, 3, generator=generator)).Q
    z = (torch.randn(4, 100, 3, generator=generator) @ bases.mT).reshape(400, 30)
    codes = orthogonal_matching_pursuit(z, 3, 1e-4, backend=backend).to_dense()
    kind = torch.arange(400) // 100
    same = kind[:, None] == kind
    assert float(codes.abs()[same].sum() / codes.abs().sum()) > 0.9
    unit = torch.nn.functional.normalize(z)
    assert float((unit - codes @ unit).norm(dim=1).max()) < 1e-4


def test_backends_agree_and_T44_threads(n_threads):
    z = make_points(700, 10, torch.float32)
    got = orthogonal_matching_pursuit(z, 4)
    torch.set_num_threads(1)
    one = orthogonal_matching_pursuit(z, 4)
    assert torch.equal(got.col_indices(), one.col_indices())
    assert torch.equal(got.values(), one.values())
    reference = orthogonal_matching_pursuit(z, 4, backend="reference")
    assert float((reference.to_dense() - one.to_dense()).abs().gt(1e-4).any(1).double().mean()) < 0.01


@pytest.mark.parametrize("backend", BACKENDS)
def test_T19_ties_go_to_the_lowest_index(backend):
    z = torch.cat([torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]]).repeat(600, 1)])
    codes = orthogonal_matching_pursuit(z, 2, normalize=False, backend=backend)
    rows = torch.repeat_interleave(codes.crow_indices().diff())
    assert torch.equal(codes.col_indices()[rows == 0], torch.tensor([1]))
    assert torch.equal(codes.col_indices()[rows == 1], torch.tensor([2]))
    assert torch.equal(codes.col_indices()[rows == 600], torch.tensor([1]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_T35_dependent_points_end_a_code(backend):
    """Duplicates explain a point wholly, or add nothing to the support."""
    z = make_points(30, 6).repeat(3, 1)
    codes = orthogonal_matching_pursuit(z, 5, 1e-6, backend=backend)
    assert torch.equal(codes.crow_indices().diff(), torch.ones(90, dtype=torch.int64))
    assert torch.allclose(codes.values(), torch.ones(90, dtype=torch.float64))
    flat = torch.tensor([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [0.5, 1.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codes = orthogonal_matching_pursuit(flat[:3], 3, backend=backend)
    assert int(codes.crow_indices().diff().max()) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_T05_T13_T14_degenerate_points(backend):
    for z in (torch.zeros(5, 3), torch.ones(1, 4), torch.ones(4, 1), torch.full((3, 2), 1e-40)):
        codes = orthogonal_matching_pursuit(z, 3, backend=backend)
        assert codes.shape == (len(z), len(z))
        assert bool(codes.values().isfinite().all())
        assert not codes.to_dense().diagonal().any()
    assert orthogonal_matching_pursuit(torch.zeros(5, 3), backend=backend).values().numel() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_lengths_do_not_matter_once_normalized(backend):
    z = make_points(80, 6)
    scales = torch.logspace(-150, 150, 80, dtype=torch.float64)[:, None]
    plain, scaled = (orthogonal_matching_pursuit(x, 3, backend=backend).to_dense() for x in (z, z * scales))
    assert torch.allclose(plain, scaled, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_T20_T25_strides_gradients_and_inputs_kept(backend):
    z = make_points(80, 6, torch.float32)
    wide = torch.zeros(160, 12)
    wide[::2, ::2] = z
    copy = z.clone()
    expected = orthogonal_matching_pursuit(z, 3, backend=backend)
    for other in (wide[::2, ::2], z.T.contiguous().T, z.clone().requires_grad_()):
        got = orthogonal_matching_pursuit(other, 3, backend=backend)
        assert torch.equal(got.values(), expected.values())
        assert not got.requires_grad
    assert torch.equal(z, copy)


def test_large_columns_of_many_tiles():
    z = make_points(3 * CANDIDATES + 5, 5, torch.float32)
    codes = orthogonal_matching_pursuit(z, 3)
    assert int(codes.col_indices().max()) > 2 * CANDIDATES
    rows = torch.repeat_interleave(codes.crow_indices().diff())
    assert not bool((rows == codes.col_indices()).any())


Z = torch.zeros(3, 2)
BAD = [
    (lambda: orthogonal_matching_pursuit(np.zeros((3, 2))), TypeError, "z must be a torch.Tensor, got ndarray"),
    (lambda: orthogonal_matching_pursuit(Z.long()), TypeError, "z must be float32, float64, float16 or bfloat16"),
    (lambda: orthogonal_matching_pursuit(Z[:0]), ValueError, r"z is empty, shape \(0, 2\)"),
    (lambda: orthogonal_matching_pursuit(Z, 0), ValueError, "n_nonzero must be at least 1, got 0"),
    (lambda: orthogonal_matching_pursuit(Z, 2.5), TypeError, "n_nonzero must be an int, got 2.5"),
    (lambda: orthogonal_matching_pursuit(Z, True), TypeError, "n_nonzero must be an int, got True"),
    (lambda: orthogonal_matching_pursuit(Z, 1, -1.0), ValueError, "tol must be a finite number, 0 or above, got -1.0"),
    (lambda: orthogonal_matching_pursuit(Z, backend="cuda"), ValueError, "backend must be one of"),
    (lambda: orthogonal_matching_pursuit(Z, backend="triton"), BackendError, "has no triton kernel; on GPUs its"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
