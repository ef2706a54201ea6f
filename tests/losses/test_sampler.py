from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskrcnn.losses.matcher import BACKGROUND, FOREGROUND, IGNORE
from maskrcnn.losses.sampler import sample


def kinds(foreground: int, background: int, ignored: int = 5) -> Tensor:
    values = torch.tensor([FOREGROUND] * foreground + [BACKGROUND] * background + [IGNORE] * ignored, dtype=torch.int8)
    return values[torch.randperm(len(values))]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("foreground", "background", "expected"),
    [
        (100, 1000, (64, 192)),  # a quarter of 256
        (10, 1000, (10, 246)),  # filled up with background
        (100, 50, (64, 50)),  # foreground does not fill up for background
        (0, 1000, (0, 256)),
        (100, 0, (64, 0)),
        (0, 0, (0, 0)),
    ],
)
def test_counts(foreground: int, background: int, expected: tuple[int, int]) -> None:
    kind = kinds(foreground, background)
    positive, negative = sample(kind, 256, 0.25, seeded(0))
    assert (len(positive), len(negative)) == expected
    assert positive.dtype == negative.dtype == torch.int64
    assert kind[positive].eq(FOREGROUND).all() and kind[negative].eq(BACKGROUND).all()
    for positions in (positive, negative):
        assert (positions.diff() > 0).all()  # sorted, none twice


def test_of_nothing() -> None:
    positive, negative = sample(torch.zeros(0, dtype=torch.int8), 256, 0.5, seeded(0))
    assert positive.shape == negative.shape == (0,)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_extreme_fractions(fraction: float) -> None:
    positive, negative = sample(kinds(50, 50), 20, fraction, seeded(0))
    assert (len(positive), len(negative)) == ((20, 0) if fraction else (0, 20))


def test_a_seed_makes_the_choice() -> None:
    kind = kinds(500, 500)
    first, again, other = (sample(kind, 100, 0.5, seeded(seed)) for seed in (3, 3, 4))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_the_choice_hangs_on_nothing_else_that_is_random() -> None:
    kind = kinds(500, 500)
    first = sample(kind, 100, 0.5, seeded(3))
    torch.rand(17)
    assert all(torch.equal(a, b) for a, b in zip(first, sample(kind, 100, 0.5, seeded(3)), strict=True))
    state = torch.get_rng_state()
    sample(kind, 100, 0.5, seeded(3))
    assert torch.equal(torch.get_rng_state(), state)


def test_every_box_has_the_same_chance() -> None:
    kind, generator, counts = kinds(10, 10, 0), seeded(0), torch.zeros(20)
    for _ in range(2000):
        for positions in sample(kind, 8, 0.5, generator):
            counts[positions] += 1
    torch.testing.assert_close(counts / 2000, torch.full((20,), 0.4), atol=0.05, rtol=0)
