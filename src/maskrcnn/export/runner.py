"""Runs an exported file, picture in, detections out. For `.onnx` and `.openvino` files no torch is needed, nor loaded.

from maskrcnn.export.runner import open_file

model = open_file("cells.onnx")
found = model.predict("cells.png")  # Detections as ever, with numpy's arrays
found.boxes, found.names, found.masks.rle(), found.save("out.json")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from glob import has_magic
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from maskrcnn.data.pictures import picture_files, read_picture
from maskrcnn.errors import InputError
from maskrcnn.export import host
from maskrcnn.export.facts import Facts
from maskrcnn.export.placing import placed
from maskrcnn.model.config import MOST, is_count
from maskrcnn.model.detection_config import DetectionConfig
from maskrcnn.model.limits import Limits
from maskrcnn.structures import Detections

if TYPE_CHECKING:
    from maskrcnn.data.pictures import PictureLike

Session = Callable[[np.ndarray, np.ndarray], Mapping[str, np.ndarray]]
"""pixels (N, 3, H, W) float32 and sizes (N, 2) float32 to the outputs by name."""

_TEXTS = (str, Path)


class Runner:
    """A detector out of an exported file.

    Args:
        session: the recorded network. facts: what the file says of itself. file: its path, for messages.
    """

    def __init__(self, session: Session, facts: Facts, file: str | Path) -> None:
        if facts.preprocess.resampling not in host.RESAMPLING:
            expected = " or ".join(host.RESAMPLING)
            found = facts.preprocess.resampling
            raise InputError("cannot be done here", file=file, field="resampling", found=found, expected=expected)
        self.session, self.facts, self.file = session, facts, file

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.file)!r}, {len(self.class_names)} classes)"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of labels 1..K."""
        return self.facts.class_names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Ids of labels 1..K as the data set counted them."""
        return self.facts.category_ids

    def __call__(self, pictures: Iterable[PictureLike]) -> Iterator[Detections]:
        """Detections of each picture, with the file's own thresholds: what `maskrcnn.evaluate` asks for."""
        return self._stream(iter(pictures), self.facts.detection, None, 1, None)

    def predict(
        self,
        pictures: Any,
        *,
        score_threshold: float | None = None,
        nms_iou: float | None = None,
        max_detections: int | None = None,
        proposals: int | None = None,
        size: int | Literal["native"] | None = None,
        class_agnostic_nms: bool | None = None,
        mask_nms_iou: float | None = None,
        batch_size: int | None = None,
        on_error: Callable[[InputError], None] | None = None,
    ) -> Any:
        """As `Predictor.predict`: one picture gives `Detections`; a folder, a glob or a list of pictures an iterator.

        Errors: `InputError` as there, and for what was settled when the file was written: another `nms_iou`,
        `proposals` or `class_agnostic_nms`, a lower `score_threshold`, more `max_detections`.
        """
        limits = Limits(
            score_threshold=score_threshold,
            nms_iou=nms_iou,
            max_detections=max_detections,
            proposals=proposals,
            size=size,
            class_agnostic_nms=class_agnostic_nms,
            mask_nms_iou=mask_nms_iou,
        )
        config = within(limits, self.facts, self.file)
        if batch_size is not None and not is_count(batch_size):
            expected = f"a whole number from 1 to {MOST}"
            raise InputError("impossible value", field="batch_size", found=repr(batch_size), expected=expected)
        if _is_one(pictures):
            return next(self._stream(iter([pictures]), config, limits.size, 1, None))
        if isinstance(pictures, _TEXTS):
            pictures = picture_files([pictures])
        if not isinstance(pictures, Iterable):
            expected = "a picture (path, bytes, PIL, array), a folder, a glob, or a list of these"
            raise InputError("is no picture", field="pictures", found=repr(pictures), expected=expected)
        return self._stream(iter(pictures), config, limits.size, batch_size or 1, on_error)

    def _stream(
        self,
        pictures: Iterator[Any],
        config: DetectionConfig,
        asked: host.Asked,
        batch_size: int,
        on_error: Callable[[InputError], None] | None,
    ) -> Iterator[Detections]:
        single = chain.from_iterable(map(_expanded, pictures))
        readable = filter(None, map(partial(_read, on_error=on_error), single))
        at_once = min(batch_size, self.facts.batch or batch_size)
        while batch := list(islice(readable, at_once)):
            yield from self._detect(batch, config, asked)

    def _detect(
        self, batch: list[tuple[Any, np.ndarray]], config: DetectionConfig, asked: host.Asked
    ) -> list[Detections]:
        pixels, sizes = host.padded([host.ready(picture, self.facts, asked) for _, picture in batch], self.facts)
        outputs = self.session(pixels, sizes)
        padded_size = (pixels.shape[2], pixels.shape[3])
        found = []
        for i, (given, picture) in enumerate(batch):
            size = (int(picture.shape[0]), int(picture.shape[1]))
            one = placed(outputs, i, sizes[i], padded_size, size, self.facts, config)
            source = str(given) if isinstance(given, _TEXTS) else ""
            found.append(self.finished(replace(one, source=source, picture=partial(read_picture, given))))
        return found

    def finished(self, found: Detections) -> Detections:
        """What leaves this runner: the arrays as they are."""
        return found


