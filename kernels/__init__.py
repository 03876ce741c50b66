"""fastdc.kernels: one room an op. README.md beside this file is the map."""

if __name__ != "fastdc.kernels":
    raise ImportError(
        f"the folder kernels/ is the package fastdc.kernels, it was imported as {__name__!r}; "
        "write `import fastdc.kernels` (from the root of the checkout, or with fastdc installed)"
    )

from fastdc.kernels._backend import BackendError, Choice, Hardware, choose, explain, use_backend

OPS = {  # public op -> its room
    "student_t_assign": "student_t",
    "student_t_statistics": "student_t",
    "target_distribution": "student_t",
    "dec_loss": "student_t",
    "nearest_center": "kmeans",
    "kmeans_step": "kmeans",
    "kmeans_plusplus": "kmeans",
    "kmeans_loss": "kmeans",
    "contingency_table": "contingency",
    "knn": "neighbors",
    "radius_neighbors": "neighbors",
    "radius_counts": "density",
    "density_clusters": "density",
    "sinkhorn_assign": "sinkhorn",
    "swapped_prediction_loss": "sinkhorn",
    "sinkhorn_assign_features": "sinkhorn",
    "optimal_transport_labels": "sinkhorn",
    "optimal_transport_loss": "sinkhorn",
    "entropy_statistics": "mutual_information",
    "conditional_entropy": "mutual_information",
    "marginal_entropy": "mutual_information",
    "rim_loss": "mutual_information",
    "vat_kl": "mutual_information",
    "silhouette_coefficients": "pairwise",
    "hardest_pairs": "pairwise",
    "center_distances": "pairwise",
    "cluster_dispersion": "pairwise",
    "pairwise_bce": "pairwise",
    "soft_nearest_neighbor_loss": "pairwise",
    "triplet_loss": "pairwise",
    "gmm_responsibilities": "gaussian_mixture",
    "gmm_log_density": "gaussian_mixture",
    "gmm_step": "gaussian_mixture",
    "vade_loss": "gaussian_mixture",
    "laplacian_loss": "graph",
    "heat_weights": "graph",
    "propagate": "graph",
    "neighbor_consistency_loss": "graph",
    "nt_xent": "contrastive",
    "info_nce": "contrastive",
    "sup_con": "contrastive",
    "prototype_contrast": "contrastive",
    "instance_discrimination": "contrastive",
}

__all__ = ["OPS", "BackendError", "Choice", "Hardware", "choose", "explain", "use_backend"]
