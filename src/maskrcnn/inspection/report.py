"""The report: one HTML file that walks a person from picture to mask, stage by stage and object by object.

What the page consists of, and what may be relied on:

- `<script type="application/json" id="trace">`: `trace(steps, fates)`, as `inspection/trace.py` documents it, with two
  keys more: "title", and "figures": [{"name", "stage", "title", "caption", "width", "height", "numbers": rows}].
- `<script type="application/json" id="pictures">`: {"picture": data URL of the picture itself, name of a figure: ...}.
- `page/page.js` defines `mount(trace, pictures, root)`, which builds the page into the element `root`, and calls it
  with these two where the document has them. It fetches nothing, and puts text in as text: no name is ever HTML.
- The open stage and the followed object are the page's hash, `#stage=boxes&object=7`.
- A policy inside the page (Content-Security-Policy) forbids the network and any script or style but the page's own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from math import sqrt

import numpy as np
from PIL import Image

from maskrcnn.inspection.fate import Fate
from maskrcnn.inspection.figure import Figure
from maskrcnn.inspection.probe import Steps
from maskrcnn.inspection.stages import Plain, plain
from maskrcnn.inspection.trace import trace

MOST_BYTES = 9_500_000  # of the file: what a mail or a chat still takes is 10 MB
LEAST_ROOM = 3_000_000  # bytes for pictures: beside thousands of objects the file is larger, not unreadable
WIDEST = 1600  # px of an embedded picture; a phone shows 1200
TALLEST = 16_000  # px of one; JPEG ends at 65500
NARROWEST = 320  # px; below it nothing can be read, and a file of so many figures is larger instead
_COLOURS = 1024  # that a drawing has at most, with its soft edges
_QUALITY = 85  # of JPEG; without chroma subsampling, which would blur lines of one pixel


def report(
    steps: Steps,
    fates: Sequence[Fate] | None = None,
    figures: Sequence[Figure] | None = None,
    title: str = "",
    told: Plain | None = None,
) -> str:
    """The whole page as text, to be written as UTF-8.

    fates: of `gates.fates`, where there is ground truth. figures: those to show; None: all that `figures.figures`
    makes. title: of the picture, its file's name. told: `trace(steps, fates)`, where it is made already.
    """
    shown = list(_all_figures(steps, fates) if figures is None else figures)
    content = trace(steps, fates) if told is None else told
    content = content | {"title": _writable(title), "figures": [_words(figure) for figure in shown]}
    words = _json(content)
    page = {name: _part(name) for name in ("page.html", "page.css", "page.js")}
    room = max(LEAST_ROOM, MOST_BYTES - len(words) - sum(len(part) for part in page.values()))
    pictures = _json(embedded({"picture": steps.picture, **{figure.name: figure.picture for figure in shown}}, room))
    return filled(
        page["page.html"],
        {
            "title": html.escape(_writable(title) or "a picture"),
            "policy": _policy(page["page.css"], page["page.js"]),
            "style": page["page.css"],
            "script": page["page.js"],
            "trace": words,
            "pictures": pictures,
        },
    )


def _all_figures(steps: Steps, fates: Sequence[Fate] | None) -> Sequence[Figure]:
    from maskrcnn.inspection.figures import figures  # matplotlib, only where something is drawn

    return figures(steps, fates)


def embedded(pictures: dict[str, np.ndarray], room: int) -> dict[str, str]:
    """Data URLs of pictures (H, W, 3) uint8, together at most `room` bytes where `NARROWEST` allows it.

    A picture wider than `WIDEST` is reduced; where the sum is too much, the heaviest are reduced further.
    """
    pictures = {name: _at_most(picture, WIDEST) for name, picture in pictures.items()}  # of a huge one only once
    widths = {name: picture.shape[1] for name, picture in pictures.items()}
    urls = {name: _data_url(picture, widths[name]) for name, picture in pictures.items()}
    while sum(map(len, urls.values())) > room:
        share = room / max(1, sum(map(len, urls.values())))
        fair = max(room, 1) / len(urls)
        reducible = [name for name in urls if widths[name] > NARROWEST and len(urls[name]) > min(fair, room) * 0.5]
        reducible = reducible or [name for name in urls if widths[name] > NARROWEST]
        if not reducible:
            break
        for name in reducible:
            smaller = int(widths[name] * min(0.9, sqrt(max(share, 0.05)) * 0.97))
            widths[name] = max(NARROWEST, smaller)
            urls[name] = _data_url(pictures[name], widths[name])
    return urls


def _data_url(picture: np.ndarray, width: int) -> str:
    """The picture at most `width` px wide: JPEG, or PNG where it is a drawing of few colours and so no larger."""
    image = Image.fromarray(_at_most(picture, width))
    kind, content = "jpeg", _encoded(image, "jpeg", quality=_QUALITY, subsampling=0)
    if _is_drawing(np.asarray(image)) and len(drawn := _encoded(image, "png", compress_level=6)) <= len(content):
        kind, content = "png", drawn
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _at_most(picture: np.ndarray, width: int) -> np.ndarray:
    """The picture, reduced where it is wider, or taller than `TALLEST`."""
    factor = min(width / picture.shape[1], TALLEST / picture.shape[0])
    if factor >= 1:
        return np.ascontiguousarray(picture)
    size = max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor))
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.array(image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0))


def _is_drawing(picture: np.ndarray) -> bool:
    """Whether a ninth of its pixels have few colours; writing a photograph as PNG would only take time."""
    red, green, blue = (picture[::3, ::3, i].astype(np.int64) for i in range(3))
    return len(np.unique(red << 16 | green << 8 | blue)) <= _COLOURS


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def _words(figure: Figure) -> Plain:
    """A figure without its picture."""
    height, width = figure.picture.shape[:2]
    return {
        "name": figure.name,
        "stage": figure.stage,
        "title": figure.title,
        "caption": figure.caption,
        "width": width,
        "height": height,
        "numbers": plain(figure.numbers),
    }


def _json(content: Plain) -> str:
    """JSON that can stand in a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))  # ASCII: any other character is \\uXXXX
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _writable(text: str) -> str:
    """Without half characters, which names of files may hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _policy(style: str, script: str) -> str:
    """Only the page's own style and script, told by their hashes, and only pictures that it holds itself."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") for text in (style, script)]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _part(name: str) -> str:
    return (files("maskrcnn.inspection") / "page" / name).read_text(encoding="utf-8")


def filled(page: str, parts: Mapping[str, str]) -> str:
    """`page` with each {{name}} replaced, in one pass: what is put in is not searched again."""
    pieces = page.split("{{")
    text = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}}")
        text += [parts[name], rest]
    return "".join(text)
