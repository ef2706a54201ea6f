"""The sheet that figures are drawn on: a picture at the size of a page, boxes dotted or solid, names, legends, panels.

boxes: (N, 4) x1 y1 x2 y2, px of the original frame, corners on edges; a figure's own px are said to be of the page
pictures: (H, W, 3) uint8 RGB

A page is 1000 px wide, of which a phone shows 400: lines of 3 px and text of 26 px stay readable there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from maskrcnn.ops.draw import Colour, one_line
from maskrcnn.structures import Size

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Chart

# Okabe and Ito 2008, told apart by colour-blind readers too; a little lighter, for dark ground
SKY, ORANGE, GREEN, YELLOW = (86, 180, 233), (240, 165, 20), (30, 185, 140), (240, 228, 66)
VERMILLION, PURPLE, WHITE, GREY = (228, 84, 26), (214, 135, 180), (255, 255, 255), (170, 174, 180)
BEFORE, AFTER, TRUTH = ORANGE, SKY, WHITE
GOOD, MIDDLING, BAD = SKY, YELLOW, VERMILLION
LEVELS = (SKY, ORANGE, PURPLE, YELLOW, GREEN)  # p2..p6
INK, PAPER = (238, 240, 243), (24, 26, 30)  # text, and what lies around pictures

WIDTH = 1000  # px of a page
HEIGHT = 1000  # px of a picture on it, at most
TEXT = 26  # px
LINE = 3  # px
_ENLARGED = 40  # times, at most
_LEAST = (400, 160)  # px, width and height of a picture on a page
_SHRUNK = 2 * WIDTH  # px, the longer side of the copy that pages of the whole picture are made of

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Window = tuple[float, float, float, float]  # x1, y1, x2, y2, original frame; may reach beyond the picture
Mark = Literal["solid", "dotted", "fill", "dot", "none"]


@dataclass(frozen=True)
class Key:
    """A part of a legend: what a mark of this colour means; "none" is text alone."""

    mark: Mark
    colour: Colour
    text: str


@dataclass(frozen=True, eq=False)
class View:
    """A picture, and a copy of at most 2000 px, so that a page of a huge one costs little.

    dark, bright: grey levels below and above which one in 200 pixels lies.
    """

    picture: np.ndarray
    small: np.ndarray
    dark: float
    bright: float

    @classmethod
    def of(cls, picture: np.ndarray) -> View:
        factor = min(1.0, _SHRUNK / max(picture.shape[:2]))
        small = picture if factor == 1 else resized(picture, factor)
        dark, bright = np.percentile(small[::2, ::2].mean(axis=2), [0.5, 99.5]).tolist()
        return cls(picture, small, dark, bright)

    def dimmed(self, part: Image.Image) -> Image.Image:
        """Darker and nearly grey, of the same contrast whatever the picture's own."""
        grey = part.convert("L").convert("RGB")
        factor = 135 / max(self.bright - self.dark, 40.0)
        levels = [round(min(max(16 + factor * (v - self.dark), 8), 165)) for v in range(256)]
        return Image.blend(grey, part, 0.35).point(levels * 3)

    def brightened(self, part: Image.Image) -> Image.Image:
        """As it is where it is not faint, else with its contrast stretched."""
        if self.bright - self.dark > 100:
            return part
        factor = 220 / max(self.bright - self.dark, 20.0)
        levels = [round(min(max(10 + factor * (v - self.dark), 0), 255)) for v in range(256)]
        return part.point(levels * 3)

    @property
    def size(self) -> Size:
        """(height, width), original frame."""
        return self.picture.shape[0], self.picture.shape[1]

    @property
    def window(self) -> Window:
        """The whole picture."""
        return 0.0, 0.0, float(self.size[1]), float(self.size[0])

    def around(self, margin: float) -> Window:
        """The whole picture with a border of `margin` times its longer side."""
        extra = margin * max(self.size)
        return -extra, -extra, self.size[1] + extra, self.size[0] + extra

    def part(self, window: Window, scale: float, sharp: bool = False) -> tuple[Image.Image, tuple[int, int]]:
        """What of the picture lies in a window, `scale` px of the page per px, and where on the page it begins.

        sharp: pixels stay squares of one colour.
        """
        x1, y1 = max(window[0], 0.0), max(window[1], 0.0)
        x2, y2 = max(min(window[2], self.size[1]), x1), max(min(window[3], self.size[0]), y1)
        left, top = round((x1 - window[0]) * scale), round((y1 - window[1]) * scale)
        width, height = round((x2 - window[0]) * scale) - left, round((y2 - window[1]) * scale) - top
        if width < 1 or height < 1 or x2 == x1 or y2 == y1:
            return Image.new("RGB", (0, 0)), (0, 0)
        source = self.small if scale <= self.small.shape[1] / self.size[1] else self.picture
        down, across = source.shape[0] / self.size[0], source.shape[1] / self.size[1]
        # only the rows and columns that are read, since PIL copies what it is given
        first, above = int(x1 * across), int(y1 * down)
        last, below = min(source.shape[1], int(x2 * across) + 2), min(source.shape[0], int(y2 * down) + 2)
        patch = Image.fromarray(np.ascontiguousarray(source[above:below, first:last]))
        box = (x1 * across - first, y1 * down - above, x2 * across - first, y2 * down - above)
        box = (box[0], box[1], min(box[2], patch.width), min(box[3], patch.height))
        filter = Image.Resampling.BICUBIC if scale > across else Image.Resampling.LANCZOS
        filter = Image.Resampling.NEAREST if sharp else filter
        return patch.resize((width, height), filter, box=box), (left, top)


