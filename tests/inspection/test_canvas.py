"""The sheet: boxes lie on the pixels that they cover, pictures of any size fit the page."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskrcnn.inspection.canvas import (
    BAD,
    GOOD,
    TEXT,
    WIDTH,
    Canvas,
    Key,
    View,
    counted,
    focus,
    font_of,
    heat,
    in_window,
    legend,
    page,
    panel_width,
    panels,
    wrapped,
)


def _black(height: int, width: int) -> View:
    return View.of(np.zeros((height, width, 3), np.uint8))


def test_a_box_covers_the_pixels_between_its_edges() -> None:
    canvas = Canvas(_black(100, 200), width=1000, height=1000, dim=False)
    assert canvas.scale == 5 and canvas.array().shape == (500, 1000, 3)
    canvas.boxes(torch.tensor([[10.0, 20.0, 60.0, 80.0]]), GOOD, line=1)
    drawn = (canvas.array() == GOOD).all(axis=2)
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (100, 399, 50, 299)
    assert drawn.sum() == 2 * 250 + 2 * 298  # a rim of one px


def test_dotted_lies_where_solid_does_and_leaves_about_half() -> None:
    boxes = torch.tensor([[10.0, 20.0, 60.0, 80.0]])
    solid, dotted = Canvas(_black(100, 200), dim=False), Canvas(_black(100, 200), dim=False)
    solid.boxes(boxes, GOOD)
    dotted.boxes(boxes, GOOD, dotted=True)
    a, b = ((canvas.array() == GOOD).all(axis=2) for canvas in (solid, dotted))
    assert not (b & ~a).any() and 0.4 < b.sum() / a.sum() < 0.65


def test_the_first_box_is_on_top_and_each_has_its_colour() -> None:
    canvas = Canvas(_black(100, 100), dim=False)
    canvas.boxes(torch.tensor([[10.0, 10.0, 50.0, 50.0]] * 2), [GOOD, BAD])
    assert (canvas.array()[100, 200] == GOOD).all() and not (canvas.array() == BAD).all(axis=2).any()


@pytest.mark.parametrize(
    ("box", "dashes"),
    [
        ([-1e9, -1e9, 1e9, 1e9], 4 * 286),  # a dash every 14 px of 2000 px on either side, however large it is
        ([float("nan"), 0.0, 1.0, 1.0], 0),
        ([float("inf"), 0.0, float("inf"), 1.0], 0),
        ([30.0, 30.0, 30.0, 30.0], 2),  # a point: its edges fall together
        ([40.0, 40.0, 20.0, 20.0], 2),
        ([500.0, 500.0, 900.0, 900.0], 0),
    ],
)
def test_boxes_of_any_kind_are_drawn_or_left_out(
    box: list[float], dashes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    canvas = Canvas(_black(100, 100))
    drawn: list[tuple[int, ...]] = []

    def rectangle(place: tuple[int, ...], **_: object) -> None:
        drawn.append(place)
        assert len(drawn) <= 2000, "dashes far outside of the page"

    monkeypatch.setattr(canvas.pen, "rectangle", rectangle)
    canvas.boxes(torch.tensor([box]), GOOD)
    assert len(drawn) == (dashes > 0)
    drawn.clear()
    canvas.boxes(torch.tensor([box]), GOOD, dotted=True)
    assert len(drawn) == dashes


def test_names_do_not_cover_one_another() -> None:
    canvas = Canvas(_black(100, 100), dim=False)
    for shift in range(4):
        canvas.label((30.0 + shift, 30.0, 60.0, 60.0), "a name", GOOD)
    pages = np.zeros((1000, 1000), int)
    for x, y, width, height in canvas.names:
        pages[y : y + height, x : x + width] += 1
    assert len(canvas.names) == 4 and pages.max() == 1
    canvas.label((-50.0, -50.0, -40.0, -40.0), "outside", BAD)
    assert min(canvas.names[-1][:2]) >= 0


def test_a_window_shows_its_part_of_the_picture_in_place() -> None:
    picture = np.zeros((60, 80, 3), np.uint8)
    picture[20:30, 40:60] = 255
    seen = Canvas(View.of(picture), (30.0, 10.0, 70.0, 40.0), width=400, height=400, dim=False).array()
    assert seen.shape == (300, 400, 3)
    assert (seen[110:190, 110:290] > 200).all() and (seen[:90] < 50).all() and (seen[:, :90] < 50).all()
    beyond = Canvas(View.of(picture), (-80.0, -60.0, 0.0, 0.0), width=400, height=400, dim=False).array()
    assert len(np.unique(beyond.reshape(-1, 3), axis=0)) == 1
    sharp = Canvas(View.of(picture), (39.0, 19.0, 42.0, 22.0), width=300, height=300, dim=False, sharp=True).array()
    assert np.unique(sharp).tolist() == [0, 255] and (sharp[100:, 100:] == 255).all() and not sharp[:100].any()


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (7, 5), (500, 2400), (2400, 500)])
def test_pictures_of_any_size_fit_the_page(size: tuple[int, int]) -> None:
    view = View.of(np.random.default_rng(1).integers(0, 255, (*size, 3), dtype=np.uint8))
    canvas = Canvas(view)
    canvas.label((0.0, 0.0, 1.0, 1.0), "a name that may be wider than all of the picture", GOOD)
    canvas.notice("nothing to be seen here, and this is said in many words")
    assert canvas.array().shape[0] <= 1000 and canvas.array().shape[1] <= WIDTH
    assert page(canvas.array(), legend(Key("solid", GOOD, "found"))).shape[1] == WIDTH


def test_a_huge_picture_is_shrunk_once() -> None:
    picture = np.zeros((3000, 9000, 3), np.uint8)
    picture[1500:, 4500:] = 200
    view = View.of(picture)
    assert max(view.small.shape) == 2000
    whole = Canvas(view, dim=False).array()
    assert whole.shape == (333, 1000, 3) and abs(int(whole[300, 900, 0]) - 200) <= 1 and whole[10, 10, 0] == 0
    near = Canvas(view, (4480.0, 1490.0, 4520.0, 1510.0), width=400, height=400, dim=False).array()
    assert near[150, 300, 0] == 200 and near[150, 100, 0] == 0 and near[50, 300, 0] == 0


def test_dimmed_pictures_are_alike_however_faint() -> None:
    rng = np.random.default_rng(3)
    faint, strong = rng.integers(0, 50, (64, 64, 3)), rng.integers(0, 250, (64, 64, 3))
    means = [Canvas(View.of(p.astype(np.uint8))).array().mean() for p in (faint, strong)]
    assert abs(means[0] - means[1]) < 25 and max(means) < 130


def test_focus_goes_where_small_boxes_are() -> None:
    assert focus(torch.zeros(0, 4), (100, 200)) == (0, 0, 200, 100)
    assert focus(torch.tensor([[0.0, 0.0, 90.0, 90.0]]), (100, 200)) == (0, 0, 200, 100)
    small = torch.tensor([[500.0, 500.0, 510.0, 510.0], [100.0, 100.0, 110.0, 110.0], [115.0, 100.0, 125.0, 110.0]])
    x1, y1, x2, y2 = focus(small, (1000, 2000))
    assert x2 - x1 == y2 - y1 == 90 and x1 < 100 and x2 > 125 and y1 < 100
    assert in_window(small, (x1, y1, x2, y2)).tolist() == [False, True, True]
    corner = focus(torch.tensor([[0.0, 990.0, 10.0, 1000.0]]), (1000, 2000))
    assert corner == (0, 910, 90, 1000)


def test_legends_wrap_and_panels_stand_side_by_side() -> None:
    keys = [Key("dotted", BAD, "something that takes a while to say")] * 4
    assert legend(*keys).shape[0] > 2 * legend(keys[0]).shape[0] > 0
    picture = np.full((100, panel_width(), 3), 9, np.uint8)
    sheet = panels([("one", picture), ("two", picture), ("three", picture)])
    assert sheet.shape[1] == WIDTH and sheet.shape[0] > 200
    assert wrapped("a bb ccc", font_of(TEXT), 1.0) == ["a", "bb", "ccc"]
    assert (counted(1, "object"), counted(0, "object"), counted(1234, "cell")) == (
        "1 object",
        "0 objects",
        "1,234 cells",
    )


def test_heat_goes_from_dark_to_bright() -> None:
    colours = heat(np.array([[0.0, 0.5, 1.0, np.nan]])).astype(int).sum(axis=2)[0]
    assert colours[0] < colours[1] < colours[2] and colours[3] == 0
    assert len(np.unique(heat(np.full((3, 3), 2.0)).reshape(-1, 3), axis=0)) == 1
