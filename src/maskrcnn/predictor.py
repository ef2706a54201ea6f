"""Picture in, detections in the original frame out: for one picture, or for a stream held one batch at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from glob import has_magic
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, get_args, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskrcnn.data.pictures import PictureLike, picture_files, read_picture
from maskrcnn.engine.calibrate import Ranges
from maskrcnn.engine.calibration import Calibration, calibration_pictures, ranges_in
from maskrcnn.engine.int8 import ranges_of
from maskrcnn.engine.memory import memory_for
from maskrcnn.engine.memory_errors import TO_DETECT, enough_memory
from maskrcnn.engine.tune import Precision, tuned
from maskrcnn.errors import InputError
from maskrcnn.model.config import MOST, is_count
from maskrcnn.model.mask_rcnn import Limits, MaskRCNN
from maskrcnn.structures import Detections
from maskrcnn.weights.opening import ConfigLike, open_weights

_log = logging.getLogger("maskrcnn")

InMemory = bytes | Image.Image | np.ndarray | Tensor  # forms of one picture that are no path
OnError = Callable[[InputError], None]
Proposer = Callable[[np.ndarray], Tensor]  # picture (H, W, 3) uint8 RGB -> boxes (P, 4) in it


class PredictOptions(TypedDict, total=False):
    """What `Predictor.predict` may be asked for besides the pictures; explained there."""

    score_threshold: float | None
    nms_iou: float | None
    max_detections: int | None
    proposals: int | None
    size: int | Literal["native"] | None
    class_agnostic_nms: bool | None
    mask_nms_iou: float | None
    batch_size: int
    on_error: OnError | None


def load(
    weights: str | Path,
    config: ConfigLike | None = None,
    precision: Precision = "float32",
    device: str = "auto",
    calibration: Calibration | None = None,
) -> Predictor:
    """A detector that is ready to predict.

    Args:
        weights: the name of one that ships with the package ("nuclei") or of the zoo (`maskrcnn weights list`), or a
            file: our `.safetensors`, or a checkpoint of torchvision, Detectron2, MMDetection or Matterport.
        config: in place of what the file says: a `MaskRCNNConfig`, a mapping with some of its fields
            ({"detection": {"score_threshold": 0.3}}), or the config file of the framework that wrote the weights.
        precision: "float32" (exact), "bf16" or on a GPU "fp16" (half the memory traffic, scores differ in the third
            digit), or on a CPU "int8" (fastest; wants `calibration`).
        device: "auto" takes CUDA, else MPS, else the CPU (for int8 always the CPU); or any name that torch knows.
        calibration: for int8, a folder, glob or list of some ten pictures like those to come, on which the range of
            every layer's numbers is found. Not needed for a file that `maskrcnn weights quantise` wrote.

    Errors: `InputError` for what cannot be opened, int8 without calibration, and a calibration folder without pictures.
    """
    opened = open_weights(weights, config)
    if opened.assumed:
        values = "; ".join(line.partition(": ")[0] for line in opened.assumed)  # `weights show` gives the reasons
        _log.warning("%s: a detector of %s, whose file does not tell: %s", weights, opened.family, values)
    if precision != "int8":
        return Predictor(opened.model, device, precision)
    ranges = ranges_in(opened.metadata, weights)
    if calibration is not None:
        ranges = ranges_of(opened.model, calibration_pictures(calibration))
    return Predictor(opened.model, "cpu" if device == "auto" else device, precision, ranges=ranges)


class Predictor:
    """A detector with its device and precision.

    `model` is the plain one, which can be looked into, trained on and exported; `network` has the same answers, but for
    rounding, and is what runs: rewritten for this machine (see `engine/tune.py`) when the predictor is made, so that
    weights changed later are not seen.

    Args:
        model: moved to `device` and set to evaluation.
        device: "auto" or a torch device. precision: of the network's arithmetic; results are float32 always.
        proposer: gives the boxes (P, 4) to look at in a picture (H, W, 3) uint8 RGB, best first; in place of the
            detector's own RPN, or because it has none.
        ranges: what int8 needs to know of the model's numbers: `engine.int8.ranges_of(model, pictures)`.
    """

    def __init__(
        self,
        model: MaskRCNN,
        device: str | torch.device = "auto",
        precision: Precision = "float32",
        proposer: Proposer | None = None,
        ranges: Ranges | None = None,
    ) -> None:
        if precision not in get_args(Precision):
            expected = " or ".join(get_args(Precision))
            raise InputError("no such precision", field="precision", found=precision, expected=expected)
        self.device = _device(device)
        self.model = model.to(self.device).eval()
        self.network = tuned(self.model, precision, ranges)
        self.precision, self.ranges = precision, ranges
        self.proposer = proposer

    def __getstate__(self) -> dict[str, Any]:
        """For copies and other processes: without the rewritten network, whose packed weights belong to this one."""
        return self.__dict__ | {"network": self.model if self.network is self.model else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if state["network"] is None:
            self.network = tuned(self.model, self.precision, self.ranges)

    def untuned(self) -> Predictor:
        """The same detector run layer by layer as `model` has it, in float32: for those who look into its layers."""
        plain = Predictor.__new__(Predictor)
        plain.__dict__ |= self.__dict__ | {"network": self.model, "precision": "float32"}
        return plain

    def __repr__(self) -> str:
        return f"Predictor({len(self.class_names)} classes, device={str(self.device)!r}, precision={self.precision!r})"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of labels 1..K."""
        return self.model.config.class_names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Ids of labels 1..K as the data set counted them."""
        return self.model.config.category_ids

    @overload
    def predict(  # type: ignore[overload-overlap]  # an array is iterable too, and is one picture all the same
        self, pictures: InMemory, **options: Unpack[PredictOptions]
    ) -> Detections: ...
    @overload
    def predict(self, pictures: str | Path, **options: Unpack[PredictOptions]) -> Any: ...  # a file or a folder
    @overload
    def predict(self, pictures: Iterable[PictureLike], **options: Unpack[PredictOptions]) -> Iterator[Detections]: ...

    def predict(
        self,
        pictures: PictureLike | Iterable[PictureLike],
        *,
        score_threshold: float | None = None,
        nms_iou: float | None = None,
        max_detections: int | None = None,
        proposals: int | None = None,
        size: int | Literal["native"] | None = None,
        class_agnostic_nms: bool | None = None,
        mask_nms_iou: float | None = None,
        batch_size: int = 1,
        on_error: OnError | None = None,
    ) -> Detections | Iterator[Detections]:
        """Find every object. Each option left out is the checkpoint's own.

        Args:
            pictures: one picture (path, bytes of a file, PIL, numpy (H, W, C), tensor (C, H, W)) gives `Detections`;
                a folder, a glob, or a list or generator of any of these gives an iterator that reads as it goes.
            score_threshold: lowest score kept, 0..1. nms_iou: boxes of one class that overlap more are one object.
            max_detections: per picture. proposals: kept by the RPN, before its pre-NMS limit too.
            size: shorter side in pixels that the network sees, or "native" for no resizing.
            class_agnostic_nms: boxes of different classes suppress one another as well.
            mask_nms_iou: masks that overlap more are one object; for touching, slanted objects whose boxes overlap.
            batch_size: pictures at work at once; memory grows with it.
            on_error: called with each unreadable picture of a stream, which then goes on; None raises.

        Errors: `InputError` for an option out of range, a file that is no picture, a folder without pictures.
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
        limits.applied(self.model.config)  # an impossible value fails here, not at the first picture
        if not is_count(batch_size):
            expected = f"a whole number from 1 to {MOST}"
            raise InputError("impossible value", field="batch_size", found=repr(batch_size), expected=expected)
        if not isinstance(pictures, Iterable | InMemory | str | Path):
            expected = "a picture (path, bytes, PIL, array, tensor), a folder, a glob, or a list of these"
            raise InputError("is no picture", field="pictures", found=repr(pictures), expected=expected)
        if isinstance(pictures, InMemory):
            return self._detect([_Loaded(pictures)], limits)[0]
        if isinstance(pictures, str | Path):
            if not _names_several(pictures):
                return self._detect([_Loaded(pictures)], limits)[0]
            pictures = picture_files([pictures])
        return self._stream(iter(pictures), limits, int(batch_size), on_error)

    def _stream(
        self, pictures: Iterator[PictureLike], limits: Limits, batch_size: int, on_error: OnError | None
    ) -> Iterator[Detections]:
        # map and filter hold no picture between calls, as a loop variable would
        single = chain.from_iterable(map(_expanded, pictures))
        readable = filter(None, map(partial(_read, on_error=on_error), single))
        while batch := list(islice(readable, batch_size)):
            found = self._detect(batch, limits)
            batch.clear()
            yield from found

    def _detect(self, batch: list[_Loaded], limits: Limits) -> list[Detections]:
        images = [torch.from_numpy(item.pixels).permute(2, 0, 1) for item in batch]  # (3, H, W) uint8
        proposals = None if self.proposer is None else [self.proposer(item.pixels) for item in batch]
        # not inference_mode: results are the caller's to change
        enough = enough_memory(TO_DETECT, f"{len(batch)} picture{'s' * (len(batch) > 1)} at a time")
        with torch.no_grad(), enough, memory_for(self._largest_map(images, limits)):
            found = self.network(images, limits, proposals)
        return [
            replace(on_cpu(detections), source=item.source, picture=partial(read_picture, item.picture))
            for detections, item in zip(found, batch, strict=True)
        ]

    def _largest_map(self, images: Sequence[Tensor], limits: Limits) -> int:
        """Bytes of the finest feature map of these pictures (3, H_i, W_i), about."""
        config = self.model.config
        sizes = [config.preprocess.resized_size((image.shape[1], image.shape[2]), limits.size) for image in images]
        channels = max(self.model.backbone.channels.values()) if config.fpn is None else config.fpn.channels
        cells = sum(high * wide for high, wide in sizes) // min(self.model.backbone.strides.values()) ** 2
        return cells * channels * (4 if self.precision == "float32" else 2)


