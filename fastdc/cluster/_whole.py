"""Rows for estimators that compare them with one another, and so need all of them at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdc._input import read_points
from fastdc.data import RowSource


def read_whole(X: Any, estimator: Any, *, min_samples: int = 1) -> Tensor:
    """The rows of ``X`` as a tensor, those of a row source read into memory, for a fit of the estimator."""
    return read_points(
        np.asarray(X) if isinstance(X, RowSource) else X,
        estimator,
        reset=True,
        device=estimator.device,
        check_finite=estimator.check_finite,
        min_samples=min_samples,
    )


def finite_rows(x: Tensor, *, check: bool) -> tuple[Tensor, Tensor | None]:
    """The finite rows of ``x``, and which these are: None where all are, or where nothing is to be looked at.

    Raises
    ------
    ValueError
        If no row is finite.
    """
    if not check:
        return x, None
    finite = x.isfinite().all(dim=1)
    if bool(finite.all()):
        return x, None
    if not bool(finite.any()):
        raise ValueError(f"none of the {len(x)} rows of X is finite; there is nothing to cluster")
    return x[finite], finite


def spread(values: Tensor, finite: Tensor | None, rest: float) -> Tensor:
    """Values of the finite rows as values of all rows; ``rest`` for the others."""
    if finite is None:
        return values
    result = torch.full(finite.shape, rest, dtype=values.dtype, device=values.device)
    result[finite.to(values.device)] = values
    return result
