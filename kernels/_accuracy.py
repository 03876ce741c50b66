"""What the tests mean by accurate: no worse than plain torch in the same dtype, against a float64 truth."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def relative_error(got: Tensor, truth: Tensor) -> float:
    """Largest absolute error over the truth's largest magnitude; infinite where got is not finite."""
    if got.shape != truth.shape:
        raise AssertionError(f"shape {tuple(got.shape)}, the truth has {tuple(truth.shape)}")
    if not bool(torch.isfinite(got).all()):
        return float("inf")
    scale = truth.double().abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return float((got.double() - truth.double()).abs().max() / scale)


def assert_not_worse_than_torch(
    cases: Iterable[tuple[Tensor, Tensor, Tensor]], *, factor: float, dtype: torch.dtype, name: str = ""
) -> None:
    """The error of ``got`` is at most ``factor`` times that of ``plain``, and 4 units in the last place are free.

    Parameters
    ----------
    cases : iterable of (got, plain, truth)
        The result tested, that of plain torch in the same dtype, and that of float64, from several draws: the
        largest errors are compared, since that of a single number in a single draw is luck.
    factor : float
        2 for values, 3 for gradients.
    dtype : torch.dtype
        Whose last place is meant.
    name : str
        What the message speaks of.
    """
    errors = [(relative_error(got, truth), relative_error(plain, truth)) for got, plain, truth in cases]
    error, allowed = (max(column) for column in zip(*errors))
    free = 4 * torch.finfo(dtype).eps
    if not error <= factor * allowed + free:
        raise AssertionError(
            f"{name} error {error:.2e} against float64, plain torch has {allowed:.2e}; "
            f"allowed are {factor} times that and {free:.1e}"
        )
