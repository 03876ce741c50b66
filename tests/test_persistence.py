"""Checkpoints: whole or not at all, never executed, and the same estimator after a round trip."""

import os
import pickle
import signal

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from safetensors.torch import save as pack
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from fastdc.persistence import CheckpointError, Saveable, read_checkpoint, write_checkpoint

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "labels": torch.tensor([1, 2]), "none": torch.zeros(0)}


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model.fastdc"
    write_checkpoint(path, TENSORS, {"class": "Something", "history": [{"loss": 0.1}]})
    return path


def assert_holds(path, tensors):
    found, _ = read_checkpoint(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


def test_round_trip(checkpoint):
    assert_holds(checkpoint, TENSORS)
    _, description = read_checkpoint(checkpoint)
    assert description["class"] == "Something"
    assert description["history"] == [{"loss": 0.1}]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8], ids=str)
def test_dtypes_strides_and_shared_memory(tmp_path, dtype):
    base = torch.ones(4, 4).to(dtype)
    tensors = {"a": base.T, "b": base[::2], "c": base}
    write_checkpoint(tmp_path / "m", tensors, {})
    assert_holds(tmp_path / "m", tensors)


def test_T50_every_flipped_bit_is_noticed(checkpoint):
    content = checkpoint.read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        checkpoint.write_bytes(flipped)
        with pytest.raises(CheckpointError):
            read_checkpoint(checkpoint)


def test_T50_every_truncation_is_noticed(checkpoint):
    content = checkpoint.read_bytes()
    for length in range(len(content)):
        checkpoint.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="is no checkpoint of fastdc, or a damaged one"):
            read_checkpoint(checkpoint)


class Bomb:
    def __reduce__(self):
        return os.abort, ()


def test_T50_a_pickle_is_refused_unexecuted(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="is no checkpoint of fastdc"):
        read_checkpoint(path)


def test_foreign_safetensors_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(pack({"a": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="is no checkpoint of fastdc"):
        read_checkpoint(path)


def test_later_formats_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("fastdc.persistence.FORMAT", 2)
    write_checkpoint(tmp_path / "m", {}, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"has format 2 .* reads formats up to 1; upgrade fastdc"):
        read_checkpoint(tmp_path / "m")


def test_missing_file_and_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        write_checkpoint(tmp_path / "no" / "folder", {}, {})


def test_what_json_cannot_hold_leaves_the_old_file(checkpoint):
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_checkpoint(checkpoint, {}, {"bad": object()})
    assert_holds(checkpoint, TENSORS)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_step_leaves_the_old_file_and_no_rubbish(checkpoint, monkeypatch, step):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(checkpoint, {"other": torch.ones(1)}, {})
    monkeypatch.undo()
    assert_holds(checkpoint, TENSORS)
    assert os.listdir(checkpoint.parent) == [checkpoint.name]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to kill a process half-way")
@pytest.mark.parametrize("step", ["open", "fsync", "replace", "close"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_T50_killed_half_way_leaves_the_old_file_or_the_new(checkpoint, step, when):
    new = {"other": torch.ones(1)}
    child = os.fork()
    if child == 0:
        original = getattr(os, step)

        def killed(*arguments, **options):
            if when == "after":
                original(*arguments, **options)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(os, step, killed)
        write_checkpoint(checkpoint, new, {})
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    tensors, _ = read_checkpoint(checkpoint)
    assert_holds(checkpoint, new if "other" in tensors else TENSORS)


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_checkpoint(tmp_path / "m", {}, {})
    finally:
        os.umask(before)
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o640


class Plain(Saveable, BaseEstimator):
    """An estimator without modules."""

    def __init__(self, n_clusters=8, init="k-means++", shape=(1, 2), random_state=None):
        self.n_clusters, self.init, self.shape, self.random_state = n_clusters, init, shape, random_state

    def fit(self):
        self.labels_ = np.array([0, 1], dtype=np.int32)
        self.cluster_centers_ = torch.ones(2, 2)
        self.feature_names_in_ = np.array(["a", "b"], dtype=object)
        self.inertia_ = np.float64(0.5)
        self.history_ = [{"loss": 1.0}]
        return self


def test_estimators_without_modules_need_nothing_of_their_own(tmp_path):
    init = np.ones((2, 2), dtype=np.float32)
    Plain(np.int64(2), init, random_state=np.random.RandomState(0)).fit().save(tmp_path / "m")
    loaded = Plain.load(tmp_path / "m")
    assert loaded.n_clusters == 2
    assert loaded.shape == (1, 2)
    assert loaded.random_state is None
    assert_array_equal(loaded.init, init)
    assert loaded.init.dtype == np.float32
    assert loaded.labels_.dtype == np.int32
    assert isinstance(loaded.cluster_centers_, torch.Tensor)
    assert loaded.feature_names_in_.tolist() == ["a", "b"]
    assert loaded.inertia_ == 0.5
    assert loaded.history_ == [{"loss": 1.0}]


def test_only_fitted_estimators_are_saved_and_only_the_right_class_loads(tmp_path):
    with pytest.raises(NotFittedError):
        Plain().save(tmp_path / "m")
    Plain().fit().save(tmp_path / "m")

    class Other(Plain):
        pass

    with pytest.raises(CheckpointError, match="holds a Plain, not a Other"):
        Other.load(tmp_path / "m")
