"""fastdc: fast deep clustering. The names below load on first use; importing fastdc itself loads nothing heavy."""

import importlib
from typing import TYPE_CHECKING, Any

from fastdc._version import __version__

_HOME = {  # public name -> the module that defines it
    "Adjacency": "fastdc.kernels.graph",
    "BackendError": "fastdc.kernels",
    "DBSCAN": "fastdc.cluster",
    "DEC": "fastdc.methods",
    "DensityPeaks": "fastdc.cluster",
    "EdgeList": "fastdc.kernels.graph",
    "GaussianMixture": "fastdc.cluster",
    "IDEC": "fastdc.methods",
    "KMeans": "fastdc.cluster",
    "MiniBatchKMeans": "fastdc.cluster",
    "SpectralClustering": "fastdc.cluster",
    "SphericalKMeans": "fastdc.cluster",
    "SubspaceClustering": "fastdc.cluster",
    "adjusted_mutual_info": "fastdc.metrics",
    "adjusted_rand_index": "fastdc.metrics",
    "balanced_assignment": "fastdc.kernels.kmeans",
    "cluster_contrast": "fastdc.kernels.contrastive",
    "clustering_accuracy": "fastdc.metrics",
    "conditional_entropy": "fastdc.kernels.mutual_information",
    "contingency_table": "fastdc.kernels.contingency",
    "dec_loss": "fastdc.kernels.student_t",
    "density_clusters": "fastdc.kernels.density",
    "entropy_statistics": "fastdc.kernels.mutual_information",
    "evaluate": "fastdc.metrics",
    "explain": "fastdc.kernels",
    "explain_algorithms": "fastdc.kernels.neighbors",
    "feature_decorrelation": "fastdc.kernels.contrastive",
    "gmm_log_density": "fastdc.kernels.gaussian_mixture",
    "gmm_responsibilities": "fastdc.kernels.gaussian_mixture",
    "gmm_step": "fastdc.kernels.gaussian_mixture",
    "gmm_update": "fastdc.kernels.gaussian_mixture",
    "heat_weights": "fastdc.kernels.graph",
    "iic_loss": "fastdc.kernels.mutual_information",
    "info_nce": "fastdc.kernels.contrastive",
    "instance_discrimination": "fastdc.kernels.contrastive",
    "joint_distribution": "fastdc.kernels.mutual_information",
    "kmeans_loss": "fastdc.kernels.kmeans",
    "kmeans_parallel": "fastdc.kernels.kmeans",
    "kmeans_plusplus": "fastdc.kernels.kmeans",
    "kmeans_step": "fastdc.kernels.kmeans",
    "knn": "fastdc.kernels.neighbors",
    "knn_graph": "fastdc.neighbors",
    "label_map": "fastdc.metrics",
    "laplacian_loss": "fastdc.kernels.graph",
    "locality_preserving_loss": "fastdc.kernels.graph",
    "low_rank_self_expression": "fastdc.kernels.self_expression",
    "marginal_entropy": "fastdc.kernels.mutual_information",
    "mine_neighbors": "fastdc.neighbors",
    "nearest_center": "fastdc.kernels.kmeans",
    "neighbor_consistency_loss": "fastdc.kernels.graph",
    "normalized_mutual_info": "fastdc.metrics",
    "nt_xent": "fastdc.kernels.contrastive",
    "optimal_transport_labels": "fastdc.kernels.sinkhorn",
    "optimal_transport_loss": "fastdc.kernels.sinkhorn",
    "orthogonal_matching_pursuit": "fastdc.kernels.self_expression",
    "pairwise_bce": "fastdc.kernels.pairwise",
    "propagate": "fastdc.kernels.graph",
    "prototype_concentration": "fastdc.kernels.contrastive",
    "prototype_contrast": "fastdc.kernels.contrastive",
    "purity": "fastdc.metrics",
    "radius_counts": "fastdc.kernels.density",
    "radius_neighbors": "fastdc.kernels.neighbors",
    "ridge_self_expression": "fastdc.kernels.self_expression",
    "rim_loss": "fastdc.kernels.mutual_information",
    "self_expression_loss": "fastdc.kernels.self_expression",
    "silhouette_score": "fastdc.metrics",
    "sinkhorn_assign": "fastdc.kernels.sinkhorn",
    "sinkhorn_assign_features": "fastdc.kernels.sinkhorn",
    "soft_nearest_neighbor_loss": "fastdc.kernels.pairwise",
    "student_t_assign": "fastdc.kernels.student_t",
    "student_t_statistics": "fastdc.kernels.student_t",
    "sup_con": "fastdc.kernels.contrastive",
    "swapped_prediction_loss": "fastdc.kernels.sinkhorn",
    "target_distribution": "fastdc.kernels.student_t",
    "triplet_loss": "fastdc.kernels.pairwise",
    "use_backend": "fastdc.kernels",
    "vade_loss": "fastdc.kernels.gaussian_mixture",
    "vat_kl": "fastdc.kernels.mutual_information",
}

