"""Each system's figure of boxes and arrows, from picture to detections: what learns together, what is done per region.

Numbers in the figures are the papers'. A colour is learned together; grey is not learned at all. A dashed frame is gone
through once for each region. px are of the page, which is 1000 wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskrcnn.inspection.canvas import (
    GREY,
    INK,
    ORANGE,
    PAPER,
    PURPLE,
    SKY,
    WIDTH,
    YELLOW,
    Font,
    Key,
    font_of,
    legend,
    wrapped,
)
from maskrcnn.ops.draw import Colour

Kind = Literal["step", "data", "picture", "boxes", "masks"]
Place = Literal["middle", "left", "right"]

_FINE = 3  # times finer than the page while drawing: soft edges
_GAP, _MARGIN, _PAD = 58, 26, 16  # px between rows, around the page, inside a box
_TITLE, _TEXT = 28, 24  # px
_WIDE, _HALF = 560, 420  # px, widths of boxes
_CENTRES: dict[Place, float] = {"middle": WIDTH / 2, "left": 272.0, "right": 728.0}
_THUMB = (210, 132)  # px of the small drawings of a picture


@dataclass(frozen=True)
class Block:
    """A box: a step, what passes between steps ("data"), or a small picture. learned: its group, "" for none."""

    key: str
    row: int
    title: str
    text: str = ""
    learned: str = ""
    place: Place = "middle"
    kind: Kind = "step"


@dataclass(frozen=True)
class Figure:
    """A whole figure.

    arrows: pairs of keys; between boxes of one row they go sideways, else down. around: arrows that go down along the
    left side, past the rows between. repeated: (first row, last row, words) of each dashed frame.
    """

    key: str
    title: str
    blocks: tuple[Block, ...]
    arrows: tuple[tuple[str, str], ...]
    repeated: tuple[tuple[int, int, str], ...]
    learned: Mapping[str, str]  # group -> words of the legend
    around: tuple[tuple[str, str], ...] = field(default=())

    def alt(self) -> str:
        """The figure in words."""
        names = {block.key: block.title for block in self.blocks}
        steps = "; ".join(f"{names[a]} to {names[b]}" for a, b in (*self.arrows, *self.around))
        parts = {group: [block.title for block in self.blocks if block.learned == group] for group in self.learned}
        learned = "; ".join(f"{self.learned[group]}: {', '.join(titles)}" for group, titles in parts.items())
        frames = "; ".join(words for *_, words in self.repeated)
        return f"{self.title}, boxes and arrows: {steps}. Gone through {frames}. {learned}."


_PICTURE = Block("picture", 0, "picture", kind="picture")

HOG_SVM = Figure(
    "hog-svm",
    "HOG + SVM (Dalal and Triggs 2005)",
    (
        _PICTURE,
        Block("pyramid", 1, "image pyramid", "the picture at many sizes: one window finds objects of every size"),
        Block("hog", 2, "HOG", "gradients by direction, counted in small cells, normalised over blocks of cells"),
        Block("window", 3, "window", "the cells under a fixed frame, as one vector"),
        Block("svm", 4, "linear SVM of each class", "is it one? Learns again from its own mistakes", "svm"),
        Block("nms", 5, "non-maximum suppression", "of overlapping windows the best stays"),
        Block("found", 6, "boxes", kind="boxes"),
    ),
    (
        ("picture", "pyramid"),
        ("pyramid", "hog"),
        ("hog", "window"),
        ("window", "svm"),
        ("svm", "nms"),
        ("nms", "found"),
    ),
    ((3, 4, "for every window of every size"),),
    {"svm": "learned: SVMs, on features made by hand"},
)

RCNN = Figure(
    "rcnn",
    "R-CNN (Girshick et al. 2014)",
    (
        _PICTURE,
        Block("search", 1, "Selective Search", "about 2000 regions, merged from similar neighbours"),
        Block("warp", 2, "warp", "the region with some context, squeezed to the size that the CNN takes"),
        Block("cnn", 3, "CNN", "one whole pass for each region", "cnn"),
        Block("features", 4, "features", "a vector for each region; written to disk to learn from", kind="data"),
        Block("svm", 5, "linear SVM of each class", "which class?", "svm", "left"),
        Block("box", 5, "box regression", "where exactly? Of each class", "box", "right"),
        Block("nms", 6, "non-maximum suppression", "of overlapping boxes the best stays"),
        Block("found", 7, "boxes and classes", kind="boxes"),
    ),
    (
        ("picture", "search"),
        ("search", "warp"),
        ("warp", "cnn"),
        ("cnn", "features"),
        ("features", "svm"),
        ("features", "box"),
        ("svm", "nms"),
        ("box", "nms"),
        ("nms", "found"),
    ),
    ((2, 5, "for each of 2000 regions"),),
    {
        "cnn": "learned first: fine-tuned on warped regions",
        "svm": "learned second: SVMs",
        "box": "learned third: ridge regression",
    },
)

# what Fast, Faster and Mask R-CNN do with a pooled region
_HEADS = (
    Block("fc", 4, "fully connected layers", "", "net"),
    Block("class", 5, "softmax", "which class, or none?", "net", "left"),
    Block("box", 5, "box regression", "where exactly? Of each class", "net", "right"),
    Block("nms", 6, "non-maximum suppression", "of overlapping boxes the best stays"),
)
_THROUGH_HEADS = (("fc", "class"), ("fc", "box"), ("class", "nms"), ("box", "nms"))

FAST_RCNN = Figure(
    "fast-rcnn",
    "Fast R-CNN (Girshick 2015)",
    (
        _PICTURE,
        Block("cnn", 1, "CNN", "once for the whole picture", "net", "left"),
        Block("search", 1, "Selective Search", "about 2000 regions", "", "right"),
        Block("map", 2, "feature map", place="left", kind="data"),
        Block("pool", 3, "RoIPool", "the region's part of the map, in 7 x 7 bins; edges move to whole cells", "net"),
        *_HEADS,
        Block("found", 7, "boxes and classes", kind="boxes"),
    ),
    (
        ("picture", "cnn"),
        ("picture", "search"),
        ("cnn", "map"),
        ("map", "pool"),
        ("search", "pool"),
        ("pool", "fc"),
        *_THROUGH_HEADS,
        ("nms", "found"),
    ),
    ((3, 5, "for each of 2000 regions"),),
    {"net": "learned together: one network, one loss"},
)

FASTER_RCNN = Figure(
    "faster-rcnn",
    "Faster R-CNN (Ren et al. 2015)",
    (
        _PICTURE,
        Block("cnn", 1, "CNN", "once for the whole picture", "net"),
        Block("map", 2, "feature map", place="left", kind="data"),
        Block("rpn", 2, "RPN", "9 anchors in each place: is it an object, and where are its edges?", "net", "right"),
        Block("pool", 3, "RoIPool", "the region's part of the map, in 7 x 7 bins; edges move to whole cells", "net"),
        *_HEADS,
        Block("found", 7, "boxes and classes", kind="boxes"),
    ),
    (
        ("picture", "cnn"),
        ("cnn", "map"),
        ("map", "rpn"),
        ("map", "pool"),
        ("rpn", "pool"),
        ("pool", "fc"),
        *_THROUGH_HEADS,
        ("nms", "found"),
    ),
    ((3, 5, "for each of 300 proposals"),),
    {"net": "learned together, or in turns: one network"},
)

MASK_RCNN = Figure(
    "mask-rcnn",
    "Mask R-CNN (He et al. 2017)",
    (
        _PICTURE,
        Block("cnn", 1, "CNN with feature pyramid", "once for the whole picture", "net"),
        Block("map", 2, "feature maps", place="left", kind="data"),
        Block("rpn", 2, "RPN", "anchors in each place: is it an object, and where are its edges?", "net", "right"),
        Block("align", 3, "RoIAlign, 7 x 7", "read between the cells: nothing is moved to whole cells", "net"),
        *_HEADS,
        Block("align14", 7, "RoIAlign, 14 x 14", "the same maps again, inside the final boxes", "net"),
        Block("mask", 8, "mask head", "a 28 x 28 mask for each class; that of the class found is taken", "net"),
        Block("found", 9, "boxes, classes, masks", kind="masks"),
    ),
    (
        ("picture", "cnn"),
        ("cnn", "map"),
        ("map", "rpn"),
        ("map", "align"),
        ("rpn", "align"),
        ("align", "fc"),
        *_THROUGH_HEADS,
        ("nms", "align14"),
        ("align14", "mask"),
        ("mask", "found"),
    ),
    ((3, 5, "for each of 1000 proposals"), (7, 8, "for up to 100 detections")),
    {"net": "learned together: one network, one loss"},
    around=(("map", "align14"),),
)

FIGURES = {figure.key: figure for figure in (HOG_SVM, RCNN, FAST_RCNN, FASTER_RCNN, MASK_RCNN)}
_COLOURS = (SKY, ORANGE, PURPLE)  # of groups, in their order


def draw(figure: Figure) -> np.ndarray:
    """The figure, (H, 1000, 3) uint8."""
    layout = _Layout(figure)
    sheet = Image.new("RGB", (WIDTH * _FINE, layout.height * _FINE), PAPER)
    pen = _Pen(sheet)
    pen.text((_MARGIN, _MARGIN - 4), figure.title, _font(32, bold=True), INK)
    for first, last, words in figure.repeated:
        entries = [layout.way(*pair)[-1][0] for pair in figure.arrows if layout.rows[pair[1]] == first]
        pen.frame(layout.frame(first, last), words, entries)
    for start, end in figure.arrows:
        pen.arrow(layout.way(start, end))
    for start, end in figure.around:
        pen.arrow(layout.way_around(start, end))
    colours = dict(zip(figure.learned, _COLOURS, strict=False))
    for block in figure.blocks:
        pen.block(layout.boxes[block.key], block, colours.get(block.learned))
    drawn = np.array(sheet.resize((WIDTH, layout.height), Image.Resampling.LANCZOS))
    keys = [Key("fill", colours[group], words) for group, words in figure.learned.items()]
    return np.concatenate([drawn, legend(*keys, Key("fill", GREY, "not learned"))])


Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in px of the page
Points = list[tuple[float, float]]


class _Layout:
    """Where everything lies, in px of the page."""

    def __init__(self, figure: Figure) -> None:
        self.rows = {block.key: block.row for block in figure.blocks}
        self.boxes: dict[str, Box] = {}
        framed = {first for first, *_ in figure.repeated}
        y = 86.0
        for row in range(max(self.rows.values()) + 1):
            y += 34 if row in framed else 0  # for the frame's words
            blocks = [block for block in figure.blocks if block.row == row]
            height = max(_height(block) for block in blocks)
            for block in blocks:
                centre, width = _CENTRES[block.place], _width(block)
                top = y + (height - _height(block)) / 2 if block.kind == "data" else y
                bottom = top + _height(block) if block.kind == "data" else y + height
                self.boxes[block.key] = (centre - width / 2, top, centre + width / 2, bottom)
            y += height + _GAP
        self.height = round(y - _GAP + _MARGIN)

    def frame(self, first: int, last: int) -> Box:
        """Of the dashed frame around the rows first..last."""
        inside = [self.boxes[key] for key, row in self.rows.items() if first <= row <= last]
        top, bottom = min(box[1] for box in inside), max(box[3] for box in inside)
        return 44.0, top - 48, WIDTH - 26.0, bottom + 18

    def way(self, start: str, end: str) -> Points:
        """Corners of an arrow: sideways within a row, else out below and in above, with one bend to the side."""
        a, b = self.boxes[start], self.boxes[end]
        if self.rows[start] == self.rows[end]:
            middle = (a[1] + a[3]) / 2
            return [(a[2], middle), (b[0], middle)]
        from_x, to_x = (a[0] + a[2]) / 2, (b[0] + b[2]) / 2
        if from_x == to_x:
            return [(from_x, a[3]), (to_x, b[1])]
        if (b[2] - b[0]) > (a[2] - a[0]) and b[0] + 40 < from_x < b[2] - 40:  # straight down into a wider box
            return [(from_x, a[3]), (from_x, b[1])]
        if (a[2] - a[0]) > (b[2] - b[0]) and a[0] + 40 < to_x < a[2] - 40:  # straight down out of a wider one
            return [(to_x, a[3]), (to_x, b[1])]
        bend = a[3] + 20 if from_x == WIDTH / 2 else b[1] - _GAP / 2
        return [(from_x, a[3]), (from_x, bend), (to_x, bend), (to_x, b[1])]

    def way_around(self, start: str, end: str) -> Points:
        """Out of the left side, down along the page's edge, and in from the left."""
        a, b = self.boxes[start], self.boxes[end]
        from_y, to_y = (a[1] + a[3]) / 2, (b[1] + b[3]) / 2
        return [(a[0], from_y), (22.0, from_y), (22.0, to_y), (b[0], to_y)]


