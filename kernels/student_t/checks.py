"""Checks of the arguments that only this room has."""

from __future__ import annotations

from torch import Tensor

from fastdc.kernels._checks import check_centers, check_points, check_same_device, check_vector


def check_target(
    x: Tensor,
    centers: Tensor,
    target: Tensor | None,
    target_x: Tensor | None,
    target_centers: Tensor | None,
    frequency: Tensor | None,
) -> None:
    """One of the four targets of dec_loss, and shapes that fit."""
    n_clusters = centers.shape[0]
    if target is not None:
        if target_x is not None or target_centers is not None or frequency is not None:
            raise ValueError("target is P itself; give it without target_x, target_centers and frequency")
        check_points(target, "target", "n_clusters")
        check_same_device(target, x, "target")
        if target.shape != (x.shape[0], n_clusters):
            raise ValueError(
                f"target must have shape ({x.shape[0]}, {n_clusters}), a row for each of x and a column for each "
                f"of centers, got {tuple(target.shape)}"
            )
    if (target_x is None) != (target_centers is None) or (target_x is not None and frequency is None):
        raise ValueError("target_x, target_centers and frequency go together; give all three, or frequency alone")
    if target_x is not None and target_centers is not None:
        check_points(target_x, "target_x")
        check_same_device(target_x, x, "target_x")
        check_centers(target_centers, target_x, "target_centers", "target_x")
        if target_x.shape[0] != x.shape[0]:
            raise ValueError(f"target_x has {target_x.shape[0]} rows but x has {x.shape[0]}; they are the same rows")
        if target_centers.shape[0] != n_clusters:
            raise ValueError(
                f"target_centers has {target_centers.shape[0]} rows but centers has {n_clusters}; P and Q need the "
                "same clusters"
            )
    if frequency is not None:
        check_vector(frequency, n_clusters, "frequency", x, "clusters")
