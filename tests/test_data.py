"""Arrays from files and results to files: layouts of CSV, labels, writes that are whole or not at all."""

from __future__ import annotations

import os

import numpy as np
import pytest

from fastdc.data import atomic_write, load_labels, load_points, save_array


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2\n3,4\n", [[1, 2], [3, 4]]),
        ("a,b\n1,2\n3,4\n", [[1, 2], [3, 4]]),
        ("a;b\n1;2\n3;4\n", [[1, 2], [3, 4]]),
        ("a\tb\n1\t2\n3\t4\n", [[1, 2], [3, 4]]),
        ('\ufeff"a, and b",c\n1,2\n3,4\n', [[1, 2], [3, 4]]),
        ('"1","2"\n"3","4"\n', [[1, 2], [3, 4]]),
        ("a\n1\n3\n", [[1], [3]]),
        ("1e3,-.5\r\n3,4\r\n", [[1000, -0.5], [3, 4]]),
        ("0,name\n1,2\n3,4\n", [[1, 2], [3, 4]]),
    ],
)
def test_csv_layouts(tmp_path, text, expected):
    path = tmp_path / "points.csv"
    path.write_text(text, encoding="utf-8", newline="")
    x = load_points(path)
    assert x.dtype == np.float64
    np.testing.assert_array_equal(x, expected)


def test_csv_columns_by_name_before_number(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("id,1,0\nu,2,3\nv,4,5\n")
    np.testing.assert_array_equal(load_points(path, columns=["1", "0"], header=True), [[2, 3], [4, 5]])
    np.testing.assert_array_equal(load_points(path, columns=["2"], header=True), [[3], [5]])


def test_csv_header_can_be_said(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("0,1\n5,6\n")
    np.testing.assert_array_equal(load_points(path), [[0, 1], [5, 6]])
    np.testing.assert_array_equal(load_points(path, header=True), [[5, 6]])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3\n1\n3\n", [3, 1, 3]),
        ("label\n3\n1\n", [3, 1]),
        ("dog\ncat\ndog\n", [1, 0, 1]),
        ("9007199254740993\n-1\n", [9007199254740993, -1]),
        ("2.0\n1.0\n", [2, 1]),
    ],
)
def test_labels_from_csv(tmp_path, text, expected):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    labels = load_labels(path)
    assert labels.dtype == np.int64
    assert labels.tolist() == expected


@pytest.mark.parametrize(
    "array", [np.array([1.0, 0]), np.array([[1], [0]]), np.array([True, False]), np.array(["b", "a"])]
)
def test_labels_from_arrays(tmp_path, array):
    np.save(tmp_path / "labels.npy", array)
    assert load_labels(tmp_path / "labels.npy").tolist() == [1, 0]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "labels.npy"
    save_array(path, np.array([1, 2]))

    def interrupted() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert np.load(path).tolist() == [1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["labels.npy"]


@pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")
def test_written_files_keep_links_and_default_permissions(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.npy").symlink_to(tmp_path / "real" / "labels.npy")
    save_array(tmp_path / "link.npy", np.array([1]))
    assert (tmp_path / "link.npy").is_symlink()
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "real" / "labels.npy").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.skipif(os.name != "posix", reason="devices of POSIX")
def test_a_device_is_written_and_not_replaced():
    save_array(os.devnull, np.array([1]))
    assert not os.path.isfile(os.devnull)