class _Pen:
    """Draws in px of the page on a sheet that is `_FINE` times finer."""

    def __init__(self, sheet: Image.Image) -> None:
        self.sheet = sheet
        self.pen = ImageDraw.Draw(sheet)

    def text(self, place: tuple[float, float], words: str, font: Font, colour: Colour, anchor: str = "la") -> None:
        self.pen.text((place[0] * _FINE, place[1] * _FINE), words, fill=colour, font=font, anchor=anchor)

    def block(self, box: Box, block: Block, colour: Colour | None) -> None:
        if block.kind in ("picture", "boxes", "masks"):
            self._thumb(box, block)
            return
        outline = colour or GREY
        fill = PAPER if block.kind == "data" else _blend(outline, 0.30 if colour else 0.16)
        radius = (box[3] - box[1]) / 2 if block.kind == "data" else 12
        self.pen.rounded_rectangle(_fine(box), round(radius * _FINE), fill=fill, outline=outline, width=3 * _FINE)
        middle, y = (box[0] + box[2]) / 2, box[1] + _PAD
        lines = _lines(block)
        y += (box[3] - box[1] - _height(block)) / 2
        self.text((middle, y), block.title, _font(_TITLE, bold=True), INK, "ma")
        for number, line in enumerate(lines):
            place = middle, y + 1.35 * _TITLE + 1.3 * _TEXT * number
            self.text(place, line, _font(_TEXT), (205, 209, 215), "ma")

    def frame(self, box: Box, words: str, entries: list[float]) -> None:
        """Dashed, with its words in the upper edge: at the left, or in the middle, away from arrows that enter there.

        entries: x of those arrows.
        """
        x1, y1, x2, y2 = box
        dash, line = 16, 2
        for x in np.arange(x1, x2, 2 * dash):
            for y in (y1, y2):
                self.pen.rectangle(_fine((x, y, min(x + dash, x2), y + line)), fill=YELLOW)
        for y in np.arange(y1, y2, 2 * dash):
            for x in (x1, x2):
                self.pen.rectangle(_fine((x, y, x + line, min(y + dash, y2))), fill=YELLOW)
        font = _font(_TEXT, bold=True)
        width = font.getlength(words) / _FINE
        starts = (x1 + 24, (WIDTH - width) / 2)
        x = next((x for x in starts if not any(x - 20 < entry < x + width + 20 for entry in entries)), starts[0])
        self.pen.rectangle(_fine((x - 10, y1 - 4, x + width + 10, y1 + 30)), fill=PAPER)
        self.text((x, y1 + 2), words, font, YELLOW)

    def arrow(self, way: Points) -> None:
        """A line along the way, with a head at its end."""
        points = [(x * _FINE, y * _FINE) for x, y in way]
        (x0, y0), (x1, y1) = points[-2:]
        length = max(abs(x1 - x0), abs(y1 - y0), 1e-6)
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        long, wide = 17 * _FINE, 9 * _FINE
        base = (x1 - dx * long, y1 - dy * long)
        self.pen.line([*points[:-1], base], fill=INK, width=3 * _FINE, joint="curve")
        side = (-dy * wide, dx * wide)
        head = [(x1, y1), (base[0] + side[0], base[1] + side[1]), (base[0] - side[0], base[1] - side[1])]
        self.pen.polygon(head, fill=INK)

    def _thumb(self, box: Box, block: Block) -> None:
        """Three shapes, as given, with boxes, or with masks; and what it is, beside it."""
        x1, y1 = round(box[0]), round(box[1])
        width, height = _THUMB
        self.pen.rounded_rectangle(_fine((x1, y1, x1 + width, y1 + height)), 8 * _FINE, fill=(58, 66, 78))
        shapes: tuple[tuple[Colour, Box], ...] = (
            ((176, 120, 96), (22, 40, 84, 102)),
            ((120, 150, 104), (92, 22, 146, 76)),
            ((146, 132, 168), (126, 62, 194, 116)),
        )
        for number, (colour, (left, top, right, bottom)) in enumerate(shapes):
            place = _fine((x1 + left, y1 + top, x1 + right, y1 + bottom))
            found: Colour | None = (SKY, ORANGE, PURPLE)[number] if block.kind == "masks" else None
            if number == 0:
                self.pen.ellipse(place, fill=found or colour)
            elif number == 1:
                self.pen.rectangle(place, fill=found or colour)
            else:
                corners = [(place[0], place[3]), (place[2], place[3]), ((place[0] + place[2]) / 2, place[1])]
                self.pen.polygon(corners, fill=found or colour)
        if block.kind != "picture":
            for _, (left, top, right, bottom) in shapes:
                edge = _fine((x1 + left - 4, y1 + top - 4, x1 + right + 4, y1 + bottom + 4))
                self.pen.rectangle(edge, outline=(255, 255, 255), width=2 * _FINE)
        self.text((x1 + width + 18, y1 + height / 2), block.title, _font(_TITLE, bold=True), INK, "lm")


