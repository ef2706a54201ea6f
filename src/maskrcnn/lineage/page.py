"""The page: one HTML file with figures, table, plots and the story. It fetches nothing and needs no script.

A policy inside the page (Content-Security-Policy) forbids the network, any script, and any style but the page's own.
Every text that comes from outside is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from PIL import Image

from maskrcnn.inspection.report import filled
from maskrcnn.lineage.figures import FIGURES, draw
from maskrcnn.lineage.rows import Row
from maskrcnn.lineage.story import chapter_of
from maskrcnn.lineage.table import SHOWN, Grid, agreement, main_grid, order, shown, stage_grid, summaries, training_grid

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Subject:
    """What is compared. columns: the fields of a row that matter. paper: what the paper found; "" for the lineage.

    expected: column -> pairs of keys (better, worse) as the papers found them.
    """

    title: str
    lead: str
    columns: tuple[str, ...] = SHOWN
    paper: str = ""
    expected: Mapping[str, Pairs] = field(default_factory=dict)

    @property
    def is_lineage(self) -> bool:
        return not self.paper


LINEAGE = Subject(
    "The way to Mask R-CNN",
    "Each step of the way, built of the same parts, trained for the same time on the same pictures, and scored and "
    "timed by the same code: what did every step buy, in accuracy and in time?",
    expected={
        "box_ap": (
            ("rcnn", "hog-svm"),
            ("fast-rcnn", "rcnn"),
            ("faster-rcnn", "fast-rcnn"),
            ("mask-rcnn", "faster-rcnn"),
        ),
        "seconds_per_picture": (("fast-rcnn", "rcnn"), ("faster-rcnn", "fast-rcnn"), ("faster-rcnn", "mask-rcnn")),
    },
)


def page(subject: Subject, rows: Sequence[Row], facts: Mapping[str, str], plots: Mapping[str, bytes]) -> str:
    """The whole page as text, to be written as UTF-8.

    facts: of the run, in words (minutes of training, pictures). plots: title -> PNG, in their order.
    """
    style = _part("page.css")
    chips = "".join(f"<li><b>{_safe(name)}</b> {_safe(value)}</li>" for name, value in facts.items())
    stories = [_system(row.key, row.name, rows) for row in _one_each(rows)] if subject.is_lineage else []
    sections = [_results(subject, rows), *_shown_plots(plots), _times(rows), *stories]
    parts = {
        "policy": _policy(style),
        "style": style,
        "title": _safe(subject.title),
        "lead": _safe(subject.lead),
        "facts": chips,
        "sections": "\n".join(section for section in sections if section),
    }
    return filled(_part("page.html"), parts)


def sentences(subject: Subject, rows: Sequence[Row]) -> list[str]:
    """What the rows say: the order by each column that matters, then whether the papers' orders hold here."""
    columns = [column for column in subject.columns if not column.endswith("50") and column != "training_seconds"]
    found = [sentence for column in columns if (sentence := order(rows, column))]
    return found + [line for column, pairs in subject.expected.items() for line in agreement(rows, column, pairs)]


def _results(subject: Subject, rows: Sequence[Row]) -> str:
    said = "".join(f"<li>{_safe(sentence)}</li>" for sentence in sentences(subject, rows))
    seeds = len({row.seed for row in rows})
    note = "" if seeds > 1 else "One seed: small differences may be chance; --seeds 0 1 2 tells."
    paper = f"<h3>What the paper found</h3><p>{_safe(subject.paper)}</p><h3>What was found here</h3>"
    return (
        f"<section><h2>Results</h2>{_table(main_grid(rows, subject.columns))}"
        f'{paper if subject.paper else ""}<ul class="said">{said}</ul><p class="soft">{note}</p></section>'
    )


def _shown_plots(plots: Mapping[str, bytes]) -> list[str]:
    return [
        f'<section><h2>{_safe(title)}</h2><figure class="plot"><img src="{_data_url(png)}" '
        f'alt="{_safe(title)}, as a plot; its numbers are in the tables" {_size(png)}></figure></section>'
        for title, png in plots.items()
    ]


def _times(rows: Sequence[Row]) -> str:
    tables = _table(stage_grid(rows)) + _table(training_grid(rows))
    facts = [(system.name, dict(system.rows[0].facts)) for system in summaries(rows) if system.rows[0].facts]
    told = "".join(
        f"<li>{_safe(name)}: {_safe(', '.join(f'{what} {value:g}' for what, value in numbers.items()))}</li>"
        for name, numbers in facts
    )
    how_far = f'<h3>How far learning came</h3><ul class="said">{told}</ul>' if told else ""
    return f"<section><h2>Time, stage by stage</h2>{tables}{how_far}</section>"


def _system(key: str, name: str, rows: Sequence[Row]) -> str:
    """What a system does, with its figure and its own numbers; "" for one that has no chapter."""
    chapter = chapter_of(key)
    if chapter is None:
        return ""
    own = next(system for system in summaries(rows) if system.key == key)
    numbers = [("box AP", "box_ap"), ("mask AP", "mask_ap"), ("seconds per picture", "seconds_per_picture")]
    chips = "".join(
        f"<li><b>{label}</b> {shown(column, own.values(column))}</li>"
        for label, column in numbers
        if own.values(column)
    )
    figure = FIGURES[chapter.key]
    png = _drawn(figure.key)
    image = f'<figure><img src="{_data_url(png)}" alt="{_safe(figure.alt())}" loading="lazy" {_size(png)}></figure>'
    words = (
        f'<h2>{_safe(name)}</h2><p class="soft">{_safe(chapter.paper)}</p><ul class="facts">{chips}</ul>'
        f"<p>{_safe(chapter.does)}</p><h3>What it changed</h3><p>{_safe(chapter.changed)}</p>"
        f"<h3>What was slow or wrong</h3><p>{_safe(chapter.trouble)}</p>"
    )
    return f'<section class="system"><div>{words}</div><div>{image}</div></section>'


def _table(grid: Grid) -> str:
    head = "".join(f'<th scope="col">{_safe(heading)}</th>' for heading in grid.headings)
    lines = []
    for name, *cells in grid.lines:
        shown_cells = "".join(f"<td>{_safe(cell) if grid.words else _cell(cell)}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{_safe(name)}</th>{shown_cells}</tr>')
    kind = ' class="words"' if grid.words else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_safe(grid.caption)}"><table{kind}>'
        f"<caption>{_safe(grid.caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    """A number, and the range of the seeds below it."""
    number, _, between = text.partition(" (")
    return _safe(number) + (f"<small>{_safe(between.removesuffix(')'))}</small>" if between else "")


def _one_each(rows: Sequence[Row]) -> list[Row]:
    return list({row.key: row for row in rows}.values())


@cache
def _drawn(key: str) -> bytes:
    """A system's figure as PNG; of flat colours, so that 256 of them do."""
    stream = io.BytesIO()
    Image.fromarray(draw(FIGURES[key])).quantize(256, dither=Image.Dither.NONE).save(
        stream, format="PNG", optimize=True
    )
    return stream.getvalue()


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _size(png: bytes) -> str:
    """So that nothing jumps while the page is read."""
    with Image.open(io.BytesIO(png)) as image:
        return f'width="{image.width}" height="{image.height}"'


def _safe(text: str) -> str:
    """Text as HTML; half a character of a broken name, which no file can hold, becomes a question mark."""
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"))


def _policy(style: str) -> str:
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def _part(name: str) -> str:
    return (files("maskrcnn.lineage") / "page" / name).read_text(encoding="utf-8")
