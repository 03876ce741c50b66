"""K-means from the top: one cluster is split in two until there are enough."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from fastdc._input import give_back, read_count, read_sample_weight, read_seed
from fastdc.cluster._centers import CenterModel
from fastdc.cluster._whole import files_for_sources, finite_rows, read_whole, spread
from fastdc.cluster.lloyd import Solution, lloyd
from fastdc.cluster.streaming import StreamedRows, new_labels
from fastdc.kernels._copies import copy_rows
from fastdc.kernels.kmeans import center_update, kmeans_step, nearest_center
from fastdc.kernels.neighbors.points import is_finite_row

STRATEGIES = ("biggest_inertia", "largest_cluster")


class _Node(NamedTuple):
    """A cluster on the way: its rows (None: all), and its inertia and weight."""

    number: int
    rows: Tensor | None
    inertia: float
    weight: float


@dataclass(eq=False, repr=False, kw_only=True)
class BisectingKMeans(CenterModel):
    """Bisecting k-means: the worst or largest cluster is split by 2-means until there are ``n_clusters``.

    Parameters
    ----------
    n_clusters : int
        At most the number of samples.
    init : {"k-means++", "k-means||", "random"}
        Where each split starts.
    n_init : "auto" or int
        Runs of each split, of which the one of least inertia counts. "auto" is 1, and 10 with init="random".
    max_iter : int
        Most iterations of a run.
    tol : float
        A run ends when the squared movements of both centers add up to at most ``tol`` times the mean variance of
        the features among the rows that it splits, or when no label changes.
    bisecting_strategy : {"biggest_inertia", "largest_cluster"}
        Which cluster is split next: that of the largest sum of squared distances, or of the largest weight of rows.
    device, backend, check_finite, random_state
        As of :class:`KMeans`.

    Attributes
    ----------
    labels_ : array of shape (n_samples,), int32
    cluster_centers_ : array of shape (n_clusters, n_features)
        From the left of the tree to the right, so that clusters of a branch have numbers that follow each other.
    inertia_ : float
        Weighted sum of squared distances to the centers of ``labels_``.
    n_iter_ : int
        Most iterations that a split took.
    node_centers_ : array of shape (n_nodes, n_features)
        Of the tree that ``predict`` goes down; node 0 is its root, the mean of all rows.
    children_ : array of shape (n_nodes, 2), int64
        The two nodes below a node, or -1 and the label of a leaf.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    ``predict`` goes down the tree, to the nearer of two centers each time, as the rows of ``fit`` did: this need not
    be the nearest of all centers. It takes about 2 log2(n_clusters) distances a row where the tree is balanced.
    Results are the same bits for any number of threads. Memory: beside X 12 bytes a row, and a copy of the rows that
    are split, the first time none.
    The rows of a source take little memory: those that cannot be seen where they lie, and copies of 64 MB and more, are
    in temporary files (the environment variable TMPDIR says where).

    References
    ----------
    Steinbach, Karypis, Kumar. A comparison of document clustering techniques. KDD Workshop on Text Mining, 2000.

    Examples
    --------
    >>> import numpy as np
    >>> from fastdc import BisectingKMeans
    >>> X = np.array([[0.0], [1.0], [10.0], [11.0], [40.0], [41.0]])
    >>> model = BisectingKMeans(3, random_state=0).fit(X)
    >>> sorted(model.cluster_centers_[:, 0].tolist())
    [0.5, 10.5, 40.5]
    >>> bool(model.predict([[39.0]])[0] == model.labels_[4])
    True
    """

    n_clusters: int = field(default=8, kw_only=False)
    init: Any = "k-means++"
    n_init: Any = "auto"
    max_iter: int = 300
    tol: float = 1e-4
    bisecting_strategy: str = "biggest_inertia"
    device: str | torch.device | None = None
    backend: str | None = None
    check_finite: bool = True
    random_state: Any = None

    @files_for_sources
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> BisectingKMeans:
        """Find the centers.

        Parameters
        ----------
        X : array-like or RowSource of shape (n_samples, n_features)
            Computed in its own precision, float32 or float64.
        y : ignored
        sample_weight : array-like of shape (n_samples,), optional

        Returns
        -------
        self : fitted estimator

        Raises
        ------
        ValueError, TypeError
            For bad parameters and bad data.

        Warns
        -----
        ConvergenceWarning
            If rows repeat, so that there are fewer clusters than asked for.
        """
        n_clusters = read_count(self.n_clusters, "n_clusters")
        read_count(self.max_iter, "max_iter")
        if not self.tol >= 0:
            raise ValueError(f"tol must be 0 or above, got {self.tol}")
        if self.bisecting_strategy not in STRATEGIES:
            raise ValueError(f"bisecting_strategy must be one of {STRATEGIES}, got {self.bisecting_strategy!r}")
        if not isinstance(self.init, str):
            raise ValueError("init must be 'k-means++', 'k-means||' or 'random': each split has a start of its own")
        whole = read_whole(X, self)
        weight = read_sample_weight(sample_weight, whole)
        x, finite = finite_rows(whole, check=not self.check_finite)
        weight = weight if weight is None or finite is None else weight[finite]
        read_count(n_clusters, "n_clusters", high=len(x), high_name="n_samples")
        with torch.no_grad():
            tree = _Tree(x, weight, self)
            while tree.n_leaves < n_clusters and tree.split():
                pass
        if tree.n_leaves < n_clusters:
            warnings.warn(
                f"Number of distinct clusters ({tree.n_leaves}) found smaller than n_clusters ({n_clusters}). X may "
                "hold repeated rows; ask for fewer clusters.",
                ConvergenceWarning,
                stacklevel=2,
            )
        leaves = tree.number_leaves()
        self.node_centers_ = give_back(torch.stack(tree.centers), X)
        self.children_ = give_back(torch.tensor(tree.children), X)
        self.cluster_centers_ = give_back(torch.stack([tree.centers[leaf] for leaf in leaves]), X)
        self.labels_ = give_back(spread(tree.labels(), finite, -1), X)
        self.inertia_ = float(sum(node.inertia for node in tree.nodes))
        self.n_iter_ = tree.n_iter
        return self

    def predict(self, X: Any) -> Any:
        """The leaf of the tree that each row of ``X`` comes to, int32; -1 where it is not finite."""
        x, _ = self._read(X)
        labels = x.fill(new_labels(x), self._descend) if isinstance(x, StreamedRows) else self._descend(x)
        return give_back(labels, X)

    def _descend(self, x: Tensor) -> Tensor:
        centers, children = (torch.as_tensor(part, device=x.device) for part in (self.node_centers_, self.children_))
        labels = torch.full((len(x),), -1, dtype=torch.int32, device=x.device)
        waiting = [(0, is_finite_row(x).nonzero()[:, 0])]
        below = children.tolist()
        while waiting:
            node, rows = waiting.pop()
            left, right = below[node]
            if left < 0:
                labels[rows] = right
            elif len(rows):
                side = nearest_center(x[rows], centers[[left, right]], backend=self.backend).labels
                waiting += [(left, rows[side == 0]), (right, rows[side == 1])]
        return labels


class _Tree:
    """What has been split. ``children[i]`` are the two nodes below node i; those of a leaf are -1 and its label."""

    def __init__(self, x: Tensor, weight: Tensor | None, model: BisectingKMeans) -> None:
        self.x, self.weight, self.model = x, weight, model
        self.random = np.random.default_rng(read_seed(model.random_state))
        self.n_runs = model._n_runs()
        sums = kmeans_step(x, x[:1], sample_weight=weight, backend=model.backend)
        mean = center_update(sums.sums, sums.counts, x[:1])
        around = kmeans_step(x, mean, sample_weight=weight, backend=model.backend)
        self.centers: list[Tensor] = [mean[0]]
        self.children = [[-1, 0]]
        self.nodes = [_Node(0, None, float(around.inertia), float(around.counts))]  # the leaves
        self.whole: set[int] = set()  # leaves whose rows cannot be told apart
        self.n_iter = 1

    @property
    def n_leaves(self) -> int:
        return len(self.nodes)

    def split(self) -> bool:
        """Split the leaf that is next; False where none can be."""
        open_ones = [node for node in self.nodes if node.number not in self.whole]
        if not open_ones:
            return False
        by_inertia = self.model.bisecting_strategy == "biggest_inertia"
        worst = max(open_ones, key=lambda node: node.inertia if by_inertia else node.weight)
        rows = worst.rows
        x = self.x if rows is None else copy_rows(self.x, rows)
        weight = self.weight if rows is None or self.weight is None else self.weight[rows]
        found = self._halves(x, weight, worst)
        if found is None:
            self.whole.add(worst.number)
            return True
        self.nodes.remove(worst)
        self.children[worst.number] = [len(self.centers), len(self.centers) + 1]
        sq_dists = nearest_center(x, found.centers, backend=self.model.backend).sq_dists.double()
        for side in range(2):
            here = found.labels == side
            own = sq_dists[here] if weight is None else sq_dists[here] * weight[here]
            total = float(here.sum() if weight is None else weight[here].double().sum())
            numbers = here.nonzero()[:, 0] if rows is None else rows[here]
            self.nodes.append(_Node(len(self.centers), numbers, float(own.sum()), total))
            self.centers.append(found.centers[side])
            self.children.append([-1, -1])
        return True

    def _halves(self, x: Tensor, weight: Tensor | None, node: _Node) -> Solution | None:
        """The best of the runs of 2-means among the rows of a leaf; None where it leaves a half empty."""
        if node.inertia == 0 or int(len(x) if weight is None else (weight > 0).sum()) < 2:
            return None
        model = self.model
        tol = model.tol * node.inertia / (node.weight * x.shape[1])
        best: Solution | None = None
        for _ in range(self.n_runs):
            start = model._start(x, weight, 2, self.random)
            found = lloyd(x, start, weight, max_iter=model.max_iter, tol=tol, backend=model.backend)
            self.n_iter = max(self.n_iter, len(found.history))
            if best is None or found.inertia < best.inertia:
                best = found
        assert best is not None, "there is at least one run"
        return best if 0 < int(best.labels.sum()) < len(x) else None

    def number_leaves(self) -> list[int]:
        """The leaves from left to right; each gets its label."""
        leaves: list[int] = []
        waiting = [0]
        while waiting:
            node = waiting.pop()
            if self.children[node][0] < 0:
                self.children[node][1] = len(leaves)
                leaves.append(node)
            else:
                waiting += reversed(self.children[node])
        return leaves

    def labels(self) -> Tensor:
        labels = torch.zeros(len(self.x), dtype=torch.int32, device=self.x.device)
        for node in self.nodes:
            if node.rows is not None:
                labels[node.rows] = self.children[node.number][1]
        return labels
