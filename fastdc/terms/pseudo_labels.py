"""Terms that classify rows by labels which the method itself made."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastdc.cluster import KMeans
from fastdc.kernels._checks import check_not_negative
from fastdc.kernels.graph import neighbor_consistency_loss
from fastdc.metrics import clustering_accuracy
from fastdc.networks import MappedCentroids, SoftmaxHead
from fastdc.networks._random import drawn_from
from fastdc.terms.watch import Watch
from fastdc.training import Batch, Term


class NeighborConsistency(Watch):
    """SCAN's loss: a row and its neighbour, the two views of a batch, in one cluster; all clusters in even use.

    Parameters
    ----------
    head : SoftmaxHead
    entropy_weight : float
    """

    name = "consistency"
    head: SoftmaxHead

    def __init__(self, head: SoftmaxHead, entropy_weight: float = 5.0) -> None:
        super().__init__(head)
        self.entropy_weight = check_not_negative(entropy_weight, "entropy_weight")

    def forward(self, batch: Batch) -> Tensor:
        anchor, neighbor = (view.through(self.head) for view in batch.views)
        return neighbor_consistency_loss(anchor, neighbor, self.entropy_weight, from_logits=True)


class ConfidentLabels(Watch):
    """Cross-entropy of the second view under the label of the first, of rows whose label is sure.

    The labels of a batch weigh the more, the rarer they are in it. Without a sure row the loss is 0.

    Parameters
    ----------
    head : SoftmaxHead
    threshold : float
        Least probability of a sure label, from 0 to 1.
    """

    name = "self_labels"
    head: SoftmaxHead

    def __init__(self, head: SoftmaxHead, threshold: float = 0.99) -> None:
        super().__init__(head)
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold must be a probability, 0 or above and below 1, got {threshold}")
        self.threshold = threshold

    def forward(self, batch: Batch) -> Tensor:
        clean, augmented = batch.views
        with torch.no_grad():
            confidence, labels = clean.through(self.head).softmax(1).max(1)
        logits = augmented.through(self.head)
        sure = (confidence > self.threshold).to(logits.dtype)
        counts = logits.new_zeros(logits.shape[1]).index_add_(0, labels, sure)
        weights = sure / counts[labels].clamp(min=1)
        losses = cross_entropy(logits, labels, reduction="none")
        return (weights * losses).sum() / (counts > 0).sum().clamp(min=1)


class ClusterClassification(Term):
    """DeepCluster's loss: cross-entropy of a classifier under the k-means labels of the last refresh.

    A refresh whitens the embeddings, scales them to length one, clusters them by k-means, and draws the classifier
    anew. Labels weigh the more, the rarer they are, as if clusters were drawn evenly.

    Parameters
    ----------
    head : MappedCentroids
        Gets the centers where there are as many of them as labels.
    classifier : nn.Linear
        Logits of as many labels as k-means is to find.
    """

    name = "classification"
    needs_refresh = True

    def __init__(self, head: MappedCentroids, classifier: nn.Linear) -> None:
        super().__init__()
        self.classifier = classifier
        self.others = (head,)  # no submodule: this term does not train it

    @torch.no_grad()
    def refresh(self, z: Tensor) -> dict[str, Tensor]:
        (head,) = self.others
        n_labels = self.classifier.out_features
        head.whiten(z)
        kmeans = KMeans(n_labels, random_state=0).fit(head(z))
        if n_labels == len(head.centers):
            head.place(kmeans.cluster_centers_)
        labels, before = kmeans.labels_.long(), self.memory.get("labels")
        change = 1.0 if before is None else 1.0 - clustering_accuracy(before, labels)
        with drawn_from(torch.Generator().manual_seed(0)):  # the same in each process
            self.classifier.reset_parameters()
        sizes = labels.bincount(minlength=n_labels)
        weights = len(labels) / ((sizes > 0).sum() * sizes.clamp(min=1))
        self.memory |= {"labels": labels, "weights": weights.to(z.dtype)}
        return {
            "label_change": torch.tensor(change, device=z.device),
            "n_empty_clusters": (sizes == 0).sum(),
            "smallest_cluster": sizes.min(),
        }

    def forward(self, batch: Batch) -> Tensor:
        labels = self.memory["labels"][batch.rows]
        weights = self.memory["weights"][labels]
        losses = [cross_entropy(view.through(self.classifier), labels, reduction="none") for view in batch.views]
        return (weights * torch.stack(losses)).mean()
