"""The GPU kernels of the kmeans room against those of the CPU. Run by test_kmeans_triton.py, with the interpreter."""

import pytest
import torch

from fastdc.kernels.kmeans import custom_ops, kmeans_plusplus, kmeans_step, nearest_center, triton_kernel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(1, 1, 1), (7, 3, 5), (130, 10, 33), (140, 129, 64), (65, 127, 17)]  # n, k, d
HALVES = [torch.float64, torch.float16, torch.bfloat16]
CASES = [(torch.float32, shape) for shape in SHAPES] + [(dtype, s) for dtype in HALVES for s in SHAPES[1:3]]

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes with numpy


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def make_points(n, k, d, dtype=torch.float32):
    return torch.randn(n, d).to(dtype).to(DEVICE), torch.randn(k, d).to(dtype).to(DEVICE)


def sq_dists_of(x, centers):
    return (x.double()[:, None] - centers.double()).square().sum(2)


@pytest.fixture
def _poisoned(monkeypatch):
    """Uninitialised memory is filled with NaN and nonsense."""
    original = torch.empty

    def poisoned(*size, **options):
        tensor = original(*size, **options)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor.fill_(77)

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.mark.usefixtures("_poisoned")
@pytest.mark.parametrize(("dtype", "shape"), CASES)
def test_labels_are_those_of_float64(dtype, shape):
    x, centers = make_points(*shape, dtype)
    truth = sq_dists_of(x, centers)
    got = nearest_center(x, centers, backend="triton")
    assert torch.equal(got.labels, truth.argmin(1))
    assert torch.allclose(got.sq_dists.double(), truth.amin(1), rtol=1e-5)


@pytest.mark.usefixtures("_poisoned")
@pytest.mark.parametrize(("dtype", "shape"), CASES)
@pytest.mark.parametrize("weighted", [False, True])
def test_step_matches(dtype, shape, weighted):
    x, centers = make_points(*shape, dtype)
    weight = torch.rand(len(x), device=DEVICE) if weighted else None
    previous = torch.randint(len(centers), (len(x),), device=DEVICE)
    step = kmeans_step(x, centers, sample_weight=weight, previous_labels=previous, backend="triton")
    plain = kmeans_step(x, centers, sample_weight=weight, previous_labels=previous, backend="reference")
    assert torch.equal(step.labels, plain.labels)
    assert torch.equal(step.n_changed, plain.n_changed)
    for name in ("sums", "counts", "inertia"):
        assert torch.allclose(getattr(step, name), getattr(plain, name), rtol=1e-6, atol=1e-9), name


@pytest.mark.usefixtures("_poisoned")
@pytest.mark.parametrize(("dtype", "shape"), [*CASES[:3], *CASES[5:]])
@pytest.mark.parametrize("weighted", [False, True])
def test_plusplus_draws_what_the_reference_draws(dtype, shape, weighted):
    x, _ = make_points(*shape, dtype)
    weight = torch.rand(len(x), device=DEVICE) if weighted else None
    got, expected = (
        kmeans_plusplus(x, min(shape[1], 5), sample_weight=weight, random_state=3, backend=backend).indices
        for backend in ("triton", "reference")
    )
    assert torch.equal(got, expected)


def test_clusters_of_many_pieces_and_of_none():
    """Most rows in one cluster, some clusters empty, rows without a label; the same bits again."""
    x = torch.randn(1500, 3, device=DEVICE)
    x[300:], x[::500, 1] = 9.0, torch.nan
    rows = [[50.0, 0, 0], [0, 0, 0], [9.0, 9, 9], [-50.0, 0, 0], [1.0, 0, 0]]
    centers = torch.tensor(rows, device=DEVICE)
    step, again = (kmeans_step(x, centers, backend="triton") for _ in range(2))
    plain = kmeans_step(x, centers, backend="reference")
    assert torch.equal(step.labels, plain.labels)
    assert torch.equal(step.counts, plain.counts)
    assert torch.allclose(step.sums, plain.sums, rtol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(step, again))


def test_T03_rows_and_centers_with_nan():
    x, centers = make_points(40, 5, 20)
    x[0, 1], x[1, 2], x[2], centers[1, 1] = torch.nan, torch.inf, 3e19, torch.nan
    got, plain = (nearest_center(x, centers, backend=backend) for backend in ("triton", "reference"))
    assert torch.equal(got.labels, plain.labels)
    assert got.labels[:3].tolist() == [-1, -1, -1]
    assert torch.equal(got.sq_dists.isnan(), plain.sq_dists.isnan())
    assert got.sq_dists[1:3].isinf().all()


