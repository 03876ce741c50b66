"""Codes of the Sinkhorn room on CPUs; the swapped loss and Triton's kernels have files of their own."""

import math

import numpy as np
import pytest
import torch

from fastdc.kernels import BackendError
from fastdc.kernels._accuracy import assert_not_worse_than_torch, relative_error
from fastdc.kernels._math import exp2, exp2_affine
from fastdc.kernels._numba import jit
from fastdc.kernels.sinkhorn import custom_ops, numba_kernel, sinkhorn_assign
from fastdc.kernels.sinkhorn.numba_kernel import make_potential, make_scale, middle_exponent
from tests.sinkhorn_cases import DTYPES, SHAPES, exact_assign, make_scores, name_shape, plain_assign, swav_assign

BACKENDS = ["reference", "numba"]

# --- the exponential


@jit
def exp2_each(x, out):
    for i in range(x.size):
        out[i] = exp2(x[i])


@jit
def exp2_affine_each(x, scale, whole, part, out):
    for i in range(x.size):
        out[i] = exp2_affine(x[i], scale, whole[i], part[i])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp2_is_within_2_ulp(dtype):
    x = np.random.default_rng(0).uniform(-124.5, 127, 100_000).astype(dtype)
    x = np.concatenate([x, np.arange(-124, 127, 0.5).astype(dtype)])
    got = np.empty_like(x)
    exp2_each(x, got)
    exact = np.exp2(x.astype(np.longdouble))
    assert np.max(np.abs(got - exact) / exact) < 2 * np.finfo(dtype).eps
    edges = np.array([-np.inf, -1e30, -200, 200, np.inf, np.nan], np.float32)
    got = np.empty_like(edges)
    exp2_each(edges, got)
    assert np.array_equal(got, np.array([0, 0, 0, np.inf, np.inf, np.nan], np.float32), equal_nan=True)


def test_exp2_affine_loses_nothing_to_cancellation():
    generator = np.random.default_rng(0)
    x = generator.uniform(-1e4, 1e4, 10_000).astype(np.float32)
    scale = make_scale(1e-3, np.dtype(np.float32))
    exact = x.astype(np.longdouble) * float(scale)
    target = generator.uniform(-30, 0, 10_000)
    potential = make_potential(torch.from_numpy((target - exact).astype(np.float64)), 10_000, np.dtype(np.float32))
    got = np.empty_like(x)
    exp2_affine_each(x, scale, *potential, got)
    assert np.max(np.abs(got / np.exp2(target) - 1)) < 1e-6


