"""Which views of a batch are compared."""

from __future__ import annotations

from itertools import combinations

from fastdc.training import Batch


def view_pairs(batch: Batch, name: str) -> list[tuple[Batch, Batch]]:
    """All pairs of views of a batch; an error that names the loss where there is only one view."""
    pairs = list(combinations(batch.views, 2))
    if not pairs:
        raise ValueError(
            f"the {name} loss compares views, and views= makes only one; take for instance "
            "views.Augmented(transform, n_views=2)"
        )
    return pairs
