from __future__ import annotations

import numpy as np
import pytest
import torch

from maskrcnn.ops import masks
from maskrcnn.ops.paste import as_array, paste_bitmaps, paste_rle, pasted_iou

PROBABILITIES = np.random.default_rng(0).random((6, 14, 14), dtype=np.float32)
BOXES = np.array(
    [[3, 4, 20, 30], [0, 0, 60, 50], [10, 10, 10, 20], [-8, 30, 14, 70], [1.5, 2.5, 9, 8], [40, 20, 59, 49]]
)


def test_arrays_and_tensors_give_the_same() -> None:
    tensors = torch.from_numpy(PROBABILITIES), torch.from_numpy(BOXES)
    assert paste_rle(PROBABILITIES, BOXES, (50, 60)) == masks.paste_rle(*tensors, (50, 60))
    np.testing.assert_array_equal(
        paste_bitmaps(PROBABILITIES, BOXES, (50, 60)), masks.paste_masks(*tensors, (50, 60)).numpy()
    )
    iou = masks.mask_iou(*tensors, (50, 60))
    assert iou.dtype == torch.float32
    np.testing.assert_array_equal(pasted_iou(PROBABILITIES, BOXES, (50, 60)).astype(np.float32), iou.numpy())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_tensors_of_any_type_become_arrays(kind: torch.dtype) -> None:
    values = torch.tensor([0.5, 0.25], dtype=kind, requires_grad=True)
    for wanted in (np.float32, np.float64):
        assert as_array(values, wanted).dtype == wanted
        assert as_array(values, wanted).tolist() == [0.5, 0.25]
