"""Self-training on centroids: the network sharpens its own soft assignments (DEC, IDEC)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastdc.methods._deep import DeepClusterer
from fastdc.methods._parts import Reconstruction, StudentT
from fastdc.networks import Centroids
from fastdc.training import Stage


@dataclass(eq=False, repr=False, kw_only=True)
class DEC(DeepClusterer):
    """Deep embedded clustering (Xie et al., ICML 2016): L = KL(P || Q), the decoder dropped."""

    target: str = "refresh"

    def stages(self, head: Centroids) -> Iterator[Stage]:
        yield self.pretraining(Reconstruction())
        yield self.initialisation(head)
        yield self.refinement(StudentT(head, self.target))


@dataclass(eq=False, repr=False, kw_only=True)
class IDEC(DEC):
    """Improved deep embedded clustering (Guo et al., IJCAI 2017): L = L_rec + gamma KL(P || Q)."""

    gamma: float = 0.1

    def stages(self, head: Centroids) -> Iterator[Stage]:
        yield self.pretraining(Reconstruction())
        yield self.initialisation(head)
        yield self.refinement(Reconstruction() + self.gamma * StudentT(head, self.target))
