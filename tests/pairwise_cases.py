"""Inputs and plain forms that the tests of the pairwise room share."""

import torch

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def make_clusters(n, d, k, dtype=torch.float32, seed=0, offset=0.0, spread=1.0):
    """Rows around k points, and their labels; every label has a row where n >= k."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(k, (n,), generator=generator)
    labels[: min(n, k)] = torch.arange(min(n, k))
    centers = 2 * torch.randn(k, d, generator=generator)
    x = offset + centers[labels] + spread * torch.randn(n, d, generator=generator)
    return x.to(dtype), labels


def working(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def plain_silhouette(x, labels, k):
    """In the dtype of x, as the docstring has it."""
    one_hot = torch.nn.functional.one_hot(labels, k)
    own, counts = one_hot.bool(), one_hot.sum(0)
    dists = (x[:, None] - x).square().sum(2).sqrt()
    sums = dists @ one_hot.to(dists)
    a, b = sums[own] / (counts[labels] - 1), (sums / counts).masked_fill(own, torch.inf).amin(1)
    return torch.where(counts[labels] == 1, 0.0, (b - a) / torch.maximum(a, b))


def loss_and_gradient(function, x, *arguments, **options):
    leaf = x.detach().clone().requires_grad_()
    loss = function(leaf, *arguments, **options)
    loss.backward()
    return loss.detach(), leaf.grad


# --- losses


def make_features(n, k, n_labels, dtype=torch.float32, seed=0):
    """Softmax outputs (n, k), some of them close to each other, and labels."""
    x, labels = make_clusters(n, k, n_labels, torch.float64, seed, spread=0.3)
    return x.softmax(1).to(dtype), labels


def others_of(f):
    """Rows that choose other pairs than those of f, exact in any dtype: these without their first feature."""
    others = f.detach().clone()
    others[:, 0] = 0.0
    return others


def plain_bce(f, labels=None, upper=0.95, lower=0.455, eps=1e-6, chosen_by=None):
    f = f / f.norm(dim=1, keepdim=True)
    g = f @ f.T
    others = f if chosen_by is None else torch.nn.functional.normalize(chosen_by, dim=1)
    chosen = others @ others.T
    same = labels == labels[:, None] if labels is not None else None
    positive, negative = (chosen >= upper, chosen < lower) if same is None else (same, ~same)
    selected = (positive | negative) & ~torch.eye(len(f), dtype=torch.bool)
    g = g.clamp(0, 1)
    terms = -torch.where(positive, g + eps, 1 - g + eps).log()
    return torch.where(selected, terms, 0.0).sum() / selected.sum().clamp(min=1)


def plain_neighbors(x, labels, temperature=1.0):
    itself = torch.eye(len(x), dtype=torch.bool)
    scores = -(x[:, None] - x).square().sum(2) / temperature
    same = (labels == labels[:, None]) & ~itself
    some = same.any(1)
    log_all = scores.masked_fill(itself, -torch.inf)[some].logsumexp(1)
    return (log_all - scores.masked_fill(~same, -torch.inf)[some].logsumexp(1)).mean()


def plain_triplets(x, labels, margin=None):
    square = (x[:, None] - x).square().sum(2)
    dists = torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)
    same, itself = labels == labels[:, None], torch.eye(len(x), dtype=torch.bool)
    far = dists.masked_fill(~same | itself, -torch.inf).max(1).values
    near = dists.masked_fill(same, torch.inf).min(1).values
    some = (same & ~itself).any(1) & (~same).any(1)
    gap = (far - near)[some]
    return (torch.nn.functional.softplus(gap) if margin is None else (gap + margin).relu()).mean()


def plain_all_triplets(x, labels, margin=0.7):
    square = (x[:, None] - x).square().sum(2)
    dists = torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)
    same, itself = labels == labels[:, None], torch.eye(len(x), dtype=torch.bool)
    anchor, positive, negative = ((same & ~itself)[:, :, None] & ~same[:, None]).nonzero().T
    terms = (margin + dists[anchor, positive] - dists[anchor, negative]).relu()
    return terms.sum() / (terms > 0).sum().clamp(min=1)
