"""Rows for estimators that compare them with one another, and so need all of them at hand.

Those of a row source are seen where they lie, or copied into an unnamed file where that cannot be; so are the copies
that kernels make of them. Pages of files take no memory that is not free.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastdc._input import read_points
from fastdc.data import RowSource
from fastdc.kernels._copies import copies_in_files, copy_rows, copy_space
from fastdc.kernels.neighbors.points import is_finite_row

READ_BYTES = 1 << 24  # of rows that are read at a time

_Fit = TypeVar("_Fit", bound=Callable[..., Any])


def files_for_sources(fit: _Fit) -> _Fit:
    """A method whose first argument is X: of a row source all copies of the rows are made in files."""

    @wraps(fit)
    def fitted(self: Any, X: Any, *args: Any, **options: Any) -> Any:
        if not isinstance(X, RowSource):
            return fit(self, X, *args, **options)
        with copies_in_files():
            return fit(self, X, *args, **options)

    return fitted  # type: ignore[return-value]


def read_whole(X: Any, estimator: Any, *, min_samples: int = 1) -> Tensor:
    """The rows of ``X`` as a tensor, for a fit of the estimator; those of a row source take no memory of their own."""
    return read_points(
        mapped(X) if isinstance(X, RowSource) else X,
        estimator,
        reset=True,
        device=estimator.device,
        check_finite=estimator.check_finite,
        min_samples=min_samples,
    )


def mapped(source: RowSource) -> np.ndarray | Tensor:
    """All rows of a source, not to be written to: where they lie, else copied, as :func:`files_for_sources` has it."""
    seen = source.view(0, len(source))
    if seen is not None:
        return seen
    whole = copy_space(source.shape, source.dtype)
    rows = max(1, READ_BYTES // (source.shape[1] * source.dtype.itemsize))
    for start in range(0, len(source), rows):
        stop = min(start + rows, len(source))
        source.read(start, stop, whole[start:stop])
    return whole


def finite_rows(x: Tensor, *, check: bool) -> tuple[Tensor, Tensor | None]:
    """The finite rows of ``x``, and which these are: None where all are, or where nothing is to be looked at.

    Raises
    ------
    ValueError
        If no row is finite.
    """
    if not check:
        return x, None
    finite = is_finite_row(x)
    if bool(finite.all()):
        return x, None
    if not bool(finite.any()):
        raise ValueError(f"none of the {len(x)} rows of X is finite; there is nothing to cluster")
    return copy_rows(x, finite), finite


def spread(values: Tensor, finite: Tensor | None, rest: float) -> Tensor:
    """Values of the finite rows as values of all rows; ``rest`` for the others."""
    if finite is None:
        return values
    result = torch.full(finite.shape, rest, dtype=values.dtype, device=values.device)
    result[finite.to(values.device)] = values
    return result
