from __future__ import annotations

import numpy as np
import torch

from maskrcnn.export.heatmaps import heatmaps_to_points
from maskrcnn.ops.keypoints import heatmaps_to_points as by_torch


def test_equals_torch() -> None:
    maps = torch.randn(6, 4, 14, 14)
    corner, side = (
        torch.rand(6, 2) * 50,
        torch.tensor([[40.0, 70.3], [3.2, 9.0], [0.2, 30.0], [14.0, 14.0], [99.9, 5], [28, 56]]),
    )
    boxes = torch.cat([corner, corner + side], dim=1)
    points, values = heatmaps_to_points(maps.numpy(), boxes.numpy())
    expected_points, expected_values = by_torch(maps, boxes)
    np.testing.assert_allclose(values, expected_values.numpy(), atol=1e-4)
    np.testing.assert_allclose(points, expected_points.numpy(), atol=1e-3)


def test_of_no_boxes_are_none() -> None:
    points, values = heatmaps_to_points(np.zeros((0, 5, 8, 8), dtype=np.float32), np.zeros((0, 4), dtype=np.float32))
    assert points.shape == (0, 5, 2) and values.shape == (0, 5)
