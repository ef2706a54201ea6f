"""Points to cells of heat maps and back: against torchvision's functions, and there and back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints, keypoints_to_heatmap

from maskrcnn.ops import keypoints
from maskrcnn.ops.keypoints import heatmaps_to_points, points_to_cells

SIDE = 56


def boxes(count: int, low: float, high: float) -> Tensor:
    """(count, 4) with sides of `low` to `high` px."""
    near = torch.rand(count, 2) * 50
    return torch.cat([near, near + low + torch.rand(count, 2) * (high - low)], dim=1)


def smooth_maps(count: int, num_keypoints: int, side: int = SIDE) -> Tensor:
    """(count, num_keypoints, side, side) with hills, as a network makes them."""
    return F.interpolate(4 * torch.randn(count, num_keypoints, 8, 8), (side, side), mode="bicubic")


def test_cells_are_those_of_torchvision() -> None:
    rois = boxes(40, 5, 90)
    places = rois[:, None, :2] + torch.rand(40, 9, 2).mul(1.4).sub(0.2) * (rois[:, 2:] - rois[:, :2])[:, None]
    points = torch.cat([places, torch.randint(0, 3, (40, 9, 1)).float()], dim=2)
    points[3, 0], points[4, 1] = torch.tensor([*rois[3, 2:], 2]), torch.tensor([*rois[4, :2], 1])  # at the corners
    expected, labelled = keypoints_to_heatmap(points, rois, SIDE)
    cells = points_to_cells(points, rois, SIDE)
    assert torch.equal(cells >= 0, labelled.bool())
    assert torch.equal(cells[cells >= 0], expected[cells >= 0])
    assert 100 < (cells >= 0).sum() < 300
    assert (cells[3, 0], cells[4, 1]) == (SIDE * SIDE - 1, 0)


@pytest.mark.parametrize(
    ("point", "cell"),
    [
        ((10.0, 20.0, 2.0), 0),
        ((10.0, 20.0, 1.0), 0),  # hidden, and labelled all the same
        ((10.0, 20.0, 0.0), -1),
        ((9.99, 25.0, 2.0), -1),
        ((12.5, 25.0, 2.0), 2 * 4 + 1),
        ((18.0, 28.0, 2.0), 15),  # the far corner belongs to the box
        ((18.1, 28.0, 2.0), -1),
    ],
)
def test_cells_of_a_box(point: tuple[float, float, float], cell: int) -> None:
    box = torch.tensor([[10.0, 20.0, 18.0, 28.0]])
    assert points_to_cells(torch.tensor([[point]]), box, 4).tolist() == [[cell]]


def test_a_box_without_area_holds_nothing() -> None:
    points = torch.tensor([[[5.0, 5.0, 2.0], [6.0, 5.0, 2.0]]])
    assert points_to_cells(points, torch.tensor([[5.0, 5.0, 5.0, 5.0]]), SIDE)[0, 1] == -1


@pytest.mark.parametrize(("low", "high"), [(0.01, 1.5), (3, 50), (50, 60), (60, 300)])
def test_points_are_those_of_torchvision(low: float, high: float) -> None:
    rois, maps = boxes(12, low, high), smooth_maps(12, 5)
    points, values = heatmaps_to_points(maps, rois)
    expected, peaks = heatmaps_to_keypoints(maps, rois)
    assert (points - expected[..., :2]).abs().max() < 1e-4
    assert (values - peaks).abs().max() < 1e-4
    assert points.std(dim=1).max() > 0.05 * low


def test_strips_give_the_same_points_and_bound_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rois, maps = torch.tensor([[3.0, 5.0, 905.3, 402.9]]), smooth_maps(1, 5)
    whole = heatmaps_to_points(maps, rois)
    sizes = []
    matmul = torch.Tensor.__matmul__

    def noting(a: Tensor, b: Tensor) -> Tensor:
        sizes.append(matmul(a, b).numel())
        return matmul(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", noting)
    monkeypatch.setattr(keypoints, "_VALUES_AT_ONCE", 50_000)
    strips = heatmaps_to_points(maps, rois)
    assert torch.equal(whole[0], strips[0]) and torch.allclose(whole[1], strips[1])
    assert max(sizes) <= 50_000 and len(sizes) > 50


def test_there_and_back() -> None:
    """The middle of the highest cell, to within a cell and a pixel."""
    rois = boxes(30, 20, 200)
    cells = torch.randint(0, SIDE * SIDE, (30, 3))
    maps = torch.zeros(30, 3, SIDE * SIDE).scatter_(2, cells[..., None], 10.0).reshape(30, 3, SIDE, SIDE)
    points, _ = heatmaps_to_points(maps, rois)
    again = points_to_cells(torch.cat([points, torch.ones(30, 3, 1)], dim=2), rois, SIDE)
    sides = rois[:, None, 2:] - rois[:, None, :2]
    middle = rois[:, None, :2] + (torch.stack([cells % SIDE, cells // SIDE], dim=2) + 0.5) * sides / SIDE
    assert ((points - middle).abs() <= 0.5 + sides / SIDE).all()
    assert (again[sides.amin(dim=2).expand(-1, 3) > SIDE] == cells[sides.amin(dim=2).expand(-1, 3) > SIDE]).all()


def test_half_precision_around_it_moves_no_point() -> None:
    rois, maps = boxes(4, 50, 150), smooth_maps(4, 3)
    expected = heatmaps_to_points(maps, rois)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = heatmaps_to_points(maps, rois)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_no_boxes() -> None:
    points, values = heatmaps_to_points(torch.zeros(0, 17, SIDE, SIDE), torch.zeros(0, 4))
    assert (points.shape, values.shape) == ((0, 17, 2), (0, 17))
    assert points_to_cells(torch.zeros(0, 17, 3), torch.zeros(0, 4), SIDE).shape == (0, 17)
