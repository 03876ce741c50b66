"""What all tests share: markers that skip with a reason, fixed seeds, threads that are put back."""

from __future__ import annotations

import importlib.util
import random
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from fastdc.kernels._testing import run_interpreted


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip ``gpu`` tests without a GPU, and ``peers("name", ...)`` tests without those packages."""
    has_gpu = torch.cuda.is_available()
    for item in items:
        if item.get_closest_marker("gpu") and not has_gpu:
            item.add_marker(pytest.mark.skip(reason="torch sees no GPU"))
        needed = [name for mark in item.iter_markers("peers") for name in mark.args]
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        if missing:
            item.add_marker(pytest.mark.skip(reason=f"not installed: {', '.join(missing)}"))


@pytest.fixture(scope="session", autouse=True)
def interpreted(request: pytest.FixtureRequest) -> Iterator[Callable[[tuple[str, ...]], str]]:
    """What :func:`run_interpreted` returns for the arguments of a room's GPU cases.

    All that this session wants run from its start on, one after another, beside the other tests.
    """
    wanted = [item.module.PYTEST for item in request.session.items if item.name == "test_interpreted"]
    pool = ThreadPoolExecutor(1)
    runs = {arguments: pool.submit(run_interpreted, *arguments) for arguments in wanted}
    yield lambda arguments: runs[arguments].result()
    pool.shutdown(cancel_futures=True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same global random state, whichever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the legacy state is what other libraries draw from
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _threads_put_back() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks as small as those of tests run fastest on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def set_threads() -> Callable[[int], None]:
    """Set torch's number of threads for this test; it is put back afterwards."""
    return torch.set_num_threads


@pytest.fixture(params=[1, 2, 5], ids=lambda n: f"threads{n}")
def n_threads(request: pytest.FixtureRequest) -> int:
    """Run the test with 1, 2 and 5 threads, whatever the number of cores."""
    torch.set_num_threads(request.param)
    return request.param


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and the GPU where there is one."""
    return torch.device(request.param)


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Run code in a new interpreter and return what it prints; its stderr is shown where it fails."""
    import subprocess

    def run(code: str, *arguments: str, timeout: float = 300.0, **options: object) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=timeout, **options
        )  # type: ignore[call-overload]
        assert done.returncode == 0, f"{code}\nended with status {done.returncode}:\n{done.stderr}"
        return done.stdout.strip()

    return run


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises, as in a terminal: processes that a shell started in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def blobs():
    """Three well separated clusters of 20 points, and their labels."""
    centers = np.array([[0.0, 0, 0], [20, 0, 0], [0, 20, 0]])
    true = np.repeat([0, 1, 2], 20)
    return centers[true] + np.random.default_rng(0).standard_normal((60, 3)), true


@pytest.fixture
def folder(tmp_path, monkeypatch, blobs):
    """A working folder with the blobs as points.npy, points.npz, points.csv and true.npy."""
    monkeypatch.chdir(tmp_path)
    x, true = blobs
    np.save("points.npy", x)
    np.savez("points.npz", x=x, y=true)
    np.savetxt("points.csv", x, delimiter=",", header="a,b,c", comments="")
    np.save("true.npy", true)
    return tmp_path
