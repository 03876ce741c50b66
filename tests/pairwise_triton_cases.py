"""Values of the GPU kernels of the pairwise room; run by ``test_pairwise_triton.py`` in a process of its own."""

import math
import os

import pytest
import torch

from fastdc.kernels import pairwise
from fastdc.kernels._accuracy import relative_error
from fastdc.kernels.pairwise import triton_kernel
from tests.pairwise_cases import loss_and_gradient, make_clusters, make_features, others_of, working

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
SHAPES = [(70, 3, 4), (100, 20, 3)]  # rows, features, clusters: by differences, and by product where that is asked for
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}

# the interpreter's numpy warns where a GPU is silent: infinity less infinity
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(params=["ieee", "tf32x3"])
def precision(request, monkeypatch):
    """Both forms of the distances; the interpreter would choose the first alone."""
    monkeypatch.setattr(
        triton_kernel, "resolve_precision", lambda p, b, x: "ieee" if x.dtype == torch.float64 else request.param
    )
    return request.param


def skip_twins(dtype, precision):
    if dtype == torch.float64 and precision != "ieee":
        pytest.skip("float64 goes by differences in either case")


def name_shape(shape):
    return "N{}-D{}-K{}".format(*shape)


def both(op, *arguments):
    """The results of the kernel, and of the reference in float64."""
    moved = [a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in arguments]
    got = getattr(pairwise, op)(*moved, backend="triton")
    wide = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]
    expected = getattr(pairwise, op)(*wide, backend="reference")
    if isinstance(got, torch.Tensor):
        return [(got.cpu(), expected)]
    return [(g.cpu(), e) for g, e in zip(got, expected)]


@pytest.mark.parametrize("shape", SHAPES, ids=name_shape)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_clusters_match(shape, dtype, precision):
    skip_twins(dtype, precision)
    x, labels = make_clusters(*shape, dtype)
    k = shape[2]
    tolerance = TOLERANCE[working(dtype)]
    ((s, expected),) = both("silhouette_coefficients", x, labels, k)
    assert s.dtype == working(dtype)
    assert relative_error(s, expected) < tolerance
    for got, expected in both("center_distances", x, x[:k].clone(), labels):
        assert relative_error(got, expected) < tolerance
    positive, negative, far, near = both("hardest_pairs", x, labels)
    assert relative_error(*far) < tolerance
    assert relative_error(*near) < tolerance
    if dtype != torch.bfloat16:  # whose coarse coordinates tie
        assert torch.equal(*positive)
        assert torch.equal(*negative)


@pytest.mark.parametrize("shape", SHAPES, ids=name_shape)
def test_dispersion_matches(shape):
    x, labels = make_clusters(*shape)
    for got, expected in both("cluster_dispersion", x, labels, shape[2] + 1):
        assert got.dtype == expected.dtype
        assert relative_error(got, expected) < 1e-12


def test_T42_singletons_empty_clusters_and_equal_rows(precision):
    x, labels = make_clusters(60, 20, 3)
    labels[10] = 4
    ((s, expected),) = both("silhouette_coefficients", x, labels, 5)
    assert s[10] == 0
    assert relative_error(s, expected) < 2e-6
    x[:] = 1.5
    assert (both("silhouette_coefficients", x, labels, 5)[0][0] == 0).all()


def test_T15_far_from_the_origin(precision):
    x, labels = make_clusters(80, 20, 3, offset=1e6)
    ((s, expected),) = both("silhouette_coefficients", x, labels, 3)
    assert relative_error(s, expected) < 2e-6
    _, _, far, near = both("hardest_pairs", x, labels)
    assert relative_error(*far) < 2e-6
    assert relative_error(*near) < 2e-6


def test_T19_of_equally_far_rows_the_first():
    x = torch.zeros(100, 4)
    x[50:] = 1.0
    labels = torch.arange(100) // 50
    for got, expected in both("hardest_pairs", x, labels):
        assert torch.equal(got.double(), expected.double())


def test_T16_infinitely_far_rows_are_chosen_too():
    x, labels = torch.tensor([[0.0], [3e30], [1e30], [-2e30]]), torch.tensor([0, 0, 1, 1])
    positive, negative, far, near = both("hardest_pairs", x, labels)
    assert positive[0].tolist() == [1, 0, 3, 2]
    assert negative[0].tolist() == [2, 2, 0, 0]
    assert (far[0] == math.inf).all()
    assert (near[0] == math.inf).all()


def test_no_negatives_and_no_positives():
    x = torch.randn(5, 3)
    for labels in (torch.zeros(5, dtype=torch.int64), torch.arange(5)):
        for got, expected in both("hardest_pairs", x, labels):
            assert torch.allclose(got.double(), expected.double(), rtol=1e-6)


