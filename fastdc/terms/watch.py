"""What is measured of a clustering while it is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdc.kernels.student_t import StudentTStatistics
from fastdc.networks import Head
from fastdc.training import Term


class Watch(Term):
    """No loss: at each refresh it measures how many labels changed, how sure they are, and whether clusters are empty.

    Parameters
    ----------
    head : Head
    """

    name = "watch"
    needs_refresh = True

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    @torch.no_grad()
    def refresh(self, z: Tensor) -> dict[str, Tensor]:
        return self.look(z)[1]

    def look(self, z: Tensor) -> tuple[StudentTStatistics, dict[str, Tensor]]:
        """(statistics of the rows, measurements of the history); the labels are remembered."""
        seen = self.head.statistics(z, self.memory.get("labels"))
        self.memory["labels"] = seen.labels
        sizes = torch.bincount(seen.labels + 1, minlength=len(seen.frequency) + 1)[1:]
        return seen, {
            "label_change": seen.n_changed / len(z),
            "n_empty_clusters": (sizes == 0).sum(),
            "smallest_cluster": sizes.min(),
            "confidence": seen.confidence.mean(),
            "entropy": seen.entropy.mean(),
        }
