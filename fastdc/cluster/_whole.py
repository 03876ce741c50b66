"""Rows for estimators that compare them with one another, and so need all of them at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
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