class _Loaded:
    """A picture as given and its pixels (H, W, 3) uint8 RGB."""

    def __init__(self, picture: PictureLike) -> None:
        self.picture = picture
        self.pixels = np.require(read_picture(picture), requirements="W")  # torch warns of arrays it may not write to
        self.source = str(picture) if isinstance(picture, str | Path) else ""


def _read(picture: PictureLike, on_error: OnError | None) -> _Loaded | None:
    try:
        return _Loaded(picture)
    except InputError as error:
        if on_error is None:
            raise
        on_error(error)
        return None


def _names_several(path: str | Path) -> bool:
    """True for a folder or a glob. A file that exists is one picture, whatever characters its name contains."""
    return Path(path).is_dir() or (has_magic(str(path)) and not Path(path).exists())


def _expanded(picture: PictureLike) -> Sequence[PictureLike]:
    if isinstance(picture, str | Path) and _names_several(picture):
        return picture_files([picture])
    return [picture]


def _device(device: str | torch.device) -> torch.device:
    if device != "auto":
        expected = "auto, cpu, cuda or mps, where the machine has it"
        try:
            place = torch.empty(0, device=torch.device(device)).device
        except (RuntimeError, AssertionError, TypeError) as error:  # no such name; no such hardware; no name
            raise InputError("no such device", field="device", found=str(device), expected=expected) from error
        if place.type == "meta":
            raise InputError("computes nothing", field="device", found=str(device), expected=expected)
        return place
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def on_cpu(found: Detections) -> Detections:
    """Results on the CPU in float32, whatever the network computed with."""
    masks = found.masks
    if masks is not None:
        masks = replace(masks, probabilities=_plain(masks.probabilities), boxes=_plain(masks.boxes))
    keypoints = None if found.keypoints is None else _plain(found.keypoints)
    return replace(
        found,
        boxes=_plain(found.boxes),
        scores=_plain(found.scores),
        labels=found.labels.cpu(),
        masks=masks,
        keypoints=keypoints,
    )


def _plain(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", torch.float32)
