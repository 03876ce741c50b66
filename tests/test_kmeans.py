"""Nearest centers and the pass of Lloyd's algorithm on CPUs; Triton's kernels have a file of their own."""

import warnings

import numpy as np
import pytest
import torch

from fastdc.kernels._accuracy import assert_not_worse_than_torch
from fastdc.kernels.kmeans import (
    KMeansStep,
    center_update,
    kmeans_plusplus,
    kmeans_step,
    nearest_center,
)

BACKENDS = ["reference", "numba"]
SHAPES = [  # n, k, d: ones, primes, either side of a tile, of differences, of a vector and of gemm's chain
    (1, 1, 1),
    (7, 3, 5),
    (257, 10, 33),
    (320, 129, 64),
    (130, 300, 3),
    (64, 5, 300),
    (65, 127, 17),
    (100, 7, 8),
    (100, 7, 9),
]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def name_shape(shape):
    return "N{}-K{}-D{}".format(*shape)


def make_points(n, k, d, dtype=torch.float32, offset=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator) + offset
    centers = torch.randn(k, d, generator=generator) + offset
    return x.to(dtype), centers.to(dtype)


def sq_dists_of(x, centers):
    return (x.double()[:, None] - centers.double()).square().sum(2)


def assert_steps_agree(got, expected):
    assert torch.equal(got.labels, expected.labels)
    assert torch.equal(got.n_changed, expected.n_changed)
    for name in ("sums", "counts", "inertia"):
        assert torch.allclose(getattr(got, name), getattr(expected, name), rtol=1e-6, atol=1e-7), name


# --- cases by hand and by independent formulas


