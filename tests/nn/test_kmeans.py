"""k-means on points whose clusters are plain to see."""

from __future__ import annotations

import pytest
import torch

from loci.nn.kmeans import kmeans


def test_finds_groups_that_lie_apart() -> None:
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    true = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 1])
    noise = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    found = kmeans(centers[true] + noise * 0.3, 3)
    assert torch.equal(found, true), "clusters are numbered by their first point"
    assert torch.equal(found, kmeans(centers[true] + noise * 0.3, 3))


@pytest.mark.parametrize(("points", "clusters"), [(1, 4), (3, 4), (4, 4)])
def test_there_are_no_more_clusters_than_points(points: int, clusters: int) -> None:
    found = kmeans(torch.arange(float(points))[:, None], clusters)
    assert sorted(found.tolist()) == list(range(min(points, clusters)))


def test_equal_points_are_one_cluster_and_none_is_empty() -> None:
    assert kmeans(torch.ones(6, 3), 4).tolist() == [0] * 6
    same = torch.cat([torch.zeros(20, 2), torch.ones(1, 2), 2 * torch.ones(1, 2)])
    assert torch.unique(kmeans(same, 3)).tolist() == [0, 1, 2]