def test_nan_is_not_hidden():
    x, labels = make_clusters(60, 4, 3)
    x[50, 2] = math.nan
    assert both("silhouette_coefficients", x, labels, 3)[0][0].isnan().all()
    for got, expected in both("hardest_pairs", x, labels):
        assert torch.allclose(got.double(), expected.double(), rtol=1e-6, equal_nan=True)
    x[:] = 0.0
    x[50] = math.nan
    assert both("silhouette_coefficients", x, labels, 3)[0][0].isnan().all()


def test_strides():
    x, labels = make_clusters(60, 20, 3)
    wide = torch.zeros(120, 40)
    wide[::2, ::2] = x
    for op in ("silhouette_coefficients", "hardest_pairs"):
        arguments = (labels, 3) if op == "silhouette_coefficients" else (labels,)
        for (a, _), (b, _) in zip(both(op, wide[::2, ::2], *arguments), both(op, x, *arguments)):
            assert torch.equal(a, b)


# --- losses


def bce_by_others(f, labels, **options):
    """Of the pairs of other rows than f's."""
    return pairwise.pairwise_bce(f, labels, chosen_by=others_of(f), **options)


LOSSES = {  # the op, its input and its options
    "bce_by_labels": (pairwise.pairwise_bce, make_features, {"eps": 1e-2}),  # 1 - g is small, and rounded
    "bce_by_thresholds": (pairwise.pairwise_bce, make_features, {"upper": 0.9, "lower": 0.4}),
    "bce_by_others": (bce_by_others, make_features, {"upper": 0.9, "lower": 0.4, "eps": 1e-2}),
    "soft_nearest_neighbors": (pairwise.soft_nearest_neighbor_loss, make_clusters, {"temperature": 4.0}),
    "triplets": (pairwise.triplet_loss, make_clusters, {}),
}


WITHOUT_LABELS = ("bce_by_thresholds", "bce_by_others")


def both_losses(name, x, labels):
    """(loss, gradient) of the kernel, and of the reference in float64."""
    op, _, options = LOSSES[name]
    given = None if name in WITHOUT_LABELS else labels
    expected = loss_and_gradient(op, x.double(), given, **options, backend="reference")
    moved = None if given is None else given.to(DEVICE)
    got = loss_and_gradient(op, x.to(DEVICE), moved, **options, backend="triton")
    return [t.cpu() for t in got], expected


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((70, 3, 4), torch.float64),
        ((70, 3, 4), torch.float32),
        ((90, 20, 3), torch.float32),
        ((70, 20, 3), torch.float16),
    ],
    ids=str,
)
def test_losses_match(name, shape, dtype, precision):
    skip_twins(dtype, precision)
    x, labels = LOSSES[name][1](*shape, dtype)
    labels[1] = -1
    (loss, gradient), (expected, expected_gradient) = both_losses(name, x, labels)
    assert loss.dtype == working(dtype)
    assert float((loss - expected).abs()) < 20 * TOLERANCE[loss.dtype] * float(expected)
    if dtype != torch.float16:  # whose rows tie, and whose gradients are rounded
        assert relative_error(gradient, expected_gradient) < 20 * TOLERANCE[loss.dtype]


@pytest.mark.parametrize("name", LOSSES)
def test_T15_T05_losses_of_rows_far_away_and_equal(name, precision):
    x, labels = make_clusters(70, 20, 3, offset=1e6 if "bce" not in name else 1.0)
    x[30:40] = x[30]
    (loss, gradient), (expected, expected_gradient) = both_losses(name, x, labels)
    assert float((loss - expected).abs()) < 2e-5 * float(expected)
    if "bce" not in name:  # equal rows of different clusters: 1 - g is rounding against eps
        assert relative_error(gradient, expected_gradient) < 2e-5


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_nothing_and_of_nan(name):
    alone = torch.arange(5) if "bce" not in name else torch.full((5,), -1)
    if name not in WITHOUT_LABELS:
        (loss, gradient), _ = both_losses(name, torch.eye(5), alone)
        assert loss == 0
        assert (gradient == 0).all()
    x, labels = LOSSES[name][1](40, 4, 3)
    x[7, 1] = math.nan
    assert both_losses(name, x, labels)[0][0].isnan()


def test_exponents_beyond_every_power():
    x, labels = make_clusters(60, 3, 2, torch.float64)
    mixed = (x + 1e3 * (torch.arange(60) // 2 % 3)[:, None]).float()
    (loss, _), (expected, _) = both_losses("soft_nearest_neighbors", mixed, labels)
    assert float((loss - expected).abs()) < 2e-6 * float(expected)
