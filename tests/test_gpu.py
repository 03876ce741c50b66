"""Every op on a GPU, by the one table of ``fastdc.kernels._calls``; and the same comparisons on the CPU, in small.

A new op is a line of that table, and is then tested here.
"""

import pytest
import torch

from fastdc.kernels import OPS
from fastdc.kernels._calls import CALLS, Material, Size, op_of, results
from tests.gpu_cases import WAITING, check, compare, same

TINY = Size(24, 3, 5)
RAGGED = [Size(3, 1, 1), Size(257, 10, 33), Size(1000, 129, 64)]
DTYPES = [torch.float64, torch.float16, torch.bfloat16]
MIDDLE = Size(3001, 40, 40)
LARGE = Size(200_000, 100, 64)
OF_ALL_PAIRS = (
    "silhouette",
    "hardest",
    "pairwise",
    "soft_nearest",
    "triplet",
    "knn",
    "radius",
    "nt_xent",
    "info_nce",
    "sup_con",
)
ROW_BY_ROW = ["student_t_assign", "nearest_center", "center_distances", "gmm_log_density", "gmm_responsibilities"]


def test_every_op_is_called():
    assert {op_of(name) for name in CALLS} == set(OPS)


@pytest.mark.parametrize("name", CALLS)
def test_the_table_on_the_cpu(name):
    check(name, TINY, torch.float32, "cpu", None, seeds=2)


@pytest.mark.parametrize("name", CALLS)
def test_the_table_is_the_same_in_every_layout(name):
    plain = results(name, Material(TINY), backend="reference")
    for layout in ({"strided": True}, {"strides": (100, 164)}):
        other = results(name, Material(TINY, **layout), backend="reference")
        for a, b in zip(plain[0] + plain[1], other[0] + other[1], strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_wrong_result_is_seen():
    truth = torch.ones(4, dtype=torch.float64)
    close, off = truth.float() + 1e-7, truth.float() + 1e-3
    compare([(close, truth.float(), truth)], 2, torch.float32, "x")
    with pytest.raises(AssertionError, match=r"x error 1\.00e-03 against float64"):
        compare([(close, truth.float(), truth), (off, truth.float(), truth)], 2, torch.float32, "x")
    labels = torch.arange(3)
    with pytest.raises(AssertionError, match="labels differs"):
        compare([(labels.flip(0), labels, labels)], 2, torch.float32, "labels")
    with pytest.raises(AssertionError, match="x is not zero"):
        compare([(off, truth.float(), 0 * truth)], 2, torch.float32, "x")
    with pytest.raises(AssertionError, match="x is finite elsewhere"):
        compare([(truth.float() / 0, truth.float(), truth)], 2, torch.float32, "x")
    compare(
        [(torch.tensor([1.0, torch.inf]), torch.ones(2), torch.tensor([1.0, torch.inf]).double())],
        2,
        torch.float32,
        "x",
    )
    assert same(([off], []), ([off.clone()], []))
    assert not same(([off], []), ([close], []))


@pytest.mark.gpu
@pytest.mark.parametrize("size", RAGGED, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_values_and_gradients(name, size):
    check(name, size, torch.float32, "cuda", None)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_every_dtype(name, dtype):
    check(name, RAGGED[1], dtype, "cuda", None)


@pytest.fixture
def _deterministic():
    """As a user asks for it; memory that nobody has written then holds NaN and nonsense."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("name", CALLS)
def test_runs_have_the_same_bits(name):
    """A race, or memory read before it is written, shows as a result that moves; also on streams side by side."""
    first = results(name, Material(MIDDLE, device="cuda"))
    streams = [torch.cuda.Stream() for _ in range(4)]
    for run in range(12):
        with torch.cuda.stream(streams[run % 4]):
            material = Material(MIDDLE, device="cuda")
            again = results(name, material)
        torch.cuda.synchronize()
        assert same(first, again), f"run {run} differs"


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in CALLS if op_of(name) not in WAITING])
def test_a_cuda_graph_gives_the_same_bits(name):
    """What never waits for the GPU can be recorded, gradients included."""
    material = Material(RAGGED[1], device="cuda")
    expected = results(name, material)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = results(name, material)
    graph.replay()
    torch.cuda.synchronize()
    assert same(expected, replayed)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CALLS)
def test_strides(name):
    plain, strided = (results(name, Material(RAGGED[1], device="cuda", strided=s)) for s in (False, True))
    for a, b in zip(plain[0] + plain[1], strided[0] + strided[1], strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.fixture
def _memory_given_back():
    """Two processes of such tests must find room."""
    yield
    torch.cuda.empty_cache()


@pytest.mark.gpu
@pytest.mark.usefixtures("_memory_given_back")
@pytest.mark.parametrize("name", CALLS)
def test_rows_and_columns_beyond_two_gigaelements(name):
    """So far apart that the places of both need 64 bits, no two at one place; half precision takes half the memory."""
    size, strides = Size(40, 33, 33), (1 << 26, (1 << 26) + 64)
    near, far = (
        results(name, Material(size, torch.float16, device="cuda", strides=apart)) for apart in (None, strides)
    )
    for a, b in zip(near[0] + near[1], far[0] + far[1], strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.usefixtures("_memory_given_back")
@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_results_of_more_than_two_gigaelements(name):
    """The same rows again and again: what the last ones get is what the first ones get."""
    size = Size(1 << 10, 64, 64)
    few = Material(size, device="cuda")
    first = results(name, few)
    many = Material(size, device="cuda")
    times = (1 << 31) // (size.n * size.d) + 1
    many.leaves["x"] = few.x.detach().repeat(times, 1).requires_grad_()
    many.labels = few.labels.repeat(times)
    with torch.no_grad():
        values, _ = results(name, many)
    for small, large in zip(first[0], values, strict=True):
        assert torch.equal(small, large[-size.n :]), "the last rows differ from the first ones"


@pytest.mark.gpu
@pytest.mark.parametrize("name", CALLS)
def test_memory_that_runs_out_is_an_error_and_no_more(name):
    """The call raises torch's error or finds room, and afterwards the GPU computes as before."""
    size = LARGE._replace(n=8000) if op_of(name).startswith(OF_ALL_PAIRS) else LARGE
    material = Material(size, device="cuda")
    expected = results(name, material)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (1 << 20)) / total)
    try:
        results(name, material)
    except torch.OutOfMemoryError:
        pass
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert same(expected, results(name, material))
