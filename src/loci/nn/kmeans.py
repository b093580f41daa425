"""k-means, small and seeded: k-means++ starts, Lloyd's steps, the best of several runs.

S. Lloyd, "Least Squares Quantization in PCM", 1982; D. Arthur and S. Vassilvitskii, "k-means++: The
Advantages of Careful Seeding", SODA 2007.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

STEPS = 100

# Shapes: n points, w their width, k clusters.


def kmeans(points_nw: Tensor, clusters: int, *, runs: int = 10, seed: int = 0) -> Tensor:
    """Return the cluster of each point, int64 [n], numbered by the first point in each.

    There are as many clusters as asked for, or as different points where these are fewer; none is
    empty.
    """
    different = int(torch.unique(points_nw, dim=0).shape[0])
    count = min(clusters, different)
    generator = Generator().manual_seed(seed)
    best: tuple[float, Tensor] | None = None
    for _ in range(runs):
        found_n, error = _run(points_nw.double(), count, generator)
        if best is None or error < best[0] - 1e-12:
            best = error, found_n
    assert best is not None
    return _numbered(best[1])


def _run(points_nw: Tensor, count: int, generator: Generator) -> tuple[Tensor, float]:
    centers_kw = _starts(points_nw, count, generator)
    found_n = torch.full((len(points_nw),), -1)
    for _ in range(STEPS):
        squares_nk = torch.cdist(points_nw, centers_kw).square_()
        nearest_n = squares_nk.argmin(1)
        for empty in range(count):  # it takes the point that is worst off where it is
            if not bool((nearest_n == empty).any()):
                own_n = squares_nk.gather(1, nearest_n[:, None])[:, 0]
                alone_n = torch.bincount(nearest_n, minlength=count)[nearest_n] == 1
                nearest_n[own_n.masked_fill(alone_n, -1.0).argmax()] = empty
        if torch.equal(nearest_n, found_n):
            break
        found_n = nearest_n
        centers_kw = torch.stack([points_nw[found_n == k].mean(0) for k in range(count)])
    error = (points_nw - centers_kw[found_n]).square().sum()
    return found_n, float(error)


def _starts(points_nw: Tensor, count: int, generator: Generator) -> Tensor:
    """Return centers far from each other: each is drawn by its squared distance to the others."""
    first = int(torch.randint(len(points_nw), (1,), generator=generator))
    chosen = [first]
    for _ in range(count - 1):
        squares_n = torch.cdist(points_nw, points_nw[chosen]).square_().amin(1)
        chosen.append(int(torch.multinomial(squares_n, 1, generator=generator)))
    return points_nw[chosen].clone()


def _numbered(found_n: Tensor) -> Tensor:
    order: dict[int, int] = {}
    for cluster in found_n.tolist():
        order.setdefault(cluster, len(order))
    return torch.tensor([order[cluster] for cluster in found_n.tolist()])
