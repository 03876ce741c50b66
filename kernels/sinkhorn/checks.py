"""Checks at the boundary that the room's ops share."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor

from fastdc.kernels._checks import check_positive, check_same_device, check_vector
from fastdc.kernels._group import check_group


def check_iteration(epsilon: float, n_iters: int, tol: float | None, group: Any) -> tuple[float, int, float | None]:
    """The numbers that an iteration runs by, as numbers, and a group."""
    epsilon, n_iters = check_positive(epsilon, "epsilon"), check_n_iters(n_iters)
    if tol is not None:
        tol = check_positive(tol, "tol")
    check_group(group)
    return epsilon, n_iters, tol


def check_n_iters(value: int) -> int:
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if number < 1:
        raise ValueError(f"n_iters must be an integer, 1 or above, got {value}")
    return number


def check_marginals(
    rows: Tensor | None, columns: Tensor | None, x: Tensor, k: int
) -> tuple[Tensor | None, Tensor | None]:
    """Both marginals, each of the length of what it weighs."""
    if rows is not None:
        check_vector(rows, x.shape[0], "row_marginal", x, "rows")
    if columns is not None:
        check_vector(columns, k, "column_marginal", x, "columns")
    return rows, columns


def check_queue(queue: Tensor, z1: Tensor) -> None:
    """Embeddings of both views."""
    if not isinstance(queue, Tensor):
        raise TypeError(f"queue must be a torch.Tensor, got {type(queue).__name__}; stack both views' with torch.stack")
    if queue.ndim != 3 or queue.shape[0] != 2 or queue.shape[2] != z1.shape[1]:
        raise ValueError(
            f"queue must have shape (2, n_queued, {z1.shape[1]}), rows of embeddings for each of the two views, "
            f"got {tuple(queue.shape)}"
        )
    check_same_device(queue, z1, "queue", "z1")