@pytest.mark.parametrize("backend", BACKENDS)
def test_nearest_by_hand(backend):
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 9.0]])
    labels, sq_dists = nearest_center(x, torch.tensor([[0.0, 1.0], [3.0, 3.0]]), backend=backend)
    assert labels.tolist() == [0, 1, 1]
    assert sq_dists.tolist() == [1.0, 1.0, 45.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_step_by_hand(backend):
    x = torch.tensor([[0.0], [1.0], [5.0]])
    step = kmeans_step(
        x,
        torch.tensor([[0.0], [4.0], [90.0]]),
        sample_weight=torch.tensor([1.0, 2.0, 3.0]),
        previous_labels=torch.tensor([0, 1, 1]),
        backend=backend,
    )
    assert step.labels.tolist() == [0, 0, 1]
    assert step.sums.tolist() == [[2.0], [15.0], [0.0]]
    assert step.counts.tolist() == [3.0, 3.0, 0.0]
    assert (step.inertia.item(), step.n_changed.item()) == (5.0, 1)


@pytest.mark.parametrize("shape", SHAPES, ids=name_shape)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_labels_are_those_of_float64(shape, dtype):
    x, centers = make_points(*shape, dtype=dtype)
    truth = sq_dists_of(x, centers)
    got = nearest_center(x, centers, backend="numba")
    assert torch.equal(got.labels, truth.argmin(1))
    plain = nearest_center(x, centers, backend="reference")
    chosen = truth.gather(1, plain.labels[:, None])[:, 0]
    assert bool((chosen <= truth.amin(1) * (1 + 1e-5)).all())
    assert got.sq_dists.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_not_worse_than_torch([(got.sq_dists, plain.sq_dists, truth.amin(1))], factor=2, dtype=got.sq_dists.dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=name_shape)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_step_is_its_definition(shape, dtype, backend):
    n, k, d = shape
    x, centers = make_points(*shape, dtype=dtype)
    weight = torch.rand(n, generator=torch.Generator().manual_seed(1))
    previous = torch.zeros(n, dtype=torch.int64)
    step = kmeans_step(x, centers, sample_weight=weight, previous_labels=previous, backend=backend)
    labels, sq_dists = nearest_center(x, centers, backend=backend)
    assert torch.equal(step.labels, labels)
    sums, counts = np.zeros((k, d)), np.zeros(k)
    np.add.at(sums, labels.numpy(), (weight.double()[:, None] * x.double()).numpy())
    np.add.at(counts, labels.numpy(), weight.double().numpy())
    assert np.allclose(step.sums, sums, rtol=1e-12)
    assert np.allclose(step.counts, counts, rtol=1e-12)
    assert step.inertia.item() == pytest.approx((weight * sq_dists).double().sum().item(), rel=1e-6)
    assert step.n_changed.item() == (labels != 0).sum().item()
    assert step.sums.dtype == step.counts.dtype == step.inertia.dtype == torch.float64


@pytest.mark.parametrize("d", [4, 24])
def test_rows_between_centers_are_decided_exactly(d):
    """Every row is as near to two centers as rounding allows, so that every label is decided by differences."""
    _, centers = make_points(1, 40, d)
    generator = torch.Generator().manual_seed(2)
    pairs = torch.randint(40, (600, 2), generator=generator)
    x = (centers[pairs[:, 0]] + centers[pairs[:, 1]]) / 2 + torch.randn(600, d, generator=generator) * 1e-7
    assert torch.equal(nearest_center(x, centers).labels, sq_dists_of(x, centers).argmin(1))


def test_mixed_dtypes_compute_in_the_wider_one():
    x, centers = make_points(50, 4, 12)
    got = nearest_center(x, centers.double())
    assert got.sq_dists.dtype == torch.float64
    assert torch.allclose(got.sq_dists, sq_dists_of(x, centers).amin(1), rtol=1e-12)
    assert torch.equal(nearest_center(x.half(), centers).labels, nearest_center(x.half().float(), centers).labels)


# --- invariances


def test_T44_threads_do_not_change_a_bit():
    x, centers = make_points(20_000, 30, 11)
    weight = torch.rand(20_000)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append([*kmeans_step(x, centers, sample_weight=weight), *kmeans_plusplus(x, 9, random_state=0)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("backend", BACKENDS)
def test_chunks_add_up(backend):
    x, centers = make_points(300, 6, 13)
    previous = torch.randint(6, (300,))
    weight = torch.rand(300)
    whole = kmeans_step(x, centers, sample_weight=weight, previous_labels=previous, backend=backend)
    parts = [
        kmeans_step(
            x[i : i + 70],
            centers,
            sample_weight=weight[i : i + 70],
            previous_labels=previous[i : i + 70],
            backend=backend,
        )
        for i in range(0, 300, 70)
    ]
    assert_steps_agree(KMeansStep.merge(parts), whole)


def test_row_order_does_not_matter():
    x, centers = make_points(500, 9, 20)
    order = torch.randperm(500)
    step, permuted = kmeans_step(x, centers), kmeans_step(x[order], centers)
    assert torch.equal(permuted.labels, step.labels[order])
    assert torch.allclose(permuted.sums, step.sums, rtol=1e-12, atol=1e-12)


def test_weights_of_one_are_no_weights():
    x, centers = make_points(500, 9, 20)
    plain, weighted = kmeans_step(x, centers), kmeans_step(x, centers, sample_weight=torch.ones(500))
    assert all(torch.equal(a, b) for a, b in zip(plain, weighted))


def test_whole_weights_are_repeated_rows():
    x, centers = make_points(200, 5, 12)
    repeats = torch.randint(0, 4, (200,))
    weighted = kmeans_step(x, centers, sample_weight=repeats)
    repeated = kmeans_step(x.repeat_interleave(repeats, dim=0), centers)
    for name in ("sums", "counts", "inertia"):
        assert torch.allclose(getattr(weighted, name), getattr(repeated, name), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_T20_strides(dtype):
    x, centers = make_points(100, 6, 20, dtype)
    expected = kmeans_step(x, centers)
    wide = torch.zeros(200, 40, dtype=dtype)
    wide[::2, ::2] = x
    for view in (wide[::2, ::2], x.t().contiguous().t()):
        assert not view.is_contiguous()
        assert all(torch.equal(a, b) for a, b in zip(kmeans_step(view, centers), expected))
    row = x[:1].expand(100, 20)
    assert nearest_center(row, centers).labels.unique().tolist() == expected.labels[:1].tolist()


# --- torture


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("d", [4, 20])
def test_T03_a_row_with_nan(backend, d):
    x, centers = make_points(70, 5, d)
    clean = kmeans_step(x[3:], centers, backend=backend)
    x[0, 1], x[1, 2], x[2] = float("nan"), float("inf"), 3e19
    labels, sq_dists = nearest_center(x, centers, backend=backend)
    assert labels[:3].tolist() == [-1, -1, -1]
    assert sq_dists[0].isnan()
    assert sq_dists[1:3].tolist() == [float("inf")] * 2
    step = kmeans_step(x, centers, backend=backend)
    assert torch.equal(step.labels[3:], clean.labels)
    for name in ("sums", "counts", "inertia"):
        assert torch.allclose(getattr(step, name), getattr(clean, name), rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_center_with_nan_is_nearest_to_nothing(backend):
    x, centers = make_points(70, 5, 20)
    centers[2, 3] = float("nan")
    others = torch.tensor([0, 1, 3, 4])
    expected = others[sq_dists_of(x, centers[others]).argmin(1)]
    assert torch.equal(nearest_center(x, centers, backend=backend).labels, expected)
    nothing = nearest_center(x, centers[2:3], backend=backend)
    assert nothing.labels.unique().tolist() == [-1]
    assert bool(nothing.sq_dists.isinf().all())


@pytest.mark.parametrize("scale", [1e18, 1e-18, 1e-22, 1e-40])
def test_T05_huge_and_tiny_numbers(scale):
    x, centers = make_points(300, 20, 24)
    x, centers = x * scale, centers * scale
    assert torch.equal(nearest_center(x, centers).labels, sq_dists_of(x, centers).argmin(1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_T05_zeros(backend):
    step = kmeans_step(torch.zeros(70, 20), torch.zeros(3, 20), backend=backend)
    assert step.labels.unique().tolist() == [0]
    assert step.inertia.item() == 0.0


@pytest.mark.parametrize("d", [1, 3, 64, 4096, 100_003])
def test_T14_any_number_of_features(d):
    x, centers = make_points(20, 6, d)
    assert torch.equal(nearest_center(x, centers).labels, sq_dists_of(x, centers).argmin(1))


def test_many_centers():
    x, centers = make_points(70, 20_000, 12)
    assert torch.equal(nearest_center(x, centers).labels, sq_dists_of(x, centers).argmin(1))


def test_no_matrix_of_rows_and_centers(run_python):
    """It would take 2 GB here, as float32."""
    grown = run_python(
        "import resource, torch\n"
        "from fastdc.kernels.kmeans import kmeans_step\n"
        "x, centers = torch.randn(100_000, 4), torch.randn(5000, 4)\n"
        "kmeans_step(x[:100], centers)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "kmeans_step(x, centers)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    assert int(grown) < 64 * 1024  # kB


@pytest.mark.parametrize("offset", [1e4, 1e6, -3e7])
def test_T15_large_offset(offset):
    x, centers = make_points(500, 12, 24, offset=offset)
    assert torch.equal(nearest_center(x, centers).labels, sq_dists_of(x, centers).argmin(1))
    step = kmeans_step(x, centers)
    new = center_update(step.sums, step.counts, centers.double())
    for j in step.counts.nonzero()[:, 0]:
        assert torch.allclose(new[j], x[step.labels == j].double().mean(0), rtol=1e-13)


def test_T16_half_rows_with_norms_beyond_their_range():
    x, centers = make_points(200, 7, 128)
    x, centers = (x * 60).half(), (centers * 60).half()
    assert bool((x.float().square().sum(1) > 65504).all())
    assert torch.equal(nearest_center(x, centers).labels, sq_dists_of(x, centers).argmin(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_T17_sums_of_millions_of_rows(dtype):
    x = torch.full((1, 2), 3.0, dtype=dtype).expand(2**24 + 1, 2)
    step = kmeans_step(x, torch.tensor([[1.0, 1.0], [900.0, 0.0]]))
    assert step.counts.tolist() == [2**24 + 1, 0]
    assert step.sums.tolist() == [[3.0 * (2**24 + 1)] * 2, [0.0, 0.0]]
    assert step.inertia.item() == 8.0 * (2**24 + 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_T19_ties_go_to_the_lowest_index(backend):
    ties = torch.cat([torch.eye(20), -torch.eye(20)])
    assert nearest_center(torch.zeros(70, 20), ties, backend=backend).labels.unique().tolist() == [0]
    x, centers = make_points(100, 140, 12)
    doubled = torch.cat([centers, centers])
    assert torch.equal(
        nearest_center(x, doubled, backend=backend).labels, nearest_center(x, centers, backend=backend).labels
    )
    few = centers[:, :2].repeat(3, 1)
    assert nearest_center(x[:, :2], few, backend=backend).labels.max() < 140


def test_T21_read_only_memory():
    array = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch says so, once a process
        x = torch.from_numpy(array)
    before = array.copy()
    kmeans_step(x, x[:3].clone())
    assert np.array_equal(before, array)


def test_T25_inference_mode_and_detached_results():
    x, centers = make_points(50, 3, 4)
    with torch.inference_mode():
        assert nearest_center(x, centers).labels.shape == (50,)
        assert kmeans_plusplus(x * 1.0, 3).indices.shape == (3,)
    step = kmeans_step(x.requires_grad_(), centers.requires_grad_())
    assert not step.sums.requires_grad
    assert not center_update(step.sums, step.counts, centers).requires_grad


def test_poisoned_memory(monkeypatch):
    """Every element of a result is written: uninitialised memory is filled with NaN here."""
    original = np.empty

    def poisoned(shape, dtype=float, **options):
        array = original(shape, dtype, **options)
        if array.dtype.kind == "f":
            array.fill(np.nan)
        return array

    monkeypatch.setattr(np, "empty", poisoned)
    for d in (5, 20):
        x, centers = make_points(131, 7, d)
        truth = sq_dists_of(x, centers)
        step = kmeans_step(x, centers)
        assert torch.equal(step.labels, truth.argmin(1))
        assert torch.allclose(step.inertia, truth.amin(1).sum(), rtol=1e-6)
        assert bool(kmeans_plusplus(x, 7).centers.isfinite().all())
