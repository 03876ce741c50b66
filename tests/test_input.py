"""What users pass becomes a float tensor, or an error that says what to do."""

import re

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from fastdc._input import (
    choose_device,
    give_back,
    read_count,
    read_points,
    read_sample_weight,
    read_seed,
    require_finite,
)

POINTS = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float32", torch.float32),
        ("float64", torch.float64),
        ("float16", torch.float32),
        ("longdouble", torch.float64),
        ("bool", torch.float32),
        ("int8", torch.float32),
        ("uint8", torch.float32),
        ("int16", torch.float32),
        ("uint16", torch.float32),
        ("int32", torch.float64),
        ("uint32", torch.float64),
        ("int64", torch.float64),
        ("uint64", torch.float64),
    ],
)
def test_T24_numbers_are_promoted_to_the_float_that_holds_them(dtype, expected):
    array = np.array([[0, 1], [1, 1]]).astype(dtype)
    x = read_points(array)
    assert x.dtype == expected
    assert_array_equal(x.numpy(), array.astype(np.float64))
    if dtype != "longdouble":
        tensor = read_points(torch.from_numpy(array))
        assert tensor.dtype == expected
        assert torch.equal(tensor, x)


def test_T24_bfloat16_becomes_float32():
    assert read_points(torch.ones(2, 2, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize(
    "layout",
    [
        np.asfortranarray(POINTS),
        POINTS[::-1][::-1],
        np.repeat(POINTS, 2, axis=0)[::2],
        np.repeat(POINTS, 2, axis=1)[:, ::2],
        POINTS.T.copy().T,
        POINTS.tolist(),
        POINTS.astype(">f4"),
        POINTS.astype(object),
    ],
    ids=[
        "Fortran",
        "negative strides",
        "row steps",
        "column steps",
        "transposed",
        "list",
        "big-endian",
        "object",
    ],
)
def test_T20_T23_layouts_give_the_same_points(layout):
    assert_array_equal(read_points(layout).numpy(), POINTS)


def test_T20_expanded_rows():
    x = read_points(np.broadcast_to(POINTS[:1], (5, 3)))
    assert_array_equal(x.numpy(), POINTS[[0] * 5])
    tensor = read_points(torch.from_numpy(POINTS[:1]).expand(5, 3))
    assert tensor.is_contiguous()
    assert torch.equal(tensor, x)


def test_T20_data_frame():
    frame = pytest.importorskip("pandas").DataFrame(POINTS, columns=["a", "b", "c"])
    assert_array_equal(read_points(frame).numpy(), POINTS)


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2)], ids=str)
def test_T20_other_than_two_dimensions(make, shape):
    with pytest.raises(ValueError, match=r"Expected 2D array|Found array with dim 3"):
        read_points(make(np.ones(shape)))


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_T12_no_rows_or_no_columns(make):
    with pytest.raises(ValueError, match=re.escape("Found array with 0 sample(s) (shape=(0, 3))")):
        read_points(make(np.ones((0, 3))))
    with pytest.raises(ValueError, match=re.escape("Found array with 0 feature(s) (shape=(3, 0))")):
        read_points(make(np.ones((3, 0))))


def test_T20_sparse_is_refused():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"Sparse data was passed.*dense data is required"):
        read_points(sparse.csr_array(POINTS))
    with pytest.raises(TypeError, match=r"sparse tensor.*use X\.to_dense"):
        read_points(torch.from_numpy(POINTS).to_sparse())


def test_T21_read_only_memmap_is_viewed_and_left_alone(tmp_path, recwarn):
    path = tmp_path / "x.npy"
    np.save(path, POINTS)
    before = path.read_bytes()
    memmap = np.load(path, mmap_mode="r")
    x = read_points(memmap)
    assert x.data_ptr() == memmap.ctypes.data
    assert_array_equal(x.numpy(), POINTS)
    assert path.read_bytes() == before
    assert not recwarn.list


def test_T22_misaligned_buffer():
    raw = b"\0" + POINTS.tobytes()
    misaligned = np.frombuffer(raw, np.float32, offset=1).reshape(4, 3)
    assert not misaligned.flags.aligned
    x = read_points(misaligned)
    assert x.data_ptr() % 4 == 0
    assert_array_equal(x.numpy(), POINTS)


@pytest.mark.parametrize(
    "bad", [np.array([["a", "b"]]), np.array([["2020-01-01"]], dtype="M8[D]"), np.zeros((2, 2), dtype="V4")]
)
def test_T24_text_dates_and_bytes_are_refused(bad):
    with pytest.raises(TypeError, match=r"X has dtype .*; pass numbers"):
        read_points(bad)


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_T24_complex_is_refused(make):
    complex_numbers = make(np.ones((2, 2), dtype=np.complex64))
    for kind in (TypeError, ValueError):  # scikit-learn raises the second
        with pytest.raises(kind, match="Complex data not supported"):
            read_points(complex_numbers)


def test_T24_objects_that_are_no_numbers():
    with pytest.raises(TypeError, match="float"):
        read_points(np.array([[{"a": 1}, 2.0]], dtype=object))


