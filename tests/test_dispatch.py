"""The dispatch: who decides, what a forced backend does where it cannot run, and what explain() says."""

from __future__ import annotations

import itertools
import threading
import warnings

import pytest
import torch

import fastdc
from fastdc.kernels import OPS, BackendError, Hardware, _backend, choose, explain, use_backend

FULL = Hardware(has_numba=True, has_triton=True)
BARE = Hardware(has_numba=False, has_triton=False)
INTERPRETER = Hardware(has_numba=True, has_triton=True, interprets_triton=True)
X = torch.zeros(2, 2)
META = torch.zeros(2, 2, device="meta")


class OnGPU:
    """Stands for a tensor on a GPU: the dispatch reads nothing but the device."""

    device = torch.device("cuda:0")


@pytest.fixture(autouse=True)
def _automatic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(_backend.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(_backend, "_already_said", set())


@pytest.mark.parametrize(
    ("x", "hardware", "expected"),
    [(X, FULL, "numba"), (X, INTERPRETER, "numba"), (OnGPU(), FULL, "triton"), (META, FULL, "reference")],
    ids=["cpu", "cpu-interpreter", "gpu", "meta"],
)
def test_automatic_choice_follows_the_device(x, hardware, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose("dec_loss", x, hardware=hardware) == expected


def test_argument_beats_context_beats_environment_beats_automatic(monkeypatch):
    monkeypatch.setenv(_backend.ENVIRONMENT_VARIABLE, "reference")
    assert choose("dec_loss", X, hardware=INTERPRETER) == "reference"
    with use_backend("triton"):
        assert choose("dec_loss", X, hardware=INTERPRETER) == "triton"
        assert choose("dec_loss", X, "numba", hardware=INTERPRETER) == "numba"
    assert choose("dec_loss", X, hardware=INTERPRETER) == "reference"
    monkeypatch.setenv(_backend.ENVIRONMENT_VARIABLE, "")
    assert choose("dec_loss", X, hardware=INTERPRETER) == "numba"


def test_use_backend_nests_and_is_undone_by_an_error():
    with use_backend("reference"):
        with use_backend(None):
            assert choose("dec_loss", X, hardware=FULL) == "numba"
        with pytest.raises(ZeroDivisionError), use_backend("numba"):
            raise ZeroDivisionError
        assert choose("dec_loss", X, hardware=FULL) == "reference"
    assert choose("dec_loss", X, hardware=FULL) == "numba"


@pytest.mark.parametrize(
    ("x", "backend", "hardware", "fragment"),
    [
        (X, "numba", BARE, "pip install numba"),
        (X, "triton", BARE, "pip install triton"),
        (X, "triton", FULL, "need GPU tensors, x is on cpu"),
        (OnGPU(), "numba", FULL, "need CPU tensors, x is on cuda"),
        (META, "triton", FULL, "need CUDA or ROCm tensors, x is on meta"),
    ],
)
def test_a_forced_backend_that_cannot_run_raises(x, backend, hardware, fragment):
    with pytest.raises(BackendError, match=fragment) as caught:
        choose("dec_loss", x, backend, hardware=hardware)
    assert f"dec_loss: backend {backend!r}, forced by the argument backend=, cannot run" in str(caught.value)


def test_the_error_names_who_forced_the_backend(monkeypatch):
    with use_backend("triton"), pytest.raises(BackendError, match=r"forced by use_backend\(\)"):
        choose("dec_loss", X, hardware=FULL)
    monkeypatch.setenv(_backend.ENVIRONMENT_VARIABLE, "triton")
    with pytest.raises(BackendError, match="forced by the environment variable FASTDC_BACKEND"):
        choose("dec_loss", X, hardware=FULL)


def test_unknown_names_are_refused_with_their_origin(monkeypatch):
    with pytest.raises(ValueError, match="the argument backend= asks for 'cuda'"):
        choose("dec_loss", X, "cuda")
    with pytest.raises(ValueError, match=r"use_backend\(\) asks for 'gpu'"), use_backend("gpu"):
        pass
    monkeypatch.setenv(_backend.ENVIRONMENT_VARIABLE, "Numba")
    with pytest.raises(ValueError, match="FASTDC_BACKEND asks for 'Numba'"):
        choose("dec_loss", X)
    with pytest.raises(ValueError, match="FASTDC_BACKEND asks for 'Numba'"):
        explain("dec_loss", X)


def test_the_slow_fallback_is_said_once_for_each_op():
    with pytest.warns(RuntimeWarning, match="dec_loss runs its slow reference on cpu: numba does not import"):
        assert choose("dec_loss", X, hardware=BARE) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose("dec_loss", X, hardware=BARE) == "reference"
    with pytest.warns(RuntimeWarning, match="nearest_center runs its slow reference on cuda:0"):
        assert choose("nearest_center", OnGPU(), hardware=BARE) == "reference"


def test_a_forced_reference_is_not_warned_about():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose("dec_loss", X, "reference", hardware=BARE) == "reference"


@pytest.mark.parametrize("x", [X, OnGPU(), META], ids=["cpu", "gpu", "meta"])
@pytest.mark.parametrize("requested", [None, "reference", "numba", "triton"])
def test_explain_agrees_with_choose(x, requested):
    flags = itertools.product([False, True], repeat=3)
    for hardware in (Hardware(*triple) for triple in flags):
        chosen = [row.backend for row in explain("dec_loss", x, requested, hardware=hardware) if row.chosen]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = [choose("dec_loss", x, requested, hardware=hardware)]
        except BackendError:
            expected = []
        assert chosen == expected


def test_explain_gives_one_reasoned_row_a_backend():
    rows = explain("dec_loss", X, hardware=FULL)
    assert [row.backend for row in rows] == list(_backend.BACKENDS)
    assert {row.backend: row.reason for row in rows} == {
        "reference": "numba is faster here",
        "numba": "fastest for cpu tensors",
        "triton": "triton kernels need GPU tensors, x is on cpu; move it with x.cuda() or use 'numba'",
    }
    with use_backend("reference"):
        forced = explain("dec_loss", X, hardware=FULL)
    assert forced[0].reason == "forced by use_backend()"
    assert forced[1].reason == "use_backend() forces 'reference'"


def test_explain_knows_the_ops():
    with pytest.raises(ValueError, match=r"'dec_los' is no op of fastdc; it knows .*dec_loss"):
        explain("dec_los", X)
    for op in OPS:
        assert sum(row.chosen for row in explain(op, X)) == 1


def test_hardware_is_read_from_the_process(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert Hardware.detect().interprets_triton
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert not Hardware.detect().interprets_triton
    assert Hardware.detect().has_numba


def test_backend_error_is_a_runtime_error_and_public():
    assert issubclass(fastdc.BackendError, RuntimeError)
    assert fastdc.use_backend is use_backend
    assert fastdc.explain is explain


def test_a_new_thread_sees_the_context():
    seen = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(choose("dec_loss", X)))
        thread.start()
        thread.join()
    assert seen == ["reference"]


def test_compiled_code_follows_use_backend():
    def name_of_choice(x):
        return x + {"reference": 1, "numba": 2, "triton": 3}[choose("dec_loss", x)]

    compiled = torch.compile(name_of_choice, fullgraph=True, backend="eager")
    assert compiled(X)[0, 0] == 2
    with use_backend("reference"):
        assert compiled(X)[0, 0] == 1
    assert compiled(X)[0, 0] == 2
