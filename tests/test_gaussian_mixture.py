"""Responsibilities, densities, one pass of EM and the M-step, against float64, scipy and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

import fastdc
from fastdc.kernels import BackendError
from fastdc.kernels._accuracy import relative_error
from fastdc.kernels.gaussian_mixture import (
    GMMStep,
    custom_ops,
    gmm_log_density,
    gmm_responsibilities,
    gmm_step,
    gmm_update,
)
from tests.gaussian_mixture_cases import (
    DTYPES,
    KINDS,
    SHAPES,
    check_mixture_ops,
    double,
    everything,
    make_mixture,
)

BACKENDS = ["reference", "numba"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    x, means = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [2.0]])
    mixture = (x, means, torch.ones(2, 1), torch.tensor([0.5, 0.5]))
    near, far = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))
    got, log_density = gmm_responsibilities(*mixture, backend=backend)
    assert torch.allclose(got, torch.tensor([[near, far], [far, near]]))
    expected = math.log(0.5 * (1 + math.exp(-2)) / math.sqrt(2 * math.pi))
    assert log_density.tolist() == pytest.approx([expected, expected])
    assert gmm_log_density(*mixture, backend=backend).labels.tolist() == [0, 1]
    step = gmm_step(*mixture, backend=backend)
    assert step.log_likelihood.item() == pytest.approx(2 * expected)
    assert step.counts.tolist() == pytest.approx([1.0, 1.0])
    assert step.sums[:, 0].tolist() == pytest.approx([2 * far, -2 * far])
    assert step.scatters[:, 0].tolist() == pytest.approx([4 * far, 4 * far])


@pytest.mark.parametrize("kind", KINDS)
def test_reference_against_scipy(kind):
    x, means, covariances, weights = mixture = make_mixture(40, 4, 3, kind, torch.float64)
    full = {
        "full": lambda j: covariances[j],
        "tied": lambda j: covariances,
        "diag": lambda j: covariances[j].diag(),
        "spherical": lambda j: covariances[j] * torch.eye(3, dtype=torch.float64),
    }[kind]
    normals = [multivariate_normal(means[j].numpy(), full(j).numpy()) for j in range(4)]
    densities = np.stack([normal.pdf(x.numpy()) for normal in normals], axis=1) * weights.numpy()
    got, log_density = gmm_responsibilities(*mixture, kind, backend="reference")
    np.testing.assert_allclose(log_density.exp(), densities.sum(1), rtol=1e-10)
    np.testing.assert_allclose(got, densities / densities.sum(1, keepdims=True), rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numba_matches(kind, dtype):
    for shape in SHAPES:
        check_mixture_ops("numba", shape, kind, dtype)


@pytest.mark.peers("sklearn")
@pytest.mark.parametrize("kind", KINDS)
def test_an_iteration_of_scikit_learn(kind):
    from sklearn.mixture import GaussianMixture
    from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky

    x, means, covariances, weights = mixture = make_mixture(500, 4, 3, kind, torch.float64)
    peer = GaussianMixture(4, covariance_type=kind, reg_covar=1e-3)
    peer.means_, peer.covariances_, peer.weights_ = (t.numpy() for t in (means, covariances, weights))
    peer.precisions_cholesky_ = _compute_precision_cholesky(peer.covariances_, kind)
    np.testing.assert_allclose(gmm_log_density(*mixture, kind).log_density, peer.score_samples(x.numpy()), rtol=1e-10)
    np.testing.assert_array_equal(gmm_log_density(*mixture, kind).labels, peer.predict(x.numpy()))
    bound, log_responsibilities = peer._e_step(x.numpy())
    got = gmm_responsibilities(*mixture, kind).responsibilities
    np.testing.assert_allclose(got, np.exp(log_responsibilities), rtol=1e-9, atol=1e-300)
    step = gmm_step(*mixture, kind)
    assert step.log_likelihood.item() / 500 == pytest.approx(bound, rel=1e-12)
    peer._m_step(x.numpy(), log_responsibilities)
    updated = gmm_update(step, means, covariances, kind, reg_covar=1e-3)
    np.testing.assert_allclose(updated.means, peer.means_, rtol=1e-9)
    np.testing.assert_allclose(updated.covariances, peer.covariances_, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(updated.weights, peer.weights_, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_likelihood_never_falls(kind):
    x, means, covariances, weights = make_mixture(400, 3, 4, kind, torch.float64)
    parameters, likelihoods = (means + 0.5, covariances, weights), []
    for _ in range(8):
        step = gmm_step(x, *parameters, kind)
        likelihoods.append(float(step.log_likelihood))
        parameters = gmm_update(step, *parameters[:2], kind, reg_covar=0.0)
    assert (np.diff(likelihoods) >= -1e-9).all()
    assert likelihoods[-1] > likelihoods[0] + 1.0


# --- invariances


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_add_up(kind):
    x, *parameters = make_mixture(300, 5, 4, kind)
    weight = torch.rand(300)
    whole = gmm_step(x, *parameters, kind, sample_weight=weight)
    chunks = [gmm_step(x[i : i + 70], *parameters, kind, sample_weight=weight[i : i + 70]) for i in range(0, 300, 70)]
    for a, b in zip(GMMStep.merge(chunks), whole):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_for_any_number_of_threads(kind, set_threads):
    mixture = make_mixture(20_000, 7, 5, kind)  # several blocks
    results = []
    for threads in (1, 2, 5):
        set_threads(threads)
        results.append(everything(mixture, kind, "numba"))
    for other in results[1:]:
        assert all(torch.equal(other[name], results[0][name]) for name in other)


@pytest.mark.parametrize("kind", KINDS)
def test_T20_strides(kind):
    x, *parameters = make_mixture(150, 6, 5, kind)
    expected = everything([x, *parameters], kind, "numba")
    wide = torch.full((300, 10), math.nan)
    wide[::2, ::2] = x
    for view in (wide[::2, ::2], x.t().contiguous().t(), x.flip(0).flip(0)):
        got = everything([view, *(p.t().contiguous().t() if p.ndim == 2 else p for p in parameters)], kind, "numba")
        assert all(torch.equal(got[name], expected[name]) for name in got)
    repeated = everything([x[:1].expand(70, 5), *parameters], kind, "numba")
    assert (repeated["labels"] == expected["labels"][0]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_rows(kind):
    x, *parameters = make_mixture(150, 6, 5, kind)
    order = torch.randperm(150)
    a, b = (everything([rows, *parameters], kind, "numba") for rows in (x, x[order]))
    assert torch.equal(a["responsibilities"][order], b["responsibilities"])
    assert torch.equal(a["labels"][order], b["labels"])
    assert torch.allclose(a["scatters"], b["scatters"], rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_T15_large_offset(kind, backend):
    x, means, covariances, weights = make_mixture(400, 4, 3, kind, offset=1e4)
    exact = everything(double((x, means, covariances, weights)), kind, "reference")
    got = everything((x, means, covariances, weights), kind, backend)
    for name in ("responsibilities", "counts", "sums", "scatters"):
        assert relative_error(got[name], exact[name]) < 1e-5, name
    step = gmm_step(x, means, covariances, weights, kind, backend=backend)
    truth = gmm_step(*double((x, means, covariances, weights)), kind, backend="reference")
    new = gmm_update(step, means.double(), covariances.double(), kind, reg_covar=0.0)
    wanted = gmm_update(truth, means.double(), covariances.double(), kind, reg_covar=0.0)
    assert relative_error(new.covariances, wanted.covariances) < 1e-5
    assert float((new.means - wanted.means).abs().max()) < 1e-5


def test_weights_are_repetitions():
    x, *parameters = make_mixture(60, 4, 3, "full", torch.float64)
    times = torch.randint(0, 4, (60,))
    weighted = gmm_step(x, *parameters, "full", sample_weight=times)
    repeated = gmm_step(x.repeat_interleave(times, dim=0), *parameters, "full")
    for a, b in zip(weighted, repeated):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-11)


# --- hard inputs


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_underflow_far_from_all_components(kind, backend):
    _, means, covariances, weights = make_mixture(1, 4, 3, kind)
    x = torch.tensor([[1e4, -1e4, 1e4], [1e8, 1e8, -1e8], [-1e15, 0.0, 0.0]])
    got, log_density = gmm_responsibilities(x, means, covariances, weights, kind, backend=backend)
    _, exact = gmm_responsibilities(*double((x, means, covariances, weights)), kind, backend="reference")
    assert torch.allclose(got.sum(1), torch.ones(3))
    assert torch.allclose(log_density.double(), exact, rtol=1e-5)
    assert gmm_step(x, means, covariances, weights, kind, backend=backend).n_invalid == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_T03_rows_without_a_density_add_nothing(kind, backend):
    x, *parameters = make_mixture(150, 4, 3, kind)
    good = torch.ones(150, dtype=torch.bool)
    for row, value in ((3, math.nan), (70, math.inf), (149, 1e30)):
        x[row, 1], good[row] = value, False
    got = everything([x, *parameters], kind, backend)
    expected = everything([x[good], *parameters], kind, backend)
    assert got["n_invalid"] == 3
    assert (got["labels"][~good] == -1).all()
    assert got["responsibilities"][~good].isnan().all()
    assert not got["log_density"][~good].isfinite().any()
    assert torch.equal(got["labels"][good], expected["labels"])
    for name in ("log_likelihood", "counts", "sums", "scatters"):
        assert torch.allclose(got[name], expected[name], rtol=1e-12), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_empty_component(kind, backend):
    x, means, covariances, weights = make_mixture(100, 4, 3, kind)
    means[2] = 1e6  # so far away that nothing is left
    weights[1] = 0.0
    step = gmm_step(x, means, covariances, weights, kind, backend=backend)
    assert step.counts[1:3].tolist() == [0.0, 0.0]
    new = gmm_update(step, means, covariances, kind)
    assert all(bool(t.isfinite().all()) for t in new)
    assert torch.equal(new.means[1:3], means[1:3])
    if kind != "tied":
        assert torch.equal(new.covariances[1:3], covariances[1:3])
    assert new.weights[1:3].tolist() == [0.0, 0.0]
    assert gmm_responsibilities(x, *new, kind, backend=backend).responsibilities.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_T13_one_point_and_T06_duplicates(kind):
    for n in (1, 80):
        x, means, covariances, weights = make_mixture(1, 2, 3, kind)
        x = x.expand(n, 3)
        for _ in range(5):
            step = gmm_step(x, means, covariances, weights, kind)
            assert step.counts.sum().item() == pytest.approx(n)
            means, covariances, weights = gmm_update(step, means, covariances, kind, reg_covar=1e-3)
        assert torch.allclose(means[weights.argmax()], x[0], atol=1e-6)
        spread = covariances if kind == "tied" else covariances[weights.argmax()]
        diagonal = spread.diag() if kind in ("tied", "full") else spread
        assert torch.allclose(diagonal, torch.full_like(diagonal, 1e-3), rtol=1e-3)


def test_T19_ties_take_the_first():
    x, means = torch.zeros(70, 2), torch.ones(40, 2)
    for kind, covariances in (("diag", torch.ones(40, 2)), ("tied", torch.eye(2))):
        for backend in BACKENDS:
            labels = gmm_log_density(x, means, covariances, torch.ones(40), kind, backend=backend).labels
            assert (labels == 0).all()


def test_T16_half_rows_whose_squares_overflow():
    x = torch.tensor([[300.0, 300.0], [-300.0, 250.0]], dtype=torch.float16)
    got = gmm_log_density(x, x, torch.full((2, 2), 1e-2), torch.ones(2) / 2)
    assert got.labels.tolist() == [0, 1]
    assert got.log_density.isfinite().all()


def test_no_weight_at_all_is_not_a_number_nowhere():
    x, means, covariances, weights = make_mixture(20, 3, 2, "tied")
    step = gmm_step(x * math.nan, means, covariances, weights, "tied")
    assert step.n_invalid == 20
    new = gmm_update(step, means, covariances, "tied")
    assert torch.equal(new.means, means)
    assert torch.equal(new.covariances, covariances)
    assert new.weights.tolist() == [0.0, 0.0, 0.0]


def test_parameters_may_differ_in_dtype():
    x, means, covariances, weights = make_mixture(50, 3, 4, "diag")
    got = everything((x.half(), means, covariances.double(), weights), "diag", "numba")
    assert got["log_density"].dtype == torch.float32
    assert gmm_log_density(x.half(), means.double(), covariances, weights).log_density.dtype == torch.float64
    step = gmm_step(x, means, covariances, weights)
    new = gmm_update(step, means.half(), covariances)
    assert (new.means.dtype, new.covariances.dtype) == (torch.float16, torch.float32)


# --- torch


def test_opcheck():
    for kind in KINDS:
        x, means, covariances, weights = make_mixture(70, 3, 4, kind)
        for want in (True, False):
            torch.library.opcheck(custom_ops.ROWS["numba"], (x, means, covariances, weights, kind, want))
        for weight in (None, torch.rand(70)):
            torch.library.opcheck(custom_ops.STEP["numba"], (x, means, covariances, weights, weight, kind))


def test_compiles_into_one_graph():
    x, *parameters = make_mixture(150, 4, 3, "diag")

    def iteration(x, means, covariances, weights):
        step = gmm_step(x * 1.0, means, covariances, weights)
        gamma, log_density = gmm_responsibilities(x, means, covariances, weights)
        return *gmm_update(step, means, covariances), gamma, log_density, gmm_log_density(x, *parameters).labels

    compiled = torch.compile(iteration, fullgraph=True, backend="aot_eager", dynamic=True)
    for a, b in zip(compiled(x, *parameters), iteration(x, *parameters)):
        assert torch.allclose(a, b, rtol=1e-5)


def test_T25_results_are_detached():
    x, *parameters = make_mixture(20, 3, 2, "full")
    for backend in BACKENDS:
        mixture = [t.clone().requires_grad_() for t in (x, *parameters)]
        got = everything(mixture, "full", backend)
        assert not any(value.requires_grad for value in got.values())
        with torch.inference_mode():
            assert gmm_step(x, *parameters, "full", backend=backend).log_likelihood.isfinite()


# --- errors

X, M, C, W = torch.zeros(5, 2), torch.zeros(3, 2), torch.ones(3, 2), torch.ones(3) / 3
BAD = [
    (lambda: gmm_step(np.zeros((5, 2)), M, C, W), TypeError, "x must be a torch.Tensor, got ndarray"),
    (lambda: gmm_step(X[0], M, C, W), ValueError, r"x must be 2-D, of shape \(n_samples, n_features\)"),
    (lambda: gmm_step(X[:0], M, C, W), ValueError, r"x is empty, shape \(0, 2\)"),
    (lambda: gmm_step(X, M[:, :1], C, W), ValueError, "means has 1 features but x has 2"),
    (
        lambda: gmm_step(X, M, C, W, "diagonal"),
        ValueError,
        r"covariance_type must be one of \('full', 'tied', 'diag', 'spherical'\), got 'diagonal'",
    ),
    (
        lambda: gmm_step(X, M, C, W, "full"),
        ValueError,
        r"covariances must have shape \(3, 2, 2\) for covariance_type 'full', got \(3, 2\)",
    ),
    (lambda: gmm_step(X, M, C.long(), W), TypeError, r"covariances must be floating, got torch.int64"),
    (lambda: gmm_step(X, M, [1.0], W), TypeError, "covariances must be a torch.Tensor, got list"),
    (lambda: gmm_step(X, M, C.to("meta"), W), ValueError, "covariances is on meta but means is on cpu"),
    (lambda: gmm_step(X, M, C, W[:2]), ValueError, r"weights must have shape \(3,\), one entry for each of the comp"),
    (lambda: gmm_step(X, M, C, -W), ValueError, "weights must be finite, 0 or above, and not all 0"),
    (lambda: gmm_step(X, M, C, 0 * W), ValueError, "weights must be finite, 0 or above, and not all 0"),
    (
        lambda: gmm_step(X, M, C * torch.tensor([[1.0], [0.0], [1.0]]), W),
        ValueError,
        "the covariance of component 1 is not positive definite; raise reg_covar in gmm_update",
    ),
    (lambda: gmm_step(X, M, -torch.eye(2), W, "tied"), ValueError, "the covariance is not positive definite"),
    (lambda: gmm_step(X, M, C, W, sample_weight=W), ValueError, r"sample_weight must have shape \(5,\)"),
    (
        lambda: gmm_step(X + math.nan, M, C, W, check_finite=True),
        ValueError,
        r"Input x contains NaN: 10 such entries, the first at index \[0, 0\]",
    ),
    (lambda: gmm_log_density(X, M + math.inf, C, W, check_finite=True), ValueError, "Input means contains infinity"),
    (lambda: gmm_responsibilities(X, M, C, W, backend="triton"), BackendError, "triton kernels need GPU tensors"),
    (lambda: gmm_responsibilities(X, M, C, W, backend="cuda"), ValueError, "backend must be one of"),
    (lambda: gmm_update(gmm_step(X, M, C, W), M, C, reg_covar=-1.0), ValueError, "reg_covar must be a finite number"),
    (
        lambda: gmm_update(gmm_step(X, M, C, W), M, torch.ones(3), "spherical"),
        ValueError,
        r"step.scatters has shape \(3, 2\), wanted is \(3,\); give the means",
    ),
    (lambda: GMMStep.merge([]), ValueError, "at least one chunk"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_public_names():
    assert fastdc.gmm_step is gmm_step
    assert fastdc.gmm_update is gmm_update
    assert fastdc.gmm_log_density is gmm_log_density
    assert fastdc.gmm_responsibilities is gmm_responsibilities
