"""The contingency table: values on every backend, ids of any kind, sums of chunks, errors."""

import itertools
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.cluster import contingency_matrix

import fastdc
from fastdc.kernels.contingency import ContingencyTable, as_integers, contingency_table, numba_kernel
from fastdc.kernels.contingency.reference import contingency_counts_reference

INTEGER_TYPES = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64]
labels_of_any_kind = st.lists(
    st.tuples(st.sampled_from([-7, 0, 1, 2, 10**12, -(2**62), 2**63 - 1]), st.integers(-3, 5)), max_size=40
)


def draw(n: int, n_classes: int, n_clusters: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(n_classes, (n,), generator=generator)
    pred = torch.where(
        torch.rand(n, generator=generator) < 0.6,
        true % n_clusters,
        torch.randint(n_clusters, (n,), generator=generator),
    )
    return true, pred


def assert_same_table(got: ContingencyTable, wanted: ContingencyTable) -> None:
    assert torch.equal(got.classes, wanted.classes)
    assert torch.equal(got.clusters, wanted.clusters)
    assert torch.equal(got.to_dense().counts, wanted.to_dense().counts)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_by_hand(backend):
    table = contingency_table(torch.tensor([3, 3, 3, -1]), torch.tensor([0, 5, 5, 5]), backend=backend)
    assert table.counts.tolist() == [[0, 1], [1, 2]]
    assert table.counts.dtype == torch.int64
    assert table.classes.tolist() == [-1, 3]
    assert table.clusters.tolist() == [0, 5]
    assert table.n_samples == 4


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 5), (4001, 45, 46), (200_003, 300, 7)])
def test_equals_sklearn(backend, shape):
    true, pred = draw(*shape)
    table = contingency_table(true, pred, backend=backend)
    np.testing.assert_array_equal(table.counts.numpy(), contingency_matrix(true.numpy(), pred.numpy()))


@settings(max_examples=100, deadline=None)
@given(labels_of_any_kind)
def test_any_ids(pairs):
    true = np.array([t for t, _ in pairs], dtype=np.int64)
    pred = np.array([p for _, p in pairs], dtype=np.int64)
    tables = [contingency_table(true, pred, sparse=sparse) for sparse in (False, True, None)]
    tables.append(contingency_table(true, pred, backend="reference"))
    if pairs:
        np.testing.assert_array_equal(tables[0].counts.numpy(), contingency_matrix(true, pred))
    assert tables[1].counts.is_sparse
    for table in tables:
        assert table.classes.tolist() == np.unique(true).tolist()
        assert table.clusters.tolist() == np.unique(pred).tolist()
        assert_same_table(table, tables[0])


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_integer_types_and_strides(backend):
    true, pred = draw(5003, 9, 11)
    wanted = contingency_table(true, pred, backend="reference")
    for dtype in INTEGER_TYPES:
        assert_same_table(contingency_table(true.to(dtype), pred.to(dtype), backend=backend), wanted)
    wide = torch.stack([true, pred], 1)
    assert_same_table(contingency_table(wide[:, 0], wide[:, 1], backend=backend), wanted)


def test_row_order_does_not_matter():
    true, pred = draw(3001, 40, 20)
    order = torch.randperm(3001)
    assert_same_table(contingency_table(true[order], pred[order]), contingency_table(true, pred))


@pytest.mark.parametrize("shape", [(300_001, 4, 4), (300_001, 700, 300)])
def test_T44_threads_do_not_change_the_table(n_threads, shape):
    true, pred = draw(*shape)
    reference = contingency_counts_reference(true, pred, 0, 0, shape[1], shape[2])
    got = contingency_table(true, pred, n_classes=shape[1], n_clusters=shape[2], backend="numba")
    assert torch.equal(got.counts, reference)


def test_many_rounds_of_narrow_counters(monkeypatch):
    monkeypatch.setattr(numba_kernel, "ROWS_A_ROUND", 1000)
    true, pred = draw(4321, 60, 60)
    reference = contingency_table(true, pred, backend="reference")
    assert_same_table(contingency_table(true, pred, backend="numba"), reference)


