"""Initial centers: what is drawn, from what, and how often."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from fastdc.kernels.kmeans import kmeans_plusplus, nearest_center
from fastdc.kernels.kmeans.numba_kernel import Seeding
from fastdc.kernels.kmeans.seeding import _draw, seed_centers, usable_weights

BACKENDS = ["reference", "numba"]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LEAST_P = 1e-4  # of a test of frequencies with fixed seeds


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 5), (500, 12, 33), (5000, 20, 2)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_kernel_draws_what_the_reference_draws(shape, dtype, weighted):
    n, k, d = shape
    x = torch.randn(n, d).to(dtype)
    weight = torch.rand(n) if weighted else None
    for seed in range(3):
        expected, got = (
            kmeans_plusplus(x, k, sample_weight=weight, random_state=seed, backend=backend) for backend in BACKENDS
        )
        assert torch.equal(got.indices, expected.indices)
        assert torch.equal(got.centers, x[got.indices])
        assert len(got.indices.unique()) == k


@pytest.mark.parametrize("backend", BACKENDS)
def test_frequencies_are_those_of_the_formula(backend):
    """Plain k-means++ (one candidate) on four rows: the pairs' probabilities by hand."""
    x, weight = torch.tensor([[0.0], [1.0], [3.0], [7.0]]), torch.tensor([1.0, 2.0, 1.0, 0.5])
    drawn = [
        kmeans_plusplus(x, 2, sample_weight=weight, n_candidates=1, random_state=s, backend=backend).indices
        for s in range(1500)
    ]
    pairs, counts = torch.stack(drawn).unique(dim=0, return_counts=True)
    observed = np.zeros((4, 4))
    observed[pairs[:, 0], pairs[:, 1]] = counts
    x, weight = x.double(), weight.double()
    mass = weight * (x - x.T).square()
    chance = (weight / weight.sum())[:, None] * mass / mass.sum(1, keepdim=True)
    off_diagonal = ~np.eye(4, dtype=bool)
    assert observed[~off_diagonal].sum() == 0
    assert chisquare(observed[off_diagonal], 1500 * chance.numpy()[off_diagonal]).pvalue > LEAST_P


def test_more_candidates_leave_less_inertia():
    x = torch.randn(2000, 3) + 12 * torch.randint(4, (2000, 3))
    inertia = {
        candidates: np.mean(
            [
                nearest_center(x, kmeans_plusplus(x, 20, n_candidates=candidates, random_state=s).centers)
                .sq_dists.double()
                .sum()
                for s in range(10)
            ]
        )
        for candidates in (1, 8)
    }
    assert inertia[8] < 0.9 * inertia[1]


@pytest.mark.peers("sklearn")
def test_as_good_as_scikit_learn():
    from sklearn.cluster import kmeans_plusplus as sklearn_plusplus

    x = torch.randn(1500, 4) + 9 * torch.randint(3, (1500, 4))

    def inertia(centers):
        return float(nearest_center(x, centers).sq_dists.double().sum())

    ours = [inertia(kmeans_plusplus(x, 15, random_state=s).centers) for s in range(30)]
    theirs = [inertia(torch.from_numpy(sklearn_plusplus(x.numpy(), 15, random_state=s)[0])) for s in range(30)]
    spread = np.hypot(np.std(ours), np.std(theirs)) / np.sqrt(30)
    assert np.mean(ours) < np.mean(theirs) + 3 * spread


@pytest.mark.parametrize("backend", BACKENDS)
def test_T07_fewer_distinct_rows_than_centers(backend):
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]]).repeat(50, 1)
    centers = kmeans_plusplus(x, 7, random_state=0, backend=backend).centers
    assert len(centers[:3].unique(dim=0)) == 3  # distinct ones first
    assert len(centers) == 7