def test_T25_gradients_are_cut_and_inference_tensors_work():
    x = torch.ones(2, 2, requires_grad=True)
    read = read_points(x)
    assert not read.requires_grad
    assert read.data_ptr() == x.data_ptr()
    with torch.inference_mode():
        inside = torch.ones(2, 2)
    assert torch.equal(read_points(inside), torch.ones(2, 2))


def test_T27_masked_arrays_and_missing_values():
    masked = np.ma.masked_array(POINTS, mask=POINTS > 10)
    with pytest.raises(TypeError, match="masked array, whose mask would be lost"):
        read_points(masked)
    pandas = pytest.importorskip("pandas")
    with pytest.raises((TypeError, ValueError), match=r"NA|NaN"):
        read_points(pandas.DataFrame({"a": pandas.array([1, None], dtype="Int64")}))


def test_T28_dlpack_is_viewed():
    class Foreign:
        def __init__(self, tensor):
            self.tensor, self.shape = tensor, tensor.shape

        def __dlpack__(self, **options):
            return self.tensor.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.tensor.__dlpack_device__()

    inside = torch.from_numpy(POINTS.copy())
    x = read_points(Foreign(inside))
    assert x.data_ptr() == inside.data_ptr()
    assert isinstance(give_back(x, Foreign(inside)), np.ndarray)


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_T01_nan_names_its_place(make):
    array = POINTS.copy()
    array[2, 1] = array[3, 0] = np.nan
    with pytest.raises(ValueError, match=r"Input X contains NaN\. 2 entries, the first in row 2, column 1"):
        read_points(make(array))
    assert read_points(make(array), check_finite=False).isnan().sum() == 2


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_T02_infinity_names_its_place(value):
    array = POINTS.copy()
    array[1, 2] = value
    with pytest.raises(
        ValueError, match=r"infinity or a value too large for dtype\('float32'\)\. 1 entry.*row 1, column 2"
    ):
        read_points(array)


def test_T04_too_large_for_float32(recwarn):
    array = np.full((2, 2), 1e300)
    assert read_points(array).dtype == torch.float64
    for large in (array, torch.from_numpy(array)):
        with pytest.raises(ValueError, match="a value too large"):
            read_points(large, dtype=torch.float32)
    assert not recwarn.list


def test_finite_entries_whose_sum_overflows_are_fine():
    require_finite(torch.full((4, 1), 3e38))


def test_contiguous_input_is_not_copied_nor_changed():
    array = POINTS.copy()
    assert read_points(array).data_ptr() == array.ctypes.data
    tensor = torch.from_numpy(array)
    assert read_points(tensor).data_ptr() == tensor.data_ptr()
    assert_array_equal(array, POINTS)


def test_results_come_back_as_what_went_in():
    labels = torch.tensor([1, 2], dtype=torch.int32)
    assert isinstance(give_back(labels, POINTS), np.ndarray)
    assert isinstance(give_back(labels, POINTS.tolist()), np.ndarray)
    assert isinstance(give_back(labels.requires_grad_(False), torch.ones(1)), torch.Tensor)


def test_T51_gpu_asked_for_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="torch sees no GPU; pass device='cpu'"):
        choose_device("cuda")
    assert choose_device(None) == torch.device("cpu")
    assert choose_device(None, torch.empty(0, device="meta")) == torch.device("meta")


def test_seeds():
    assert read_seed(7) == 7
    assert read_seed(np.int64(7)) == 7
    assert read_seed(np.random.RandomState(3)) == read_seed(np.random.RandomState(3))
    assert read_seed(np.random.default_rng(3)) == read_seed(np.random.default_rng(3))
    assert read_seed(None) != read_seed(None)
    for bad in (-1, 1.5, "a", True):
        with pytest.raises(ValueError, match="random_state must be None, an integer >= 0"):
            read_seed(bad)


def test_T11_counts():
    assert read_count(np.int32(3), "n_clusters") == 3
    for bad in (2.5, True, "3", None):
        with pytest.raises(TypeError, match="n_clusters must be an integer, got"):
            read_count(bad, "n_clusters")
    for bad in (0, -1):
        with pytest.raises(ValueError, match=f"n_clusters must be at least 1, got {bad}"):
            read_count(bad, "n_clusters")
    with pytest.raises(ValueError, match="n_clusters=5 must be at most n_samples=4"):
        read_count(5, "n_clusters", high=4, high_name="n_samples")


def test_sample_weights():
    x = torch.zeros(3, 2)
    assert read_sample_weight(None, x) is None
    for given in ([1, 2, 3], np.array([1.0, 2.0, 3.0]), torch.tensor([1, 2, 3])):
        weight = read_sample_weight(given, x)
        assert weight is not None
        assert weight.dtype == x.dtype
        assert weight.tolist() == [1, 2, 3]
    assert torch.equal(read_sample_weight(2.0, x), torch.full((3,), 2.0))
    for bad, message in [
        ([1, 2], r"sample_weight\.shape == \(2,\), expected \(3,\)!"),
        ([[1], [2], [3]], "must be 1D array or scalar"),
        ([1, -2, 3], "Negative values in data passed to `sample_weight`"),
        ([0, 0, 0], "all are zero"),
        ([1, np.nan, 3], "Input sample_weight contains NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_sample_weight(bad, x)
