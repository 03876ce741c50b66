"""How good a clustering is: ``external`` compares it with known classes."""

from fastdc.metrics.external import (
    adjusted_mutual_info,
    adjusted_rand_index,
    clustering_accuracy,
    completeness,
    evaluate,
    homogeneity,
    label_map,
    normalized_mutual_info,
    pair_f_measure,
    purity,
    v_measure,
)

__all__ = [
    "adjusted_mutual_info",
    "adjusted_rand_index",
    "clustering_accuracy",
    "completeness",
    "evaluate",
    "homogeneity",
    "label_map",
    "normalized_mutual_info",
    "pair_f_measure",
    "purity",
    "v_measure",
]
