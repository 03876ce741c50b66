"""What a GPU could do at best: how many programs fit on it, and how long the work of an operator takes on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from bench._gpu_code import Costs
from fastdc.kernels._calls import Size

SIZES = (Size(0, 2000, 128), Size(0, 100, 64), Size(0, 20, 40), Size(0, 10, 10))  # the rows are not looked at
ITEMSIZE = {"i64": 8, "fp64": 8, "fp32": 4, "fp16": 2, "bf16": 2}


class Limits(NamedTuple):
    """What one multiprocessor has, and in which pieces it is given away."""

    registers: int
    registers_a_piece: int  # of a warp
    warps: int
    programs: int
    shared_bytes: int
    reserved_bytes: int  # of shared memory, for each program
    threads_a_warp: int = 32


LIMITS = {
    "sm_80": Limits(65536, 256, 64, 32, 164 << 10, 1024),
    "sm_90": Limits(65536, 256, 64, 32, 228 << 10, 1024),
    "sm_100": Limits(65536, 256, 64, 32, 228 << 10, 1024),
    # four SIMDs of 512 registers a lane in pieces of 8, vector and accumulation registers together
    "gfx942": Limits(4 * 512 * 64, 8 * 64, 32, 16, 64 << 10, 0, 64),
}


QUARTERS = 4  # parts of a multiprocessor, with registers of their own; a warp stays in one


class Occupancy(NamedTuple):
    """Programs and warps that a multiprocessor holds at once, and what there is no more of."""

    programs: int
    warps: int
    limited_by: str


def occupancy(chip: str, registers: int, num_warps: int, shared_bytes: int) -> Occupancy:
    """How many programs fit, from the registers of a thread, the warps and the shared memory of a program."""
    limits = LIMITS[chip]
    of_a_warp = -(-registers * limits.threads_a_warp // limits.registers_a_piece) * limits.registers_a_piece
    by_registers = limits.registers // QUARTERS // of_a_warp * QUARTERS
    fit = {
        "registers": by_registers // num_warps,
        "shared memory": limits.shared_bytes // max(1, shared_bytes + limits.reserved_bytes),
        "warps": limits.warps // num_warps,
        "programs": limits.programs,
    }
    least = min(fit, key=lambda name: fit[name])
    return Occupancy(fit[least], fit[least] * num_warps, least)


class Machine(NamedTuple):
    """Rates of one chip, a second."""

    name: str
    chip: str
    processors: int
    clock: float
    bytes: float
    plain: float  # float32 operations beside matrix units
    matrix: dict[str, float]  # operations on matrix units, by the precision of products

    @property
    def special(self) -> float:
        """Exponentials, logarithms and reciprocals: 16 a clock on each multiprocessor."""
        return 16 * self.processors * self.clock

    @property
    def warp_instructions(self) -> float:
        """One a clock on each of four schedulers."""
        return 4 * self.processors * self.clock


H200 = Machine(
    "H200", "sm_90", 132, 1.755e9, 4.3e12, 67e12,
    {"ieee": 67e12, "tf32x3": 395e12 / 3, "bf16x6": 790e12 / 6, "tf32": 395e12, "bf16": 790e12},
)  # fmt: skip


class Work(NamedTuple):
    """What an operator cannot do without."""

    bytes: float = 0.0
    products: float = 0.0  # operations of products, two a multiply-add
    plain: float = 0.0  # float32 operations beside them
    special: float = 0.0  # exponentials, logarithms, reciprocals


class Bound(NamedTuple):
    """The least time of some work, and what takes it."""

    seconds: float
    by: str


def bound(work: Work, precision: str, machine: Machine = H200) -> Bound:
    """The roofline: each unit works beside the others, and the slowest one decides."""
    times = {
        "memory": work.bytes / machine.bytes,
        "products": work.products / machine.matrix[precision],
        "plain float32": work.plain / machine.plain,
        "exponentials": work.special / machine.special,
    }
    if precision == "ieee":  # products and the rest share a unit
        times["products"] += times.pop("plain float32")
    slowest = max(times, key=lambda name: times[name])
    return Bound(times[slowest], slowest)


def _rows_and_clusters(size: Size) -> float:
    return float(size.n) * size.k


def _pairs_of_rows(size: Size) -> float:
    return float(size.n) * size.n


def _both_views(size: Size) -> float:
    return 4.0 * size.n * size.n


def _rows_alone(size: Size) -> float:
    return 0.0


def _products_of_features(size: Size) -> float:
    return float(size.n) * size.k * size.d


class Model(NamedTuple):
    """How the work of an operator grows; ``pairs`` is the number of entries of the matrix that is not held."""

    pairs: Callable[[Size], float]
    products: int  # of a pair, over the features
    plain: int  # float32 operations of a pair beside products
    special: float  # exponentials, logarithms and reciprocals of a pair
    of_rows: int  # reads and writes of matrices n x d
    of_entries: int = 0  # reads and writes of an input or result as large as the matrix
    gathered: int = 0  # rows of d numbers that a pair reads

    def work(self, size: Size, itemsize: int) -> Work:
        pairs = self.pairs(size)
        numbers = self.of_rows * size.n * size.d + (self.of_entries + self.gathered * size.d) * pairs
        return Work(
            float(numbers * itemsize), 2.0 * self.products * pairs * size.d, self.plain * pairs, self.special * pairs
        )


MODELS = {  # keys of ``CALLS``, among them each operator; gradients included where there are any
    "student_t_assign": Model(_rows_and_clusters, 4, 16, 3, 3, 2),
    "student_t_statistics": Model(_rows_and_clusters, 2, 8, 2, 2),
    "target_distribution": Model(_rows_and_clusters, 0, 4, 0, 0, 2),
    "dec_loss": Model(_rows_and_clusters, 4, 16, 2, 3),
    "nearest_center": Model(_rows_and_clusters, 1, 3, 0, 1),
    "kmeans_step": Model(_rows_and_clusters, 1, 3, 0, 2),
    "kmeans_plusplus": Model(_rows_and_clusters, 9, 2, 0, 0, gathered=1),  # 8 candidates and the last center
    "kmeans_loss: soft": Model(_rows_and_clusters, 3, 8, 2, 2),
    "contingency_table": Model(_rows_alone, 0, 0, 0, 2),
    "knn": Model(_pairs_of_rows, 1, 2, 0, 1),
    "radius_neighbors": Model(_pairs_of_rows, 1, 2, 0, 1),
    "radius_counts": Model(_pairs_of_rows, 1, 2, 0, 1),
    "density_clusters": Model(_pairs_of_rows, 1, 2, 0, 1),
    "sinkhorn_assign": Model(_rows_and_clusters, 0, 12, 4, 0, 5),
    "swapped_prediction_loss": Model(_rows_and_clusters, 6, 40, 12, 6),
    "sinkhorn_assign_features": Model(_rows_and_clusters, 4, 12, 4, 4, 1),
    "optimal_transport_labels": Model(_rows_and_clusters, 6, 20, 6, 6),
    "optimal_transport_loss": Model(_rows_and_clusters, 8, 24, 7, 7),
    "entropy_statistics": Model(_rows_and_clusters, 0, 4, 1, 0, 1),
    "marginal_entropy": Model(_rows_and_clusters, 0, 2, 0, 0, 2),
    "conditional_entropy": Model(_rows_and_clusters, 0, 6, 2, 0, 3),
    "rim_loss": Model(_rows_and_clusters, 0, 8, 2, 0, 3),
    "vat_kl": Model(_rows_and_clusters, 0, 10, 2, 0, 3),
    "silhouette_coefficients": Model(_pairs_of_rows, 1, 3, 1, 1),
    "hardest_pairs": Model(_pairs_of_rows, 1, 4, 0, 1),
    "center_distances": Model(_rows_and_clusters, 1, 3, 0, 1),
    "cluster_dispersion": Model(_rows_alone, 0, 0, 0, 2),
    "triplet_loss": Model(_pairs_of_rows, 1, 4, 0, 3),
    "triplet_loss: all": Model(_pairs_of_rows, 3, 40, 1, 2),  # sorts each row of distances
    "pairwise_bce": Model(_pairs_of_rows, 2, 8, 2, 2),
    "soft_nearest_neighbor_loss": Model(_pairs_of_rows, 3, 6, 2, 2),
    "gmm_responsibilities": Model(_rows_and_clusters, 2, 4, 1, 1, 1),
    "gmm_log_density": Model(_rows_and_clusters, 2, 4, 1, 1),
    "gmm_step": Model(_rows_and_clusters, 4, 6, 1, 2),
    "gmm_step: tied": Model(_rows_and_clusters, 2, 6, 1, 4),
    "gmm_step: full": Model(_products_of_features, 2, 0, 0, 2),
    "vade_loss": Model(_rows_and_clusters, 4, 12, 1, 6),
    "laplacian_loss": Model(_rows_and_clusters, 0, 0, 0, 2, gathered=1),  # k is the number of edges of a node
    "heat_weights": Model(_rows_and_clusters, 0, 0, 1, 1, 1, gathered=1),
    "propagate": Model(_rows_and_clusters, 0, 0, 0, 2, gathered=1),
    "neighbor_consistency_loss": Model(_rows_and_clusters, 0, 8, 2, 0, 4),
    "nt_xent": Model(_both_views, 3, 6, 2, 4),
    "info_nce": Model(_pairs_of_rows, 4, 8, 2, 4),
    "sup_con": Model(_pairs_of_rows, 3, 6, 2, 2),
    "prototype_contrast": Model(_rows_and_clusters, 3, 6, 2, 2),
    "instance_discrimination": Model(_rows_and_clusters, 3, 6, 2, 2),
}


class Case(NamedTuple):
    """One operator at one size."""

    call: str
    size: Size
    dtype: str = "fp32"
    precision: str = "tf32x3"
    passes: int = 1  # over the same data


CASES = [
    Case("dec_loss", Size(1_000_000, 1000, 64)),
    Case("dec_loss", Size(1_000_000, 1000, 64), precision="ieee"),
    Case("dec_loss", Size(10_000_000, 10_000, 64)),
    Case("kmeans_step", Size(10_000_000, 20_000, 128), "bf16", "bf16", 10),
    Case("kmeans_step", Size(10_000_000, 20_000, 128), "fp32", "tf32x3", 10),
    Case("kmeans_step", Size(10_000_000, 20_000, 128), "fp32", "ieee", 10),
    Case("nt_xent", Size(32_768, 0, 256)),
    Case("nt_xent", Size(32_768, 0, 256), precision="bf16"),
    Case("sinkhorn_assign", Size(16_384, 16_384, 128)),
    Case("sinkhorn_assign_features", Size(65_536, 65_536, 128)),
    Case("knn", Size(1_000_000, 0, 128)),
    Case("knn", Size(1_000_000, 0, 128), precision="ieee"),
    Case("student_t_statistics", Size(100_000_000, 1000, 32)),
    Case("student_t_assign", Size(1_000_000, 1000, 64)),
    Case("kmeans_plusplus", Size(1_000_000, 1000, 64), precision="ieee"),
    Case("contingency_table", Size(100_000_000, 1000, 1), "i64"),
    Case("target_distribution", Size(1_000_000, 1000, 0)),
    Case("nearest_center", Size(1_000_000, 1000, 64)),
    Case("kmeans_loss: soft", Size(1_000_000, 1000, 64)),
    Case("radius_neighbors", Size(200_000, 0, 64)),
    Case("radius_counts", Size(200_000, 0, 64)),
    Case("density_clusters", Size(200_000, 0, 64)),
    Case("swapped_prediction_loss", Size(4096, 3000, 128)),
    Case("optimal_transport_labels", Size(65_536, 1000, 128)),
    Case("optimal_transport_loss", Size(65_536, 1000, 128)),
    Case("conditional_entropy", Size(1_000_000, 1000, 0)),
    Case("entropy_statistics", Size(1_000_000, 1000, 0)),
    Case("marginal_entropy", Size(1_000_000, 1000, 0)),
    Case("rim_loss", Size(1_000_000, 1000, 0)),
    Case("vat_kl", Size(1_000_000, 1000, 0)),
    Case("silhouette_coefficients", Size(200_000, 100, 64)),
    Case("hardest_pairs", Size(65_536, 100, 128)),
    Case("triplet_loss", Size(65_536, 100, 128)),
    Case("triplet_loss: all", Size(8192, 100, 128)),
    Case("cluster_dispersion", Size(1_000_000, 1000, 64)),
    Case("center_distances", Size(1_000_000, 1000, 64)),
    Case("pairwise_bce", Size(65_536, 100, 100)),
    Case("soft_nearest_neighbor_loss", Size(65_536, 100, 128)),
    Case("gmm_log_density", Size(1_000_000, 100, 64)),
    Case("gmm_responsibilities", Size(1_000_000, 100, 64)),
    Case("gmm_step: tied", Size(1_000_000, 100, 64)),
    Case("gmm_step: full", Size(1_000_000, 100, 64)),
    Case("gmm_step", Size(1_000_000, 100, 64)),
    Case("vade_loss", Size(65_536, 100, 64)),
    Case("laplacian_loss", Size(1_000_000, 15, 64)),
    Case("heat_weights", Size(1_000_000, 15, 64)),
    Case("propagate", Size(1_000_000, 15, 64)),
    Case("neighbor_consistency_loss", Size(1_000_000, 1000, 0)),
    Case("info_nce", Size(32_768, 0, 256)),
    Case("sup_con", Size(32_768, 100, 256)),
    Case("prototype_contrast", Size(32_768, 1000, 256)),
    Case("instance_discrimination", Size(1024, 1_000_000, 128)),
]


def as_built(case: Case, launches: Sequence[Costs | None], machine: Machine = H200) -> float | None:
    """Seconds that the launches of a case take to issue, or to multiply where that takes longer.

    None where none of them goes over tiles of pairs. Waiting, and the launches themselves, are not counted.
    """
    pairs, single = MODELS[case.call].pairs(case.size), "tf32" if case.precision.startswith("tf32") else "bf16"
    seconds = [
        max(
            pairs * (case.size.d * costs.a_product + costs.an_entry) / machine.warp_instructions,
            2.0 * pairs * case.size.d * costs.work / machine.matrix[single],
        )
        for costs in launches
        if costs is not None
    ]
    return case.passes * sum(seconds) if seconds else None


def roofline(case: Case, machine: Machine = H200) -> Bound:
    """The least time that a case can take, whoever computes it."""
    least = bound(MODELS[case.call].work(case.size, ITEMSIZE[case.dtype]), case.precision, machine)
    return least._replace(seconds=least.seconds * case.passes)
