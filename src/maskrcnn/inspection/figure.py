"""One picture of one step, with the numbers beside it: what every stage gives to the command, the page and the docs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Number = int | float | str | None

STAGES = ("input", "features", "anchors", "proposals", "levels", "boxes", "masks", "result")  # as a picture meets them


@dataclass(frozen=True, eq=False)
class Figure:
    """A picture that a person understands at once.

    name: of its file, "anchors_coverage". stage: one of `STAGES`, or "weights". title: a few words. caption: a sentence
    or two of what is seen, which is also read aloud to those who cannot see it. picture: (H, W, 3) uint8.
    numbers: rows of a table, the first its head; empty where there is nothing to count.
    """

    name: str
    stage: str
    title: str
    caption: str
    picture: np.ndarray
    numbers: tuple[tuple[Number, ...], ...] = ()