def open_file(path: str | Path, threads: int | None = None) -> Runner:
    """The detector in a `.onnx` or `.openvino` file.

    threads: CPU threads of the runtime, None for its own choice.

    Errors: `InputError` for a file that is missing, damaged, or not exported by maskrcnn, and for a missing runtime.
    """
    session, facts = open_session(path, threads)
    return Runner(session, facts, path)


def open_session(path: str | Path, threads: int | None = None) -> tuple[Session, Facts]:
    """The recorded network of a `.onnx` or `.openvino` file, and its facts. Errors: as `open_file`."""
    path = Path(path)
    if not path.is_file():
        raise InputError("no such file", file=path, found="a folder" if path.is_dir() else None)
    if path.suffix.lower() == ".onnx":
        from maskrcnn.export.onnx_session import open_onnx

        return open_onnx(path, threads)
    if path.suffix.lower() == ".openvino":
        from maskrcnn.export.openvino_session import open_openvino

        return open_openvino(path, threads)
    raise InputError("is no exported file", file=path, found=path.suffix, expected=".onnx or .openvino")


def within(limits: Limits, facts: Facts, file: str | Path) -> DetectionConfig:
    """The thresholds of a call, which may narrow what was recorded. Errors: `InputError` for what would widen it."""
    recorded = facts.detection
    fixed = {
        "nms_iou": (limits.nms_iou, recorded.nms_iou),
        "proposals": (limits.proposals, facts.proposals),
        "class_agnostic_nms": (limits.class_agnostic_nms, recorded.class_agnostic_nms),
    }
    for name, (asked, has) in fixed.items():
        if asked is not None and asked != has:
            raise InputError("is settled in the exported file", file=file, field=name, found=asked, expected=str(has))
    if limits.score_threshold is not None and limits.score_threshold < recorded.score_threshold:
        found, expected = limits.score_threshold, f"at least {recorded.score_threshold}, which was exported"
        raise InputError(
            "is below the exported file's", file=file, field="score_threshold", found=found, expected=expected
        )
    if limits.max_detections is not None and limits.max_detections > recorded.max_detections:
        found, expected = limits.max_detections, f"at most {recorded.max_detections}, which were exported"
        raise InputError(
            "is above the exported file's", file=file, field="max_detections", found=found, expected=expected
        )
    names = ("score_threshold", "max_detections", "mask_nms_iou")
    return replace(recorded, **{name: getattr(limits, name) for name in names if getattr(limits, name) is not None})


def _is_one(pictures: Any) -> bool:
    if isinstance(pictures, _TEXTS):
        return not _names_several(pictures)
    return (
        isinstance(pictures, bytes | Image.Image | np.ndarray) or type(pictures).__module__.partition(".")[0] == "torch"
    )


def _names_several(path: str | Path) -> bool:
    return Path(path).is_dir() or (has_magic(str(path)) and not Path(path).exists())


def _expanded(picture: Any) -> list[Any]:
    if isinstance(picture, _TEXTS) and _names_several(picture):
        return list(picture_files([picture]))
    return [picture]


def _read(picture: Any, on_error: Callable[[InputError], None] | None) -> tuple[Any, np.ndarray] | None:
    try:
        return picture, read_picture(picture)
    except InputError as error:
        if on_error is None:
            raise
        on_error(error)
        return None
