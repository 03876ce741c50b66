"""Inputs that the Student t room must answer, good and bad."""

import numpy as np
import pytest
import torch

from fastdc.kernels import BackendError
from fastdc.kernels.student_t import (
    StudentTStatistics,
    dec_loss,
    student_t_assign,
    student_t_statistics,
    target_distribution,
)
from tests.student_t_cases import (
    TARGETS,
    loss_and_gradients,
    make_points,
    make_target,
)


@pytest.mark.parametrize("d", [3, 20])
def test_T38_extreme_distances_and_alpha(d):
    x = torch.zeros(4, d)
    x[1, 0], x[2, 0], x[3, 0] = 1e10, 1e20, 3.0
    centers = torch.zeros(2, d)
    centers[1, 0] = 3.0
    for alpha in (1.0, 1e-3, 50.0):
        loss, grad_x, grad_centers = loss_and_gradients(x, centers, "numba", alpha=alpha)
        q = student_t_assign(x, centers, alpha)
        assert all(bool(torch.isfinite(t).all()) for t in (loss, grad_x, grad_centers, q))
        assert torch.allclose(q.sum(1), torch.ones(4))
        assert q[0, 0] > 0.5


def test_T38_a_cluster_without_mass_gets_no_target():
    q = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0]])
    for backend in ("reference", "numba"):
        p = target_distribution(q, backend=backend)
        assert torch.equal(p[:, 2], torch.zeros(2))
        assert bool(torch.isfinite(p).all())
    x, centers = make_points(30, 3, 4)
    loss, *gradients = loss_and_gradients(x, centers, "numba", frequency=torch.tensor([1.0, 0.0, 2.0]))
    assert all(bool(torch.isfinite(t).all()) for t in (loss, *gradients))


@pytest.mark.parametrize("d", [4, 20])
def test_T03_a_row_with_nan(d):
    x, centers = make_points(100, 5, d)
    clean = student_t_statistics(torch.cat([x[:7], x[8:]]), centers)
    x[7, 1] = float("nan")
    for backend in ("reference", "numba"):
        dirty = student_t_statistics(x, centers, backend=backend)
        assert dirty.labels[7] == -1
        assert torch.allclose(dirty.frequency, clean.frequency, rtol=1e-5)
        for target in TARGETS:
            assert torch.isnan(dec_loss(x, centers, backend=backend, **make_target(target, *make_points(100, 5, d))))
    with pytest.raises(ValueError, match=r"Input x contains NaN: 1 such entries, the first at index \[7, 1\]"):
        dec_loss(x, centers, check_finite=True)


def test_T19_ties_go_to_the_lowest_index():
    centers = torch.tensor([[1.0], [-1.0], [1.0]])
    for backend in ("reference", "numba"):
        assert student_t_statistics(torch.zeros(70, 1), centers, backend=backend).labels.unique().tolist() == [0]


def test_poisoned_memory(monkeypatch):
    """Every element of a result is written: uninitialised memory is filled with NaN here."""
    original = np.empty

    def poisoned(shape, dtype=float, **options):
        array = original(shape, dtype, **options)
        if array.dtype.kind == "f":
            array.fill(np.nan)
        return array

    monkeypatch.setattr(np, "empty", poisoned)
    for d in (5, 20):
        x, centers = make_points(131, 7, d)
        tensors = [
            student_t_assign(x, centers),
            *student_t_statistics(x, centers),
            *loss_and_gradients(x, centers, "numba"),
        ]
        assert all(bool(torch.isfinite(t).all()) for t in tensors)


BAD = [
    (dict(x=np.zeros((3, 2))), TypeError, "x must be a torch.Tensor, got ndarray"),
    (
        dict(x=torch.zeros(3)),
        ValueError,
        r"x must be 2-D, of shape \(n_samples, n_features\), got shape \(3,\)",
    ),
    (
        dict(x=torch.zeros(3, 2, dtype=torch.int64)),
        TypeError,
        "x must be float32, float64, float16 or bfloat16",
    ),
    (dict(x=torch.zeros(0, 2)), ValueError, r"x is empty, shape \(0, 2\)"),
    (dict(x=torch.zeros(3, 0)), ValueError, "x is empty"),
    (
        dict(centers=torch.zeros(2, 3)),
        ValueError,
        r"centers has 3 features but x has 2; both must be \(…, n_features\)",
    ),
    (dict(centers=torch.zeros(2, 2, device="meta")), ValueError, "centers is on meta but x is on cpu"),
    (dict(alpha=0.0), ValueError, "alpha must be a finite number above 0, got 0.0"),
    (dict(power=-1.0), ValueError, "power must be a finite number above 0"),
    (dict(frequency_power=-1.0), ValueError, "frequency_power must be a finite number, 0 or above"),
    (dict(reduction="none"), ValueError, "reduction must be one of"),
    (dict(frequency=torch.ones(3)), ValueError, r"frequency must have shape \(2,\)"),
    (dict(target=torch.ones(3, 3)), ValueError, r"target must have shape \(3, 2\)"),
    (dict(target=torch.ones(3, 2), frequency=torch.ones(2)), ValueError, "target is P itself"),
    (dict(target_x=torch.ones(3, 2)), ValueError, "target_x, target_centers and frequency go together"),
    (
        dict(target_x=torch.ones(4, 2), target_centers=torch.ones(2, 2), frequency=torch.ones(2)),
        ValueError,
        "target_x has 4 rows but x has 3",
    ),
    (dict(backend="cuda"), ValueError, "backend must be one of"),
    (dict(backend="triton"), BackendError, "triton kernels need GPU tensors"),
    (dict(precision="tf32"), ValueError, "precision 'tf32' needs the triton backend"),
    (dict(precision="fp8"), ValueError, "precision must be one of"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input(options, error, message):
    arguments = {"x": torch.zeros(3, 2), "centers": torch.zeros(2, 2), **options}
    with pytest.raises(error, match=message):
        dec_loss(arguments.pop("x"), arguments.pop("centers"), **arguments)


def test_previous_labels_are_checked():
    x, centers = make_points(5, 2, 2)
    with pytest.raises(TypeError, match="previous_labels must be int64"):
        student_t_statistics(x, centers, 1.0, torch.zeros(5))
    with pytest.raises(ValueError, match=r"previous_labels must have shape \(5,\)"):
        student_t_statistics(x, centers, 1.0, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least one chunk"):
        StudentTStatistics.merge([])


def test_T25_inference_mode_and_detached_results():
    x, centers = make_points(20, 3, 4)
    with torch.inference_mode():
        assert dec_loss(x, centers).isfinite()
    assert not student_t_statistics(x.requires_grad_(), centers).confidence.requires_grad
    assert not target_distribution(student_t_assign(x, centers)).requires_grad