def test_T07_fewer_distinct_rows_than_centers():
    x = torch.tensor([[0.0], [1.0], [2.0]], device=DEVICE).repeat(50, 1)
    assert len(kmeans_plusplus(x, 6, random_state=0, backend="triton").centers[:3].unique()) == 3


def test_T15_large_offset():
    x = torch.randn(200, 20, device=DEVICE) + 1e6
    truth = sq_dists_of(x, x[:10])
    assert torch.equal(nearest_center(x, x[:10], backend="triton").labels, truth.argmin(1))


def test_T19_ties_go_to_the_lowest_index():
    ties = torch.cat([torch.eye(20), -torch.eye(20)]).to(DEVICE)
    zeros = torch.zeros(70, 20, device=DEVICE)
    assert nearest_center(zeros, ties, backend="triton").labels.unique().tolist() == [0]


def test_T20_strides_and_rows_between_centers():
    _, centers = make_points(1, 40, 24)
    x = (centers[torch.randint(40, (100,))] + centers[torch.randint(40, (100,))]) / 2
    truth = sq_dists_of(x, centers)
    for view in (x, x.t().contiguous().t()):
        assert torch.equal(nearest_center(view, centers, backend="triton").labels, truth.argmin(1))


def far_apart(x):
    """A copy whose columns are so far apart that their places need 64 bits."""
    columns = 2**31 // (x.shape[1] - 1) + 1
    try:
        room = x.new_empty(columns * (x.shape[1] - 1) + len(x))
    except RuntimeError:
        pytest.skip("no room for 2^31 numbers, of which few are touched")
    return room.as_strided(x.shape, (1, columns)).copy_(x)


def test_T20_columns_beyond_two_gigaelements():
    x, centers = make_points(40, 5, 33, torch.float16)
    far = far_apart(x)
    assert far.stride(1) * (far.shape[1] - 1) > 2**31 - 1
    near, found = (kmeans_step(rows, centers, backend="triton") for rows in (x, far))
    assert torch.equal(found.labels, near.labels)
    assert torch.equal(found.sums, near.sums)
    centers[1] = centers[0]  # rows between them are decided anew
    near, found = (nearest_center(rows, centers, backend="triton") for rows in (x, far))
    assert torch.equal(found.sq_dists, near.sq_dists)
    near, found = (kmeans_plusplus(rows, 5, random_state=0, backend="triton") for rows in (x, far))
    assert torch.equal(found.indices, near.indices)


REDUCED = [("tf32", 10)] if DEVICE == "cpu" else [("tf32", 10), ("bf16", 7)]  # bf16 is beyond the interpreter


@pytest.mark.parametrize(("precision", "digits"), REDUCED)
def test_reduced_precision_returns_true_distances(precision, digits):
    x, centers = make_points(200, 9, 16)
    got = nearest_center(x, centers, backend="triton", precision=precision)
    truth = sq_dists_of(x, centers)
    assert torch.allclose(got.sq_dists.double(), truth.gather(1, got.labels[:, None])[:, 0], rtol=1e-5)
    reach = x.norm(dim=1) * (centers - centers.mean(0)).norm(dim=1).max()
    assert bool((got.sq_dists <= truth.amin(1) + 8 * 2.0**-digits * reach).all())


@pytest.mark.usefixtures("_poisoned")
@pytest.mark.parametrize("precision", ["ieee", "tf32"])  # the second one decides nothing anew
def test_centers_in_parts_are_those_in_one(precision, monkeypatch):
    """Few rows against many centers: equal ones in the first and last part, none that is finite in another."""
    x, centers = make_points(70, 260, 19)
    centers[96:256], centers[256:] = torch.nan, centers[:4]
    x[0], x[1:5] = torch.nan, centers[:4]
    monkeypatch.setattr(triton_kernel, "LEAST_CENTERS", 64)
    labels, sq_dists = nearest_center(x, centers, backend="triton", precision=precision)
    monkeypatch.setattr(triton_kernel, "LEAST_CENTERS", 1000)
    whole = nearest_center(x, centers, backend="triton", precision=precision)
    assert torch.equal(labels, whole.labels)
    assert torch.equal(sq_dists.view(torch.int32), whole.sq_dists.view(torch.int32))
    assert labels[:5].tolist() == [-1, 0, 1, 2, 3]
    assert labels.max() < 96


def test_opcheck():
    x, centers = make_points(50, 4, 6)
    weight = torch.rand(50, device=DEVICE)
    torch.library.opcheck(custom_ops.NEAREST["triton"], (x, centers, "ieee"))
    torch.library.opcheck(custom_ops.STEP["triton"], (x, centers, weight, None, "ieee"))
    torch.library.opcheck(custom_ops.PLUSPLUS["triton"], (x, weight, 3, 2, 0))