class Canvas:
    """A window of a picture, to be drawn on in px of the original frame."""

    def __init__(
        self,
        view: View,
        window: Window | None = None,
        *,
        width: int = WIDTH,
        height: int = HEIGHT,
        dim: bool = True,
        sharp: bool = False,
        bright: bool = False,
    ) -> None:
        """width, height: the most that the page has room for. dim: darker and greyer, so that lines stand out.

        bright: a faint picture brighter, so that something is seen. sharp: pixels are squares of one colour, and may
        be enlarged without limit.
        """
        x1, y1, x2, y2 = window or view.window
        self.scale = min(width / max(x2 - x1, 1e-6), height / max(y2 - y1, 1e-6), width if sharp else _ENLARGED)
        # a sliver gets a border, so that there is room for words
        across = max(0.0, (min(width, _LEAST[0]) / self.scale - (x2 - x1)) / 2)
        down = max(0.0, (min(height, _LEAST[1]) / self.scale - (y2 - y1)) / 2)
        self.window = x1, y1, x2, y2 = x1 - across, y1 - down, x2 + across, y2 + down
        size = max(1, round((x2 - x1) * self.scale)), max(1, round((y2 - y1) * self.scale))
        self.image = Image.new("RGB", size, (44, 46, 52) if dim else PAPER)
        part, corner = view.part(self.window, self.scale, sharp)
        if part.width:
            self.image.paste(view.dimmed(part) if dim else view.brightened(part) if bright else part, corner)
        self.pen = ImageDraw.Draw(self.image)
        self.names: list[tuple[int, int, int, int]] = []  # left, top, width and height of those written

    def array(self) -> np.ndarray:
        return np.array(self.image)

    def on_page(self, x: float, y: float) -> tuple[float, float]:
        """From px of the original frame to px of the page."""
        return (x - self.window[0]) * self.scale, (y - self.window[1]) * self.scale

    def boxes(
        self,
        boxes: Tensor,
        colours: Colour | Sequence[Colour],
        *,
        dotted: bool = False,
        line: int = LINE,
    ) -> None:
        """(N, 4) with one colour, or N of them; the first, which is the best, on top."""
        one = bool(colours) and not isinstance(colours[0], tuple)
        several = cast("Sequence[Colour]", [colours] * len(boxes) if one else colours)
        for box, colour in list(zip(boxes.tolist(), several, strict=True))[::-1]:
            self._box(box, colour, dotted, line)

    def _box(self, box: Sequence[float], colour: Colour, dotted: bool, line: int) -> None:
        if not np.isfinite(box).all():
            return
        (x1, y1), (x2, y2) = self.on_page(*box[:2]), self.on_page(*box[2:])
        far = 2 * max(self.image.size)  # of a box that is far larger than the page only the page is drawn
        x1, y1, x2, y2 = (round(min(max(v, -far), far)) for v in (x1, y1, x2 - 1, y2 - 1))
        x2, y2 = max(x1, x2), max(y1, y2)
        if x2 < 0 or y2 < 0 or x1 >= self.image.width or y1 >= self.image.height:
            return
        line = max(1, min(line, (min(x2 - x1, y2 - y1) + 3) // 4))
        if not dotted:
            self.pen.rectangle((x1, y1, x2, y2), outline=colour, width=line)
            return
        dash = 2 * line + 1
        for y in {y1, max(y1, y2 - line + 1)}:
            for x in range(x1, x2 + 1, 2 * dash):
                self.pen.rectangle((x, y, min(x + dash - 1, x2), y + line - 1), fill=colour)
        for x in {x1, max(x1, x2 - line + 1)}:
            for y in range(y1, y2 + 1, 2 * dash):
                self.pen.rectangle((x, y, x + line - 1, min(y + dash - 1, y2)), fill=colour)

    def label(self, box: Sequence[float], text: str, colour: Colour, *, size: int = TEXT) -> None:
        """A name on a patch of colour: above the box, below it or inside it, wherever it covers no earlier name."""
        text, font, pad = one_line(text), font_of(size), max(2, size // 6)
        left, top, right, bottom = self.pen.textbbox((0, 0), text, font=font)
        width, height = int(right - left) + 2 * pad, int(bottom - top) + 2 * pad
        (x1, y1), (x2, y2) = self.on_page(*box[:2]), self.on_page(*box[2:])
        corners = [(x1, y1 - height), (x1, y2), (x1, y1), (x2 - width, y1 - height), (x2 - width, y2), (x2, y1)]
        inside = [
            (max(0, min(round(x), self.image.width - width)), max(0, min(round(y), self.image.height - height)))
            for x, y in corners
        ]
        free = (place for place in inside if not any(_overlap((*place, width, height), other) for other in self.names))
        x, y = next(free, inside[0])
        self.names.append((x, y, width, height))
        self.pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
        self.pen.text((x + pad - left, y + pad - top), text, fill=ink_on(colour), font=font)

    def dots(self, points: np.ndarray, colour: Colour, radius: float = 4) -> None:
        """(P, 2) x, y, original frame; each with a dark rim."""
        for x, y in points.tolist():
            px, py = self.on_page(x, y)
            self.pen.ellipse((px - radius, py - radius, px + radius, py + radius), fill=colour, outline=(0, 0, 0))

    def line(self, start: Sequence[float], end: Sequence[float], colour: Colour, width: int = LINE) -> None:
        """From one point to another, original frame."""
        self.pen.line((*self.on_page(*start), *self.on_page(*end)), fill=colour, width=width)

    def notice(self, text: str) -> None:
        """A line of text across the page: what there is not to be seen."""
        font = font_of(TEXT)
        lines = wrapped(text, font, max(40, self.image.width - 40))
        rows = [round(1.4 * TEXT * i) for i in range(len(lines))]
        height = round(1.4 * TEXT * len(lines)) + 24
        top = max(0, (self.image.height - height) // 2)
        self.pen.rectangle((0, top, self.image.width, top + height), fill=PAPER)
        for row, part in zip(rows, lines, strict=True):
            self.pen.text((self.image.width / 2, top + 12 + row), part, fill=INK, font=font, anchor="ma")


def page(*parts: np.ndarray) -> np.ndarray:
    """Pictures from top to bottom, each in the middle, 1000 px wide."""
    sheet = Image.new("RGB", (WIDTH, sum(part.shape[0] for part in parts)), PAPER)
    y = 0
    for part in parts:
        sheet.paste(Image.fromarray(part), ((WIDTH - part.shape[1]) // 2, y))
        y += part.shape[0]
    return np.array(sheet)


def legend(*keys: Key, width: int = WIDTH) -> np.ndarray:
    """What the marks of a page mean, in as many rows as it takes."""
    font, row, swatch, gap = font_of(TEXT), round(1.55 * TEXT), round(1.5 * TEXT), round(0.9 * TEXT)
    places, x, y = [], gap // 2, 0
    for key in keys:
        needed = (0 if key.mark == "none" else swatch + 10) + int(font.getlength(key.text))
        if x > gap // 2 and x + needed > width - gap // 2:
            x, y = gap // 2, y + row
        places.append((x, y))
        x += needed + gap
    image = Image.new("RGB", (width, y + row + 14), PAPER)
    pen = ImageDraw.Draw(image)
    for key, (x, y) in zip(keys, places, strict=True):
        middle = y + 7 + row // 2
        if key.mark != "none":
            _swatch(pen, key, x, middle, swatch)
            x += swatch + 10
        pen.text((x, middle), key.text, fill=INK, font=font, anchor="lm")
    return np.array(image)


def panels(parts: Sequence[tuple[str, np.ndarray]], columns: int = 2) -> np.ndarray:
    """Pictures in rows, each below its title, on a page of 1000 px. Each is at most `panel_width(columns)` wide."""
    cell, bar = panel_width(columns), round(1.6 * TEXT)
    rows = [parts[i : i + columns] for i in range(0, len(parts), columns)]
    heights = [bar + max(picture.shape[0] for _, picture in row) + 8 for row in rows]
    sheet = Image.new("RGB", (WIDTH, sum(heights)), PAPER)
    pen, y = ImageDraw.Draw(sheet), 0
    for row, height in zip(rows, heights, strict=True):
        for column, (title, picture) in enumerate(row):
            x = column * (cell + _GAP)
            pen.text((x + 6, y + bar // 2), title, fill=INK, font=fitting(title, cell - 8), anchor="lm")
            sheet.paste(Image.fromarray(picture), (x + (cell - picture.shape[1]) // 2, y + bar))
        y += height
    return np.array(sheet)


def panel_width(columns: int = 2) -> int:
    """Px that each of so many pictures side by side has on a page."""
    return (WIDTH - _GAP * (columns - 1)) // columns


_GAP = 10  # px between panels


def chart(figure: Chart) -> np.ndarray:
    """The pixels of a matplotlib figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return pixels[..., :3].copy()


def heat(values: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """(H, W) numbers as colours from dark to bright (cividis, made for colour-blind eyes); black where not finite."""
    from matplotlib import colormaps

    finite = np.isfinite(values)
    some = values[finite] if finite.any() else np.zeros(1)
    low = float(some.min()) if low is None else low
    high = float(some.max()) if high is None else high
    share = np.zeros(values.shape) if high <= low else (np.where(finite, values, low) - low) / (high - low)
    colours: np.ndarray = (colormaps["cividis"](share.clip(0, 1))[..., :3] * 255).round().astype(np.uint8)
    colours[~finite] = 0
    return colours


def cells(values: np.ndarray, width: int, height: int) -> np.ndarray:
    """(h, w, 3) or (h, w) enlarged to a size of the page, each cell a square of one colour."""
    return np.array(Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST))


def focus(boxes: Tensor, size: Size, across: float = 9.0) -> Window:
    """The whole picture, or where its boxes (N, 4) are small the part around the first that is `across` of them wide.

    Small is less than a twelfth of the longer side, the median of the boxes.
    """
    whole = (0.0, 0.0, float(size[1]), float(size[0]))
    if not len(boxes):
        return whole
    side = float((boxes[:, 2:] - boxes[:, :2]).amax(dim=1).median())
    wanted = max(across * side, 24.0)
    if not np.isfinite(wanted) or wanted * 12 / across >= max(size):
        return whole
    # of the first few boxes the one with the most others near it
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    near = (torch.cdist(middles[:20], middles) < wanted / 2).sum(dim=1)
    x, y = middles[int(near.argmax())].tolist()
    width, height = min(wanted, size[1]), min(wanted, size[0])
    left, top = (
        min(max(v - s / 2, 0.0), whole_side - s) for v, s, whole_side in ((x, width, size[1]), (y, height, size[0]))
    )
    return left, top, left + width, top + height


def in_window(boxes: Tensor, window: Window) -> Tensor:
    """(N,) bool: the boxes (N, 4) that reach into a window."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x2 > window[0]) & (y2 > window[1]) & (x1 < window[2]) & (y1 < window[3])


def resized(picture: np.ndarray, factor: float) -> np.ndarray:
    """The picture `factor` times as large, at least 1 px."""
    size = max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor))
    filter = Image.Resampling.BICUBIC if factor > 1 else Image.Resampling.LANCZOS
    return np.array(Image.fromarray(picture).resize(size, filter, reducing_gap=2.0))


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever can be read on a colour."""
    return (0, 0, 0) if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 110 else (255, 255, 255)


def counted(count: int, noun: str) -> str:
    """1 object, 1,234 objects."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@cache
def font_of(size: int) -> Font:
    """DejaVu Sans where it is installed, for its many alphabets; else the face that comes with Pillow."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)


def fitting(text: str, width: int, size: int = TEXT) -> Font:
    """The largest font up to `size` in which a line is no wider than `width`, 14 px at least."""
    font = font_of(size)
    while size > 14 and font.getlength(text) > width:
        size -= 1
        font = font_of(size)
    return font


def wrapped(text: str, font: Font, width: float) -> list[str]:
    """Words in lines of at most `width` px, where they are not longer themselves."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    """Whether two patches (left, top, width, height) have a pixel in common."""
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def _swatch(pen: ImageDraw.ImageDraw, key: Key, x: int, middle: int, width: int) -> None:
    if key.mark == "solid":
        pen.rectangle((x, middle - 2, x + width, middle + 2), fill=key.colour)
    elif key.mark == "dotted":
        for start in range(x, x + width, 12):
            pen.rectangle((start, middle - 2, min(start + 6, x + width), middle + 2), fill=key.colour)
    elif key.mark == "dot":
        pen.ellipse((x + width // 2 - 7, middle - 7, x + width // 2 + 7, middle + 7), fill=key.colour)
    else:
        pen.rectangle((x + 4, middle - 11, x + width - 4, middle + 11), fill=key.colour)