__all__ = [
    "DBSCAN",
    "DEC",
    "IDEC",
    "Adjacency",
    "BackendError",
    "DensityPeaks",
    "EdgeList",
    "GaussianMixture",
    "KMeans",
    "MiniBatchKMeans",
    "SpectralClustering",
    "SphericalKMeans",
    "SubspaceClustering",
    "__version__",
    "adjusted_mutual_info",
    "adjusted_rand_index",
    "balanced_assignment",
    "cluster_contrast",
    "clustering_accuracy",
    "conditional_entropy",
    "contingency_table",
    "dec_loss",
    "density_clusters",
    "entropy_statistics",
    "evaluate",
    "explain",
    "explain_algorithms",
    "feature_decorrelation",
    "gmm_log_density",
    "gmm_responsibilities",
    "gmm_step",
    "gmm_update",
    "heat_weights",
    "iic_loss",
    "info_nce",
    "instance_discrimination",
    "joint_distribution",
    "kmeans_loss",
    "kmeans_parallel",
    "kmeans_plusplus",
    "kmeans_step",
    "knn",
    "knn_graph",
    "label_map",
    "laplacian_loss",
    "locality_preserving_loss",
    "low_rank_self_expression",
    "marginal_entropy",
    "mine_neighbors",
    "nearest_center",
    "neighbor_consistency_loss",
    "normalized_mutual_info",
    "nt_xent",
    "optimal_transport_labels",
    "optimal_transport_loss",
    "orthogonal_matching_pursuit",
    "pairwise_bce",
    "propagate",
    "prototype_concentration",
    "prototype_contrast",
    "purity",
    "radius_counts",
    "radius_neighbors",
    "ridge_self_expression",
    "rim_loss",
    "self_expression_loss",
    "silhouette_score",
    "sinkhorn_assign",
    "sinkhorn_assign_features",
    "soft_nearest_neighbor_loss",
    "student_t_assign",
    "student_t_statistics",
    "sup_con",
    "swapped_prediction_loss",
    "target_distribution",
    "triplet_loss",
    "use_backend",
    "vade_loss",
    "vat_kl",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'fastdc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from fastdc.cluster import (
        DBSCAN,
        DensityPeaks,
        GaussianMixture,
        KMeans,
        MiniBatchKMeans,
        SpectralClustering,
        SphericalKMeans,
        SubspaceClustering,
    )
    from fastdc.kernels import BackendError, explain, use_backend
    from fastdc.kernels.contingency import contingency_table
    from fastdc.kernels.contrastive import (
        cluster_contrast,
        feature_decorrelation,
        info_nce,
        instance_discrimination,
        nt_xent,
        prototype_concentration,
        prototype_contrast,
        sup_con,
    )
    from fastdc.kernels.density import density_clusters, radius_counts
    from fastdc.kernels.gaussian_mixture import (
        gmm_log_density,
        gmm_responsibilities,
        gmm_step,
        gmm_update,
        vade_loss,
    )
    from fastdc.kernels.graph import (
        Adjacency,
        EdgeList,
        heat_weights,
        laplacian_loss,
        locality_preserving_loss,
        neighbor_consistency_loss,
        propagate,
    )
    from fastdc.kernels.kmeans import (
        balanced_assignment,
        kmeans_loss,
        kmeans_parallel,
        kmeans_plusplus,
        kmeans_step,
        nearest_center,
    )
    from fastdc.kernels.mutual_information import (
        conditional_entropy,
        entropy_statistics,
        iic_loss,
        joint_distribution,
        marginal_entropy,
        rim_loss,
        vat_kl,
    )
    from fastdc.kernels.neighbors import explain_algorithms, knn, radius_neighbors
    from fastdc.kernels.pairwise import pairwise_bce, soft_nearest_neighbor_loss, triplet_loss
    from fastdc.kernels.self_expression import (
        low_rank_self_expression,
        orthogonal_matching_pursuit,
        ridge_self_expression,
        self_expression_loss,
    )
    from fastdc.kernels.sinkhorn import (
        optimal_transport_labels,
        optimal_transport_loss,
        sinkhorn_assign,
        sinkhorn_assign_features,
        swapped_prediction_loss,
    )
    from fastdc.kernels.student_t import (
        dec_loss,
        student_t_assign,
        student_t_statistics,
        target_distribution,
    )
    from fastdc.methods import DEC, IDEC
    from fastdc.metrics import (
        adjusted_mutual_info,
        adjusted_rand_index,
        clustering_accuracy,
        evaluate,
        label_map,
        normalized_mutual_info,
        purity,
        silhouette_score,
    )
    from fastdc.neighbors import knn_graph, mine_neighbors
