"""The kmeans room at its boundary: torch's operators, compilation, bad input."""

import numpy as np
import pytest
import torch

import fastdc
from fastdc.kernels import BackendError
from fastdc.kernels.kmeans import (
    center_update,
    custom_ops,
    kmeans_plusplus,
    kmeans_step,
    nearest_center,
    repair_empty,
)

BACKENDS = ["reference", "numba"]


def make_points(n, k, d):
    return torch.randn(n, d), torch.randn(k, d)


# --- compilation


def test_opcheck():
    x, centers = make_points(70, 6, 20)
    previous = torch.zeros(70, dtype=torch.int64)
    torch.library.opcheck(custom_ops.NEAREST["numba"], (x, centers, "ieee"))
    torch.library.opcheck(custom_ops.STEP["numba"], (x, centers, torch.rand(70), previous, "ieee"))
    torch.library.opcheck(custom_ops.STEP["numba"], (x, centers, None, None, "ieee"))
    for backend in BACKENDS:
        torch.library.opcheck(custom_ops.PLUSPLUS[backend], (x, None, 5, 3, 0))


def test_compiles_into_one_graph():
    x, _ = make_points(150, 6, 20)

    def iterate(x):
        centers = kmeans_plusplus(x, 6, random_state=0).centers
        step = kmeans_step(x, centers, previous_labels=nearest_center(x, centers).labels)
        sums, counts = repair_empty(x, centers, step.labels, step.sums, step.counts)
        return center_update(sums, counts, centers), step.n_changed

    compiled = torch.compile(iterate, fullgraph=True, backend="aot_eager", dynamic=True)
    for eager, graph in zip(iterate(x), compiled(x)):
        assert torch.equal(eager, graph)


# --- bad input

BAD = [
    (dict(x=np.zeros((3, 2))), TypeError, "x must be a torch.Tensor, got ndarray"),
    (dict(x=torch.zeros(3)), ValueError, r"x must be 2-D, of shape \(n_samples, n_features\), got shape \(3,\)"),
    (dict(x=torch.zeros(3, 2, dtype=torch.int64)), TypeError, "x must be float32, float64, float16 or"),
    (dict(x=torch.zeros(0, 2)), ValueError, r"x is empty, shape \(0, 2\)"),
    (dict(x=torch.zeros(3, 0)), ValueError, "x is empty"),
    (dict(centers=torch.zeros(2, 3)), ValueError, "centers has 3 features but x has 2"),
    (dict(centers=torch.zeros(2, 2, device="meta")), ValueError, "centers is on meta but x is on cpu"),
    (dict(sample_weight=torch.ones(4)), ValueError, r"sample_weight must have shape \(3,\)"),
    (dict(previous_labels=torch.zeros(3)), TypeError, "previous_labels must be int64"),
    (dict(x=torch.tensor([[1.0, torch.nan]] * 3), check_finite=True), ValueError, "Input x contains NaN: 3 such"),
    (dict(backend="cuda"), ValueError, "backend must be one of"),
    (dict(backend="triton"), BackendError, "triton kernels need GPU tensors"),
    (dict(precision="tf32"), ValueError, "precision 'tf32' needs the triton backend"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input(options, error, message):
    arguments = {"x": torch.zeros(3, 2), "centers": torch.zeros(2, 2), **options}
    x, centers = arguments.pop("x"), arguments.pop("centers")
    with pytest.raises(error, match=message):
        kmeans_step(x, centers, **arguments)
    if not {"sample_weight", "previous_labels"} & set(options):
        with pytest.raises(error, match=message):
            nearest_center(x, centers, **arguments)


def test_backend_can_be_forced():
    x, centers = make_points(20, 3, 4)
    with fastdc.use_backend("triton"), pytest.raises(BackendError, match="kmeans_step: backend 'triton'"):
        kmeans_step(x, centers)
    chosen = {c.backend for c in fastdc.explain("nearest_center", x) if c.chosen}
    assert chosen == {"numba"}