# --- cases by hand and by independent formulas


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    # exp(s / epsilon) = (4, 1), (2, 1): columns sum to 6 and 2, rows then to 4/6 + 1/2 and 2/6 + 1/2
    scores = torch.tensor([[4.0, 1.0], [2.0, 1.0]]).log() * 0.5
    q = sinkhorn_assign(scores, epsilon=0.5, n_iters=1, backend=backend)
    expected = torch.tensor([[4 / 6, 1 / 2], [2 / 6, 1 / 2]])
    assert torch.allclose(q, expected / expected.sum(1, keepdim=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_iters", [1, 3, 10])
def test_is_swavs_function_and_the_log_domain(backend, n_iters):
    scores = make_scores(200, 30, torch.float64)
    q = sinkhorn_assign(scores, n_iters=n_iters, backend=backend)
    assert torch.allclose(q, swav_assign(scores, n_iters=n_iters), rtol=1e-10)
    assert torch.allclose(q, exact_assign(scores, n_iters=n_iters), rtol=1e-10)


@pytest.mark.peers("ot")
@pytest.mark.parametrize("backend", BACKENDS)
def test_is_pot(backend):
    import ot

    scores = make_scores(60, 20, torch.float64)
    a, b = torch.rand(60, dtype=torch.float64) + 0.1, torch.rand(20, dtype=torch.float64) + 0.1
    a, b = a / a.sum(), b / b.sum()
    plan = ot.bregman.sinkhorn_log(a.numpy(), b.numpy(), -scores.numpy(), 0.05, numItermax=5, stopThr=0, warn=False)
    q = sinkhorn_assign(scores, n_iters=5, row_marginal=a, column_marginal=b, backend=backend)
    assert torch.allclose(q, torch.from_numpy(plan) / a[:, None], rtol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_converges_to_both_marginals(backend):
    scores = make_scores(100, 12, torch.float64)
    a, b = torch.rand(100, dtype=torch.float64) + 0.1, torch.rand(12, dtype=torch.float64) + 0.1
    q = sinkhorn_assign(scores, 0.1, 2000, a, b * 7, backend=backend)
    assert torch.allclose(q.sum(1), torch.ones(100, dtype=torch.float64))
    assert torch.allclose((a[:, None] * q).sum(0) / a.sum(), b / b.sum(), rtol=1e-9)


# --- no worse than torch


@pytest.mark.parametrize("shape", SHAPES, ids=name_shape)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_matches(shape, dtype, backend):
    working = torch.float64 if dtype == torch.float64 else torch.float32
    cases = []
    for seed in range(3):
        scores = make_scores(*shape, dtype, seed=seed)
        got = sinkhorn_assign(scores, backend=backend)
        assert got.dtype == working
        cases.append((got, plain_assign(scores.to(working)), exact_assign(scores)))
    assert_not_worse_than_torch(cases, factor=2, dtype=working)
    assert (got.sum(1) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_T36_parity_with_float64_up_to_a_thousand_epsilon(backend, dtype):
    generator = torch.Generator().manual_seed(3)
    scores = (torch.rand(150, 40, generator=generator) * 2 - 1).to(dtype)
    for n_iters in (1, 3, 20):
        q = sinkhorn_assign(scores, 1e-3, n_iters, backend=backend)
        assert (q - exact_assign(scores, 1e-3, n_iters)).abs().max() < 1e-4
        assert (q.sum(1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_T36_logits_of_ten_thousand_at_epsilon_of_a_thousandth(dtype, backend):
    generator = torch.Generator().manual_seed(0)
    scores = ((torch.rand(130, 70, generator=generator) * 2 - 1) * 1e4).to(dtype)
    scores[0], scores[1, :35], scores[1, 35:] = 1e4, 1e4, -1e4
    q = sinkhorn_assign(scores, 1e-3, backend=backend)
    assert bool(torch.isfinite(q).all())
    assert (q.sum(1) - 1).abs().max() < 1e-5
    exact = exact_assign(scores, 1e-3)
    top = exact.topk(2, dim=1).values
    clear = top[:, 0] > 100 * top[:, 1]  # a margin far above the rounding of float64 at 1e7
    assert clear.sum() > 50
    assert torch.equal(q.argmax(1)[clear], exact.argmax(1)[clear])


@pytest.mark.parametrize("backend", BACKENDS)
def test_T37_dead_prototypes_and_constant_samples(backend):
    scores = make_scores(50, 9)
    scores[:, 4] = -math.inf
    scores[7] = 0.25
    scores[7, 4] = -math.inf
    scores[8, :5] = -math.inf  # forbidden pairs of a sample that has others
    q = sinkhorn_assign(scores, backend=backend)
    assert torch.equal(q[:, 4], torch.zeros(50))
    assert torch.equal(q[8, :5], torch.zeros(5))
    assert torch.allclose(q.sum(1), torch.ones(50))
    living = [j for j in range(9) if j != 4]
    assert torch.allclose(q[:, living], exact_assign(scores[:, living]).float(), atol=1e-5)
    empty = torch.ones(9)
    empty[2] = 0.0
    q = sinkhorn_assign(scores, column_marginal=empty, backend=backend)
    assert torch.equal(q[:, 2], torch.zeros(50))
    assert torch.allclose(q.sum(1), torch.ones(50))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", ["nan", "inf", "a row of -inf"])
def test_T01_what_has_no_codes_is_nan_everywhere(backend, bad):
    scores = make_scores(90, 5)
    if bad == "a row of -inf":
        scores[3] = -math.inf
    else:
        scores[3, 1] = float(bad)
    assert bool(sinkhorn_assign(scores, backend=backend).isnan().all())


def test_columns_far_below_every_row_are_summed_again(monkeypatch):
    """A prototype e^-200 below all others underflows in a step; the next iteration must see it all the same."""
    scores = make_scores(300, 20, torch.float32)
    scores[:, 11] -= 200 * 0.05 * torch.linspace(1, 3, 300)
    calls = []
    original = numba_kernel.ScorePasses.columns
    monkeypatch.setattr(
        numba_kernel.ScorePasses, "columns", lambda self, u: (calls.append(u is None), original(self, u))[1]
    )
    q = sinkhorn_assign(
        scores, n_iters=4, column_marginal=torch.cat([torch.ones(11), torch.full((1,), 1e-30), torch.ones(8)])
    )
    expected = plain_assign(
        scores.double(),
        n_iters=4,
        column_marginal=torch.cat([torch.ones(11), torch.full((1,), 1e-30), torch.ones(8)]).double() / 19,
    )
    assert calls[0]
    assert not any(calls[1:])
    assert len(calls) > 1
    assert relative_error(q[:, 11], expected[:, 11]) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stored_exponentials_are_those_made_anew(dtype, monkeypatch):
    scores = make_scores(301, 1100, dtype)
    stored = sinkhorn_assign(scores)
    monkeypatch.setattr(numba_kernel, "middle_exponent", lambda scores, scale: None)
    anew = sinkhorn_assign(scores)
    assert not torch.equal(stored, anew)
    assert relative_error(stored, anew) < (1e-13 if dtype == torch.float64 else 3e-6)


@pytest.mark.parametrize("extreme", ["column_marginal", "row_marginal"])
def test_marginals_beyond_float32_leave_what_is_stored(extreme):
    scores = make_scores(200, 20, torch.float32)
    marginals = {"row_marginal": torch.ones(200).double(), "column_marginal": torch.ones(20).double()}
    marginals[extreme][3] = 1e-60
    q = sinkhorn_assign(scores, n_iters=5, **marginals)
    expected = plain_assign(scores.double(), n_iters=5, **{name: m / m.sum() for name, m in marginals.items()})
    assert relative_error(q, expected) < 3e-6


def test_which_scores_are_stored():
    scores = make_scores(20, 5)
    assert middle_exponent(scores, 10.0) == round(10 * float(scores.max() + scores.min()) / 2)
    assert middle_exponent(scores + 1e4, 10.0) is not None
    for bad in (scores * 300, scores + 1e8, scores.where(scores < scores.max(), -math.inf), scores * math.nan):
        assert middle_exponent(bad, 10.0) is None


# --- stopping


@pytest.mark.parametrize("backend", BACKENDS)
def test_tol_stops_after_the_first_iteration_that_is_close_enough(backend):
    scores = make_scores(120, 15, torch.float64)
    error = []
    for n_iters in range(1, 30):
        q = sinkhorn_assign(scores, 0.2, n_iters, backend=backend)
        error.append((q.mean(0) - 1 / 15).abs().sum().item())
    assert error == sorted(error, reverse=True)
    for wanted in (3, 10):
        tol = (error[wanted - 1] + error[wanted - 2]) / 2
        stopped = sinkhorn_assign(scores, 0.2, 100, tol=tol, backend=backend)
        assert torch.allclose(stopped, sinkhorn_assign(scores, 0.2, wanted, backend=backend), rtol=1e-12)
    assert torch.equal(sinkhorn_assign(scores, 0.2, 4, tol=1e-300), sinkhorn_assign(scores, 0.2, 4))


# --- invariances


def test_T44_threads_do_not_change_a_bit(set_threads):
    scores = make_scores(3000, 70)
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append((sinkhorn_assign(scores), sinkhorn_assign(scores * 300)))
    for a, b in results[1:]:
        assert torch.equal(a, results[0][0])
        assert torch.equal(b, results[0][1])


def test_marginals_have_no_scale_and_uniform_ones_are_the_default():
    scores = make_scores(80, 11)
    q = sinkhorn_assign(scores)
    for scale in (1.0, 1e-20, 1e20):
        same = sinkhorn_assign(scores, row_marginal=torch.full((80,), scale), column_marginal=torch.full((11,), scale))
        assert torch.allclose(q, same, atol=1e-6)


def test_row_order_and_an_offset_do_not_matter():
    scores = make_scores(500, 33)
    order = torch.randperm(500)
    q = sinkhorn_assign(scores)
    assert relative_error(sinkhorn_assign(scores[order]), q[order]) < 1e-6
    rounded = (scores * 1024).round() / 1024  # exact under the offset
    assert relative_error(sinkhorn_assign(rounded + 64.0), sinkhorn_assign(rounded)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_T20_strides(dtype):
    scores = make_scores(100, 40, dtype)
    expected = sinkhorn_assign(scores)
    wide = torch.zeros(200, 80, dtype=dtype)
    wide[::2, ::2] = scores
    for view in (wide[::2, ::2], scores.t().contiguous().t()):
        assert not view.is_contiguous()
        assert torch.equal(sinkhorn_assign(view), expected)
    row = scores[:1].expand(100, 40)
    assert torch.equal(sinkhorn_assign(row), sinkhorn_assign(row.contiguous()))


def test_input_stays_and_results_are_written_whole(monkeypatch):
    scores = make_scores(131, 70)
    before = scores.clone()
    original = np.empty

    def poisoned(shape, dtype=float, **options):
        array = original(shape, dtype, **options)
        array.fill(np.nan)
        return array

    monkeypatch.setattr(np, "empty", poisoned)
    for factor in (1, 300):  # without and with columns summed again
        assert bool(torch.isfinite(sinkhorn_assign(scores * factor)).all())
    assert torch.equal(scores, before)


# --- torch


def test_codes_have_no_gradient():
    scores = make_scores(20, 5).requires_grad_()
    for backend in BACKENDS:
        assert not sinkhorn_assign(scores, backend=backend).requires_grad
    with torch.inference_mode():
        assert sinkhorn_assign(make_scores(20, 5)).isfinite().all()


def test_opcheck_and_one_graph():
    scores = make_scores(70, 9)
    torch.library.opcheck(custom_ops.ASSIGN["numba"], (scores, 0.05, 3, None, None, None))
    torch.library.opcheck(custom_ops.ASSIGN["numba"], (scores, 0.05, 9, 1e-3, torch.rand(70), torch.rand(9)))
    compiled = torch.compile(lambda s: sinkhorn_assign(s * 2.0), fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (70, 33):
        assert torch.equal(compiled(scores[:n]), sinkhorn_assign(scores[:n] * 2.0))


BAD = [
    (dict(scores=np.zeros((3, 2))), TypeError, "scores must be a torch.Tensor, got ndarray"),
    (dict(scores=torch.zeros(3)), ValueError, r"scores must be 2-D, of shape \(n_samples, n_prototypes\)"),
    (dict(scores=torch.zeros(0, 2)), ValueError, r"scores is empty, shape \(0, 2\)"),
    (dict(epsilon=0.0), ValueError, "epsilon must be a finite number above 0, got 0.0"),
    (dict(n_iters=0), ValueError, "n_iters must be an integer, 1 or above, got 0"),
    (dict(n_iters=2.5), ValueError, "n_iters must be an integer, 1 or above, got 2.5"),
    (dict(n_iters=True), ValueError, "n_iters must be an integer, 1 or above, got True"),
    (dict(tol=-1.0), ValueError, "tol must be a finite number above 0"),
    (
        dict(row_marginal=torch.ones(2)),
        ValueError,
        r"row_marginal must have shape \(3,\), one entry for each of the rows",
    ),
    (dict(column_marginal=torch.ones(3)), ValueError, r"column_marginal must have shape \(2,\)"),
    (dict(column_marginal=[0.5, 0.5]), TypeError, "column_marginal must be a torch.Tensor, got list"),
    (dict(backend="cuda"), ValueError, "backend must be one of"),
    (dict(backend="triton"), BackendError, "triton kernels need GPU tensors"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input(options, error, message):
    options = {"scores": torch.zeros(3, 2), **options}
    with pytest.raises(error, match=message):
        sinkhorn_assign(options.pop("scores"), **options)
