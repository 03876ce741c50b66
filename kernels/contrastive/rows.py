"""Rows of length one, and checks that only this room has."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdc.kernels._checks import check_centers, check_labels


def unit_rows(x: Tensor, dtype: torch.dtype, normalize: bool = True) -> Tensor:
    """Rows divided by their lengths, in the dtype; a row of zeros stays, and has no gradient."""
    x = x.to(dtype)
    if not normalize:
        return x
    lengths = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / lengths.masked_fill(lengths == 0, torch.inf)


def check_views(z1: Tensor, z2: Tensor, names: tuple[str, str] = ("z1", "z2")) -> None:
    """Equal shapes: two views of the same samples."""
    check_centers(z2, z1, names[1], names[0])
    if z1.shape != z2.shape:
        raise ValueError(
            f"{names[0]} has {z1.shape[0]} rows but {names[1]} has {z2.shape[0]}; "
            "they are two views of the same samples"
        )


def check_places(places: Tensor, n_rows: int, n_places: int, name: str, x: Tensor, what: str) -> None:
    """int64 row numbers; where they lie is checked on CPUs only, since a look at a GPU's numbers would wait for it."""
    check_labels(places, n_rows, name, x)
    if places.device.type == "cpu" and not torch.compiler.is_compiling():
        lowest, highest = int(places.min()), int(places.max())
        if lowest < 0 or highest >= n_places:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"{name} must be from 0 to {n_places - 1}, rows of {what}, got {wrong}")
