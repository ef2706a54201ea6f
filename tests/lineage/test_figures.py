"""Boxes and arrows: nothing overlaps, all text is inside, arrows end at boxes and cross none, colours mean learning."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from maskrcnn.inspection.canvas import ORANGE, PURPLE, SKY, WIDTH
from maskrcnn.lineage.figures import _FINE, FIGURES, Box, Figure, _font, _Layout, _lines, draw
from maskrcnn.lineage.story import CHAPTERS, chapter_of
from maskrcnn.lineage.systems import MAIN

ALL = pytest.mark.parametrize("figure", FIGURES.values(), ids=list(FIGURES))


def apart(a: Box, b: Box) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_every_system_has_a_figure_and_a_chapter() -> None:
    assert list(FIGURES) == list(CHAPTERS) == list(MAIN)
    assert chapter_of("faster-rcnn-alternating") is CHAPTERS["faster-rcnn"]
    assert chapter_of("faster-rcnn") is CHAPTERS["faster-rcnn"] and chapter_of("base") is None


@ALL
def test_boxes_lie_on_the_page_and_apart(figure: Figure) -> None:
    layout = _Layout(figure)
    assert len({block.key for block in figure.blocks}) == len(layout.boxes) == len(figure.blocks)
    for a, b in combinations(layout.boxes.values(), 2):
        assert apart(a, b)
    for x1, y1, x2, y2 in layout.boxes.values():
        assert 0 <= x1 < x2 <= WIDTH and 0 <= y1 < y2 <= layout.height


@ALL
def test_text_is_narrower_than_its_box(figure: Figure) -> None:
    layout = _Layout(figure)
    for block in figure.blocks:
        x1, _, x2, _ = layout.boxes[block.key]
        title = _font(28, bold=True).getlength(block.title) / _FINE
        if block.kind in ("picture", "boxes", "masks"):
            assert x2 + 18 + title < WIDTH  # beside it
        else:
            assert title < x2 - x1 - 12
            assert all(_font(24).getlength(line) / _FINE <= x2 - x1 - 24 for line in _lines(block))
            assert " ".join(_lines(block)) == block.text


@ALL
def test_arrows_go_from_box_to_box_and_cross_no_other(figure: Figure) -> None:
    layout = _Layout(figure)
    ways = [(pair, layout.way(*pair)) for pair in figure.arrows]
    ways += [(pair, layout.way_around(*pair)) for pair in figure.around]
    for (start, end), way in ways:
        for key, point in ((start, way[0]), (end, way[-1])):
            x1, y1, x2, y2 = layout.boxes[key]
            inside = x1 <= point[0] <= x2 and y1 <= point[1] <= y2
            assert inside and (point[0] in (x1, x2) or point[1] in (y1, y2)), (start, end)
        for (ax, ay), (bx, by) in pairwise(way):
            assert ax == bx or ay == by
            line = (min(ax, bx) - 2, min(ay, by) - 2, max(ax, bx) + 2, max(ay, by) + 2)
            assert all(apart(line, box) for key, box in layout.boxes.items() if key not in (start, end))


@ALL
def test_everything_is_on_a_way_from_the_picture_to_what_is_found(figure: Figure) -> None:
    arrows = (*figure.arrows, *figure.around)
    reached, leads = {"picture"}, {"found"}
    for _ in figure.blocks:
        reached |= {end for start, end in arrows if start in reached}
        leads |= {start for start, end in arrows if end in leads}
    assert reached == leads == {block.key for block in figure.blocks}


@ALL
def test_a_frame_holds_the_boxes_of_its_rows_and_no_other(figure: Figure) -> None:
    layout = _Layout(figure)
    for first, last, _ in figure.repeated:
        frame = layout.frame(first, last)
        for block in figure.blocks:
            x1, y1, x2, y2 = layout.boxes[block.key]
            if first <= block.row <= last:
                assert frame[0] < x1 and frame[1] < y1 and x2 < frame[2] and y2 < frame[3]
            else:
                assert apart(frame, (x1, y1, x2, y2))


@ALL
def test_colours_are_those_of_what_is_learned(figure: Figure) -> None:
    assert {block.learned for block in figure.blocks} - {""} == set(figure.learned)
    drawn = draw(figure)
    assert drawn.shape[1:] == (WIDTH, 3) and drawn.dtype == np.uint8 and drawn.shape[0] < 2000
    groups = [bool((drawn == colour).all(axis=2).any()) for colour in (SKY, ORANGE, PURPLE)]
    if figure.key != "mask-rcnn":  # whose masks are drawn in these colours, too
        assert groups == [k < len(figure.learned) for k in range(3)]


def test_the_story_of_what_learns_together() -> None:
    groups = {key: len(figure.learned) for key, figure in FIGURES.items()}
    assert groups == {"hog-svm": 1, "rcnn": 3, "fast-rcnn": 1, "faster-rcnn": 1, "mask-rcnn": 1}
    searching = {key for key, figure in FIGURES.items() if any(block.key == "search" for block in figure.blocks)}
    assert searching == {"rcnn", "fast-rcnn"}
    assert "features to linear SVM of each class" in FIGURES["rcnn"].alt()
