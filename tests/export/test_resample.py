from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maskrcnn.export.resample import resize_bilinear

SIZES = [((37, 53), (37, 53)), ((37, 53), (74, 106)), ((64, 48), (20, 31)), ((5, 7), (1, 1)), ((90, 33), (51, 80))]


@pytest.mark.parametrize(("before", "after"), SIZES)
@pytest.mark.parametrize("antialias", [True, False])
def test_equals_torch(before: tuple[int, int], after: tuple[int, int], antialias: bool) -> None:
    picture = torch.rand(3, *before)
    theirs = F.interpolate(picture[None], after, mode="bilinear", align_corners=False, antialias=antialias)[0]
    ours = resize_bilinear(picture.numpy(), *after, antialias=antialias)
    assert ours.dtype == np.float32 and ours.shape == (3, *after)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_a_single_pixel_grows_to_an_even_area() -> None:
    grown = resize_bilinear(np.full((3, 1, 1), 0.25, dtype=np.float32), 4, 6, antialias=True)
    np.testing.assert_array_equal(grown, np.full((3, 4, 6), 0.25, dtype=np.float32))
