"""Assignment under capacities, against SciPy's optimum."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from fastdc import balanced_assignment
from fastdc.kernels.kmeans import balanced, nearest_center

SHAPES = [(1, 1, 1), (7, 3, 5), (100, 5, 2), (257, 10, 33), (401, 60, 20)]  # n, k, d
DATA = ["normal", "heavy", "skewed", "duplicates", "equal", "far", "offset"]


def make_points(kind, n, k, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator)
    if kind == "heavy":
        x = x * torch.exp(1.5 * torch.randn(n, 1, generator=generator))
    if kind == "skewed":  # two tight groups, nine of ten rows in one of them
        x = 0.05 * x + 10.0 * (torch.rand(n, 1, generator=generator) < 0.1)
    if kind == "duplicates":
        x = x[: -(-n // 20)].repeat(20, 1)[:n]
    if kind == "equal":
        x = torch.zeros(n, d)
    if kind == "offset":
        x = x + 1e4
    centers = x[:k] + 0.01 * torch.randn(k, d, generator=generator)
    if kind == "far":
        centers = centers + 50.0
    return x, centers


def optimum(x, centers, capacities):
    sq_dists = (x.double()[:, None] - centers.double()).square().sum(2).numpy()
    places = np.repeat(np.arange(len(centers)), np.minimum(capacities, len(x)))
    rows, chosen = linear_sum_assignment(sq_dists[:, places])
    return sq_dists[rows, places[chosen]].sum()


def check(x, centers, capacity=None):
    found = balanced_assignment(x, centers, capacity)
    n, k = len(x), len(centers)
    capacities = np.full(k, -(-n // k)) if capacity is None else np.broadcast_to(capacity, k)
    assert bool((np.bincount(found.labels, minlength=k) <= capacities).all())
    cost = (x.double() - centers.double()[found.labels]).square().sum().item()
    assert found.cost.item() == pytest.approx(cost, rel=1e-9)
    best = optimum(x, centers, capacities)
    assert 0.0 <= found.gap.item() <= 1e-3
    assert cost <= 1.0011 * best
    assert (1.0 - found.gap.item()) * cost <= best * (1 + 1e-5)
    assert found.prices.min().item() == 0.0
    return found


def test_by_hand():
    x = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    found = balanced_assignment(x, torch.tensor([[1.0], [8.0]]))
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.cost.item() == 38.0
    assert 34.0 <= (found.prices[0] - found.prices[1]).item() + 0.1 <= 48.2  # where row 2 changes, and where row 1 does


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_near_the_optimum(kind, shape):
    check(*make_points(kind, *shape))


@pytest.mark.parametrize("shape", [(1901, 100, 16), (2000, 20, 3)], ids=str)
@pytest.mark.parametrize("kind", ["normal", "duplicates"])
def test_near_the_optimum_of_many_rows(kind, shape):
    check(*make_points(kind, *shape))


@pytest.mark.parametrize("seed", range(12))
def test_near_the_optimum_whatever_the_draw(seed):
    random = np.random.default_rng(seed)
    n, k, d = int(random.integers(50, 500)), int(random.integers(2, 40)), int(random.integers(1, 40))
    x, centers = make_points(DATA[seed % len(DATA)], n, k, d, seed)
    weights = random.random(k) ** 3  # capacities of every size, among them none
    capacities = torch.from_numpy((weights / weights.sum() * n * random.uniform(1.0, 3.0)).astype(np.int64))
    capacities[0] += max(0, n - int(capacities.clamp(max=n).sum()))
    check(x, centers, capacities)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes(dtype):
    x, centers = make_points("normal", 300, 7, 20)
    check(x.to(dtype), centers.to(dtype))


def test_room_for_all_is_the_nearest_center():
    x, centers = make_points("normal", 500, 8, 12)
    found = balanced_assignment(x, centers, 500)
    assert found.cost.item() == pytest.approx(nearest_center(x, centers).sq_dists.double().sum().item(), rel=1e-5)
    assert found.gap.item() <= 1e-3


def test_prices_assign_the_rows():
    x, centers = make_points("heavy", 1000, 9, 6)
    found = balanced_assignment(x, centers, tol=1e-5)
    reduced = (x[:, None] - centers).square().sum(2).double() + found.prices
    own = reduced.gather(1, found.labels[:, None])[:, 0]
    assert (own - reduced.amin(1)).sum().item() <= 1e-4 * found.cost.item()


def test_full_and_exact_capacities():
    x, centers = make_points("normal", 60, 3, 4)
    sizes = torch.tensor([1, 0, 59])
    assert torch.bincount(balanced_assignment(x, centers, sizes).labels, minlength=3).tolist() == [1, 0, 59]


def test_T44_threads_strides_and_memory_do_not_change_a_bit():
    x, centers = make_points("normal", 3000, 30, 11)
    expected = balanced_assignment(x, centers)
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(balanced_assignment(x, centers), expected))
    wide = torch.zeros(6000, 22)
    wide[::2, ::2] = x
    assert all(torch.equal(a, b) for a, b in zip(balanced_assignment(wide[::2, ::2], centers), expected))


def test_no_matrix_of_rows_and_centers(run_python):
    """It would take 800 MB here, as float32."""
    grown = run_python(
        "import resource, torch\n"
        "from fastdc import balanced_assignment\n"
        "x = torch.randn(100_000, 2)\n"
        "balanced_assignment(x[:100], x[:10].clone())\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "balanced_assignment(x, x[:2000].clone(), 90, tol=0.5)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    assert int(grown) < 64 * 1024  # kB


# --- torch's operators, bad input


def test_opcheck():
    x, centers = make_points("normal", 30, 4, 5)
    torch.library.opcheck(balanced.BALANCED, (x, centers, torch.full((4,), 9), 1e-3))


def test_compiles_into_one_graph():
    x, centers = make_points("normal", 60, 4, 5)

    def assign(x, centers):
        return balanced_assignment(x * 1.0, centers)[:3]

    compiled = torch.compile(assign, fullgraph=True, backend="aot_eager")
    for eager, graph in zip(assign(x, centers), compiled(x, centers)):
        assert torch.equal(eager, graph)


BAD = [
    (dict(x=np.zeros((3, 2))), TypeError, "x must be a torch.Tensor, got ndarray"),
    (dict(centers=torch.zeros(2, 3)), ValueError, "centers has 3 features but x has 2"),
    (dict(capacity=1), ValueError, "capacity has room for 2 rows but x has 3; raise it, or leave it None for ceil"),
    (dict(capacity=-1), ValueError, "capacity must be 0 or above, got -1"),
    (dict(capacity=1.5), TypeError, "capacity must be an integer, a tensor of integers or None, got float"),
    (dict(capacity=torch.ones(2)), TypeError, "capacity must hold integers, got torch.float32"),
    (
        dict(capacity=torch.ones(3).long()),
        ValueError,
        r"capacity must have shape \(2,\), one entry for each of the clu",
    ),
    (dict(tol=0.0), ValueError, "tol must be a finite number above 0, got 0.0"),
    (dict(x=torch.tensor([[1.0, torch.nan]] * 3)), ValueError, "Input x contains NaN: 3 such"),
    (
        dict(x=torch.full((3, 2), 1e19)),
        ValueError,
        "x and centers are so large that squared distances overflow float32",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input(options, error, message):
    arguments = {"x": torch.zeros(3, 2), "centers": torch.zeros(2, 2), **options}
    with pytest.raises(error, match=message):
        balanced_assignment(**arguments)