def _width(block: Block) -> float:
    if block.kind in ("picture", "boxes", "masks"):
        return _THUMB[0]
    if block.kind == "data" and not block.text:
        return 300.0
    return _WIDE if block.place == "middle" else _HALF


def _height(block: Block) -> float:
    if block.kind in ("picture", "boxes", "masks"):
        return _THUMB[1]
    return 2 * _PAD + 1.15 * _TITLE + (4 + 1.3 * _TEXT * len(_lines(block)) if block.text else 0)


def _lines(block: Block) -> list[str]:
    if not block.text:
        return []
    font, width = _font(_TEXT), (_width(block) - 2 * _PAD) * _FINE
    lines = wrapped(block.text, font, width)
    while len(narrower := wrapped(block.text, font, width - 10 * _FINE)) == len(lines):  # no word alone in the last
        if max(map(font.getlength, narrower)) > width - 10 * _FINE:
            break
        lines, width = narrower, width - 10 * _FINE
    return lines


@cache
def _font(size: int, *, bold: bool = False) -> Font:
    """Of the finer sheet."""
    if bold:
        try:
            return ImageFont.truetype("DejaVuSans-Bold.ttf", size * _FINE)
        except OSError:
            pass
    return font_of(size * _FINE)


def _fine(box: Box) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = (round(v * _FINE) for v in box)
    return x1, y1, x2, y2


def _blend(colour: Colour, share: float) -> Colour:
    """`share` of a colour on the paper's."""
    red, green, blue = (round(p + share * (c - p)) for c, p in zip(colour, PAPER, strict=True))
    return red, green, blue
