from __future__ import annotations

import numpy as np
import pytest

from maskrcnn.data.rle_check import are_sound
from maskrcnn.errors import InputError
from maskrcnn.ops.rle import RLE, counts_of, encode


def slow(text: str, size: tuple[int, int]) -> bool:
    try:
        return bool(counts_of(RLE(size=list(size), counts=text))[1::2].any())
    except InputError:
        return False


def test_none() -> None:
    assert are_sound([], []).shape == (0,)


def test_sound_masks_of_many_sizes() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random(rng.integers(1, 40, 2)) < p for p in rng.random(300)]
    for mask in masks:
        mask[0, 0] = True
    found = are_sound([encode(mask)["counts"] for mask in masks], [mask.size for mask in masks])
    assert found.all()


def test_huge_picture() -> None:
    text = "0" + encode(np.ones((1, 1)))["counts"][1:]
    wide = RLE(size=[30000, 30000], counts=text)
    assert not are_sound([text], [30000 * 30000])[0]
    full = encode(np.ones((3000, 2000), dtype=np.uint8))["counts"]
    assert are_sound([full], [6_000_000])[0] and wide["counts"] == text


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_reading_one_by_one_when_strings_are_damaged(seed: int) -> None:
    rng = np.random.default_rng(seed)
    texts = ["", "é", "0", "hb0", "o" * 30]
    sizes = [(20, 30)] * len(texts)
    for _ in range(400):
        size = (int(rng.integers(1, 20)), int(rng.integers(1, 20)))
        text = list(encode(rng.random(size) < rng.random())["counts"])
        for _ in range(rng.integers(0, 3)):
            at = int(rng.integers(len(text) + 1))
            kind = rng.integers(3)
            if kind == 0:
                text.insert(at, chr(rng.integers(40, 120)))
            elif at < len(text):
                text[at : at + 1] = [] if kind == 1 else [chr(rng.integers(40, 120))]
        texts.append("".join(text))
        sizes.append(size)
    expected = [slow(text, size) for text, size in zip(texts, sizes, strict=True)]
    found = are_sound(texts, [h * w for h, w in sizes])
    assert 50 < sum(expected) < 350
    np.testing.assert_array_equal(found, expected)
