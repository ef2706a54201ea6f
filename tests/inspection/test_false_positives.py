"""What is wrong with a detection: one of each kind, and TIDE's own order where two apply."""

from __future__ import annotations

import numpy as np
import pytest

from maskrcnn.inspection.false_positives import KINDS, FalsePositives, false_positives
from maskrcnn.inspection.matched import matched

from .made_up import Line, Thing, picture, settings

OBJECT = Thing((20, 20, 40, 40))
ALL = settings(masks=False, nms_iou=1.0, rpn={"nms_iou": 1.0})


def wrong(things: list[Thing], lines: list[Line]) -> FalsePositives:
    return false_positives(matched(picture(things, lines, ALL)))


RIGHT = Line((20, 20, 40, 40), score=0.9)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (Line((20, 20, 40, 38), score=0.8), "duplicate"),  # 0.9 with an object that is found
        (Line((20, 20, 40, 38), score=0.8, label=2), "class"),
        (Line((30, 20, 50, 40), score=0.8), "place"),  # 1/3
        (Line((30, 20, 50, 40), score=0.8, label=2), "both"),
        (Line((37, 20, 57, 40), score=0.8), "background"),  # 3/37
        (Line((70, 20, 90, 40), score=0.8), "background"),
    ],
)
def test_kinds(line: Line, kind: str) -> None:
    result = wrong([OBJECT], [RIGHT, line])
    assert result.names() == [None, kind]
    assert result.mended.tolist() == [-1, -1]  # its object is found, so nothing is won by mending it
    assert not result.missed.any()


def test_one_of_several_faults_on_an_object_is_mended() -> None:
    """The best of those that would find it, whichever fault it has; the object then is not missed."""
    lines = [
        Line((20, 20, 40, 40), score=0.6, label=2),
        Line((30, 20, 50, 40), score=0.7),
        Line((70, 20, 90, 40), score=0.8),
    ]
    result = wrong([OBJECT, Thing((60, 60, 90, 90))], lines)
    assert result.names() == ["background", "place", "class"]  # best score first
    assert result.mended.tolist() == [-1, 0, -1]
    assert result.missed.tolist() == [False, True]


def test_place_goes_before_class() -> None:
    things = [OBJECT, Thing((30, 20, 50, 40), label=2)]
    assert wrong(things, [Line((30, 20, 50, 40), score=0.8)]).names() == ["place"]


def test_nothing_to_be_wrong_about() -> None:
    assert wrong([], [Line((70, 20, 90, 40))]).names() == ["background"]
    assert wrong([OBJECT], []).names() == [] and wrong([OBJECT], []).missed.tolist() == [True]
    assert wrong([], []).names() == []


def test_a_detection_in_a_crowd_is_neither_right_nor_wrong() -> None:
    crowd = Thing((0, 0, 60, 60), crowd=True)
    result = wrong([crowd], [RIGHT, Line((70, 20, 90, 40), score=0.5), Line((20, 20, 40, 40), label=2, score=0.3)])
    assert result.names() == [None, "background", "background"]  # the last is in a crowd of another class
    assert not result.missed.any()


def test_what_does_not_count_is_left_out() -> None:
    found = matched(picture([OBJECT], [RIGHT, Line((70, 20, 90, 40), score=0.5)], ALL))
    assert false_positives(found, np.array([False, True])).names() == [None, None]
    assert set(KINDS) == {"class", "place", "both", "duplicate", "background"}