def test_private_tables_stay_small():
    for n_rows, n_cells in itertools.product([1, 10**6, 10**9], [1, 10**4, 2 * 10**8]):
        n_blocks = -(-n_rows // numba_kernel._rows_a_block(n_rows, n_cells))
        n_tables = min(64, n_blocks)
        assert n_tables == 1 or 4 * n_tables * n_cells <= min(numba_kernel.PRIVATE_BYTES, 8 * n_rows)


@pytest.mark.parametrize("sparse", [False, True])
def test_chunks_add_up(sparse):
    true, pred = draw(1000, 30, 20)
    true = true * 10**10 - 5
    total = contingency_table(true[:1], pred[:1], sparse=sparse)
    for start, stop in [(1, 300), (300, 300), (300, 700), (700, 1000)]:
        total = total + contingency_table(true[start:stop], pred[start:stop], sparse=sparse)
    assert total.counts.is_sparse == sparse
    assert_same_table(total, contingency_table(true, pred))


def test_sparse_and_dense_tables_add():
    true, pred = draw(100, 6, 5)
    wanted = contingency_table(true, pred)
    for first, second in [(False, True), (True, False)]:
        total = contingency_table(true[:50], pred[:50], sparse=first) + contingency_table(
            true[50:], pred[50:], sparse=second
        )
        assert_same_table(total, wanted)
    with pytest.raises(TypeError, match="unsupported operand"):
        wanted + 1


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_given_sizes_fix_the_shape(backend):
    table = contingency_table([2, 0], [1, 1], n_classes=4, n_clusters=3, backend=backend)
    assert table.counts.tolist() == [[0, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert table.classes.tolist() == [0, 1, 2, 3]
    half = contingency_table([2, 0], [1, 7], n_classes=4, backend=backend)
    assert half.counts.tolist() == [[0, 1], [0, 0], [1, 0], [0, 0]]
    assert half.clusters.tolist() == [1, 7]


def test_given_size_beside_huge_ids():
    true, pred = [1, 2, 1, 1], [2**62, -(2**62), 2**62, 5]
    table = contingency_table(true, pred, n_classes=10**6, sparse=True)
    assert table.counts.shape == (10**6, 3)
    assert table.clusters.tolist() == [-(2**62), 5, 2**62]
    assert table.counts.indices().tolist() == [[1, 1, 2], [1, 2, 0]]
    assert table.counts.values().tolist() == [1, 2, 1]


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("sparse", [False, True])
def test_ids_outside_of_the_given_range(backend, sparse):
    with pytest.raises(ValueError, match=r"labels_true holds ids from 0 to 3, but n_classes=3 allows 0 to 2"):
        contingency_table([0, 3], [0, 0], n_classes=3, n_clusters=1, backend=backend, sparse=sparse)
    with pytest.raises(ValueError, match=r"labels_pred holds ids from -1 to 0, but n_clusters=10000000 allows"):
        contingency_table([0, 0], [0, -1], n_classes=3, n_clusters=10**7, backend=backend, sparse=sparse)
    with pytest.raises(ValueError, match=r"labels_pred holds ids from -1 to 0, but n_clusters=2 allows 0 to 1"):
        contingency_table([0, 0], [0, -1], n_classes=3, n_clusters=2, backend=backend, sparse=sparse)


def test_empty_labels():
    assert contingency_table([], []).counts.shape == (0, 0)
    assert contingency_table([], [], n_classes=2, n_clusters=3).counts.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_large_tables_are_refused_with_their_bytes():
    ids = torch.arange(100_000)
    with pytest.raises(MemoryError, match=r"100000 classes x 100000 clusters needs 80000000000 bytes \(80.0 GB\)"):
        contingency_table(ids, ids)
    with pytest.raises(MemoryError, match="needs 80000000000 bytes"):
        contingency_table([0], [0], n_classes=100_000, n_clusters=100_000)
    with pytest.raises(MemoryError, match=r"n_classes=1000000000000 needs 8000000000000 bytes for the ids alone"):
        contingency_table([0], [0], n_classes=10**12)
    left, right = (
        contingency_table(ids[:20_000], ids[:20_000] % 2),
        contingency_table(ids[:20_000] % 2, ids[:20_000]),
    )
    with pytest.raises(MemoryError, match="20000 classes x 20000 clusters"):
        left + right
    table = contingency_table(ids, ids, sparse=None)
    assert table.counts.is_sparse
    assert torch.equal(table.counts.values(), torch.ones(100_000, dtype=torch.int64))


def test_T14_read_only_reversed_and_foreign_arrays():
    array = np.array([0, 1, 1, 2])
    array.flags.writeable = False
    wanted = contingency_table([0, 1, 1, 2], [2, 1, 1, 0])
    assert_same_table(contingency_table(array, array[::-1]), wanted)
    assert_same_table(contingency_table(array.astype(">i4"), array.astype(np.uint64)[::-1]), wanted)
    assert_same_table(contingency_table(array.astype(float), torch.tensor([2.0, 1.0, 1.0, 0.0]).half()), wanted)
    assert contingency_table([True, False], [0, 1]).classes.tolist() == [0, 1]
    assert array.tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([[0], [1]], ValueError, r"labels_pred must be 1-D, of shape \(n_samples,\), got shape \(2, 1\)"),
        (3, ValueError, r"labels_pred must be 1-D, of shape \(n_samples,\), got shape \(\)"),
        (
            [0, 1, 1],
            ValueError,
            r"labels_true has 2 entries but labels_pred has 3; both must be \(n_samples,\)",
        ),
        ([0, 1.5], ValueError, r"labels_pred must hold integers, got the fraction 1.5"),
        ([0, float("nan")], ValueError, r"labels_pred contains NaN: 1 such entries"),
        ([0, float("inf")], ValueError, r"labels_pred contains infinity or a value too large"),
        (np.array([0, 2**63], dtype=np.uint64), ValueError, r"labels_pred holds ids of 2\*\*63 and above"),
        (
            ["cat", "dog"],
            TypeError,
            r"labels_pred must hold integers, got an array of dtype <U3; number its values",
        ),
        ([None, 1], TypeError, r"labels_pred must hold integers, got an array of dtype object"),
        ([1j, 0], TypeError, r"labels_pred must hold integers, got torch.complex128"),
    ],
)
def test_bad_labels(values, error, message):
    with pytest.raises(error, match=message):
        contingency_table([0, 1], values)


@pytest.mark.parametrize("size", [2.0, True, "2"])
def test_bad_sizes(size):
    with pytest.raises(TypeError, match="n_clusters must be an integer, got"):
        contingency_table([0], [0], n_clusters=size)
    with pytest.raises(ValueError, match="n_classes must be at least 0, got -1"):
        contingency_table([0], [0], n_classes=-1)


def test_unsigned_tensors():
    for dtype in (torch.uint16, torch.uint32, torch.uint64):
        assert as_integers(torch.tensor([1, 2], dtype=dtype), "labels").tolist() == [1, 2]


def test_forced_backend_that_cannot_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(fastdc.BackendError, match="contingency_table: backend 'triton'"):
        contingency_table([0], [0], backend="triton")
    assert [c.backend for c in fastdc.explain("contingency_table", torch.zeros(1)) if c.chosen] == ["numba"]


def test_counting_op_passes_opcheck():
    true, pred = draw(50, 3, 4)
    torch.library.opcheck(numba_kernel.contingency_counts_numba_op, (true, pred, 0, 0, 3, 4))


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_compiles_without_graph_breaks(backend):
    def score(true, pred):
        return contingency_table(true, pred, n_classes=3, n_clusters=4, backend=backend).counts * 2

    true, pred = draw(50, 3, 4)
    if backend == "reference":
        assert torch.equal(score(true, pred), torch.compile(score, backend="eager")(true, pred))
    else:
        assert torch.equal(score(true, pred), torch.compile(score, backend="eager", fullgraph=True)(true, pred))


INTERPRETED = """
import numpy as np, torch, warnings
warnings.simplefilter("ignore")
from fastdc import contingency_table
rng = np.random.default_rng(0)
for n, rows, columns in [(0, 2, 3), (1, 1, 1), (3000, 1, 9), (4099, 20, 30), (9001, 60, 50)]:
    for dtype in (np.int64, np.int32, np.uint8):
        true, pred = rng.integers(0, rows, n).astype(dtype), rng.integers(0, columns, n).astype(dtype)
        fixed = dict(n_classes=rows, n_clusters=columns)
        got = contingency_table(true, pred, backend="triton", **fixed)
        wanted = contingency_table(true, pred, backend="reference", **fixed)
        assert torch.equal(got.counts, wanted.counts), (n, rows, columns, dtype)
wide = torch.from_numpy(rng.integers(-5, 60, (5000, 2)))
got = contingency_table(wide[:, 0], wide[:, 1], backend="triton")
wanted = contingency_table(wide[:, 0], wide[:, 1], backend="reference")
assert torch.equal(got.counts, wanted.counts) and got.classes[0] == -5
for size in (10, 55):
    try:
        contingency_table(wide[:, 0] + 5, wide[:, 1] + 5, n_classes=65, n_clusters=size, backend="triton")
    except ValueError as error:
        print(error)
"""


def test_triton_under_the_interpreter(run_python):
    pytest.importorskip("triton")
    printed = run_python(INTERPRETED, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert printed.count("labels_pred holds ids from 0 to 64") == 2


def test_triton_launch_choices():
    pytest.importorskip("triton")
    from fastdc.kernels.contingency.triton_kernel import PARTIAL_BYTES, launch

    small, large, huge = launch(10**7, 100, 132), launch(10**7, 10**6, 132), launch(10**9, 2**28, 132)
    assert small.bins == 128
    assert small.n_partials == small.n_programs == 264
    assert large.bins == 0
    assert 8 * 10**6 * large.n_partials <= PARTIAL_BYTES
    assert huge.n_partials == 1
    assert launch(0, 0, 132).n_programs == 1


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1, 1, 1), (100_003, 10, 10), (100_003, 300, 200), (1_000_003, 2000, 1000)])
def test_triton_on_the_gpu(shape):
    true, pred = draw(*shape)
    got = contingency_table(true.cuda(), pred.cuda())
    assert torch.equal(got.counts.cpu(), contingency_table(true, pred).counts)


def test_labels_on_two_devices():
    with pytest.raises(ValueError, match="labels_pred is on meta but labels_true is on cpu"):
        contingency_table(torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long, device="meta"))
