"""How good a clustering is: ``external`` compares it with known classes, ``internal`` looks at its own distances."""

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
from fastdc.metrics.internal import (
    calinski_harabasz_score,
    davies_bouldin_score,
    dunn_index,
    neighbor_consistency,
    rmse_to_center,
    silhouette_samples,
    silhouette_score,
    simplified_silhouette,
)
from fastdc.metrics.streaming import StreamingSilhouette

__all__ = [
    "StreamingSilhouette",
    "adjusted_mutual_info",
    "adjusted_rand_index",
    "calinski_harabasz_score",
    "clustering_accuracy",
    "completeness",
    "davies_bouldin_score",
    "dunn_index",
    "evaluate",
    "homogeneity",
    "label_map",
    "neighbor_consistency",
    "normalized_mutual_info",
    "pair_f_measure",
    "purity",
    "rmse_to_center",
    "silhouette_samples",
    "silhouette_score",
    "simplified_silhouette",
    "v_measure",
]