@pytest.mark.parametrize("backend", BACKENDS)
def test_T08_as_many_centers_as_rows(backend):
    x = torch.randn(40, 3)
    assert kmeans_plusplus(x, 40, backend=backend).indices.sort().values.tolist() == list(range(40))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_weight_or_with_nan_are_never_chosen(backend):
    x = torch.randn(60, 3)
    x[0, 1], x[1, 0] = float("nan"), float("inf")
    weight = torch.ones(60)
    weight[2:40] = 0
    for seed in range(5):
        plain = kmeans_plusplus(x, 58, random_state=seed, backend=backend).indices
        assert plain.min() >= 2
        weighted = kmeans_plusplus(x, 20, sample_weight=weight, random_state=seed, backend=backend).indices
        assert weighted.min() >= 40
    with pytest.raises(ValueError, match="no finite row of positive weight"):
        kmeans_plusplus(x[:2], 1, backend=backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_T04_distances_beyond_the_range(dtype):
    x = torch.randn(50, 3, dtype=dtype) * (1e30 if dtype == torch.float32 else 1e300)
    assert kmeans_plusplus(x, 5, random_state=0).centers.isfinite().all()


def test_T43_every_row_can_be_drawn_beyond_2_to_24():
    """The mass lies in the last rows: float32 sums would never reach them evenly."""
    n, n_far = 2**24 + 4096, 2048
    x = torch.zeros(n, 1)
    x[-n_far:] = 1.0
    seeding = Seeding(x, None)
    of_blocks = np.cumsum(seeding.masses(None, [0]))
    assert of_blocks[-1] == n_far
    uniforms = np.random.default_rng(0).random(2000)
    drawn = np.array([_draw(seeding, of_blocks, 0, uniform) for uniform in uniforms])
    assert drawn.min() >= n - n_far
    assert chisquare(np.bincount((drawn - (n - n_far)) // 128, minlength=16)).pvalue > LEAST_P
    first, second = kmeans_plusplus(x, 2, random_state=0).indices.tolist()
    assert first < n - n_far <= second


def test_T43_first_center_comes_from_anywhere():
    """Weights of one: the index itself, in sixteenths of 2^25 rows, without a pass over them."""

    class Nothing:
        block = 64

        def masses(self, winner, candidates):
            return np.zeros((1, 1))

    n = 2**25
    draws = np.random.default_rng(0).random((800, 1, 1))
    first = [seed_centers(Nothing(), np.empty(0), n, uniforms)[0] for uniforms in draws]
    assert chisquare(np.bincount(np.array(first) * 16 // n, minlength=16)).pvalue > LEAST_P


def test_random_state():
    x = torch.randn(300, 4)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    fixed = [kmeans_plusplus(x, 6, random_state=3).indices for _ in range(2)]
    assert torch.equal(*fixed)
    assert not torch.equal(kmeans_plusplus(x, 6).indices, kmeans_plusplus(x, 6).indices)
    for make in (np.random.default_rng, np.random.RandomState):
        generator, again = make(0), make(0)
        one, two = (kmeans_plusplus(x, 6, random_state=generator).indices for _ in range(2))
        assert not torch.equal(one, two)
        assert torch.equal(one, kmeans_plusplus(x, 6, random_state=again).indices)
    assert np.array_equal(before[0], np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(before[1], torch.get_rng_state())


def test_usable_weights():
    assert usable_weights(torch.ones(3, 2), None) is None
    x = torch.tensor([[1.0], [torch.nan], [2.0]])
    assert usable_weights(x, None).tolist() == [1.0, 0.0, 1.0]
    assert usable_weights(x, torch.tensor([0.5, 9.0, 0.0])).tolist() == [0.5, 0.0, 0.0]


BAD = [
    (dict(n_clusters=0), ValueError, "n_clusters must be at least 1, got 0"),
    (dict(n_clusters=2.5), TypeError, "n_clusters must be an integer, got 2.5 of type float"),
    (dict(n_clusters=True), TypeError, "n_clusters must be an integer, got True"),
    (dict(n_clusters=4), ValueError, "n_clusters=4 must be at most n_samples=3"),
    (dict(n_candidates=0), ValueError, "n_candidates must be at least 1"),
    (dict(random_state=-1), ValueError, "random_state must be None, an integer of at least 0"),
    (dict(random_state="seed"), ValueError, "random_state must be None"),
    (dict(sample_weight=torch.ones(2)), ValueError, r"sample_weight must have shape \(3,\)"),
    (dict(x=torch.full((3, 2), torch.nan), check_finite=True), ValueError, "Input x contains NaN"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input(options, error, message):
    arguments = {"x": torch.zeros(3, 2), "n_clusters": 2, **options}
    with pytest.raises(error, match=message):
        kmeans_plusplus(arguments.pop("x"), arguments.pop("n_clusters"), **arguments)
