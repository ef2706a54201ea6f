"""What every measurement is asked for, and how it opens our detector."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from maskrcnn.predictor import Predictor, load

_REMARK = "whose file does not tell"  # of `load`


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """weights: a name or a file; None for random weights of torchvision's ResNet-50 with FPN.

    pictures: files, folders or globs; of none the bundled ones. precisions: of ours. calibration: a folder of pictures,
    for int8. rounds: that count, each side once. threads: of torch, in this process and in others that are started.
    shortest: px, what the network sees of the shorter side; proposals, detections: per picture; None: torchvision's own
    800, 1000 and 100 where it is the peer, else the checkpoint's. data: labelled pictures to load, or None for drawn
    ones. body: the ResNet of random weights.
    """

    weights: str | None = None
    pictures: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("float32", "bf16")
    calibration: str | None = None
    rounds: int = 3
    threads: int = 1
    device: str = "cpu"
    shortest: int | None = None
    proposals: int | None = None
    detections: int | None = None
    data: str | None = None
    body: str = "resnet50"


def opened(weights: str, config: Mapping[str, Any], precision: str, options: BenchOptions) -> Predictor:
    """Ours, as a user loads it."""
    more: dict[str, Any] = {"calibration": options.calibration} if precision == "int8" else {}
    with _without_remarks():  # on what a file of torchvision does not tell: its peer was built by the same values
        return load(weights, dict(config), precision, options.device, **more)  # type: ignore[arg-type]


def plain(predictor: Predictor) -> Predictor:
    """The same detector as PyTorch runs it, with nothing rewritten for this machine; of a predictor in float32."""
    return predictor.untuned()


@contextmanager
def _without_remarks() -> Iterator[None]:
    """What was chosen for this machine is still told."""
    log = logging.getLogger("maskrcnn")
    log.addFilter(_is_no_remark)
    try:
        yield
    finally:
        log.removeFilter(_is_no_remark)


def _is_no_remark(record: logging.LogRecord) -> bool:
    return _REMARK not in record.getMessage()
