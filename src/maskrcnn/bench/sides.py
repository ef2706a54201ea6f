"""The two sides of a comparison: from the bytes of a picture to boxes, scores and masks as RLE."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskrcnn.data.pictures import read_picture
from maskrcnn.ops import rle
from maskrcnn.ops.rle import RLE
from maskrcnn.predictor import Predictor
from maskrcnn.structures import Detections, Masks, Size


@dataclass(frozen=True)
class Found:
    """D detections of a picture of `size` (height, width), best first, on the CPU.

    boxes: (D, 4) float32, original frame. scores: (D,). labels: (D,) in 1..K. probabilities: (D, M, M) float32 before
    they are pasted, or None without a mask head. rles: the masks as this side gives them to a user, D or none.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    probabilities: Tensor | None
    rles: Sequence[RLE]
    size: Size

    def __len__(self) -> int:
        return self.boxes.shape[0]

    @property
    def masks(self) -> Masks | None:
        """The masks as ours would be pasted."""
        return None if self.probabilities is None else Masks(self.probabilities, self.boxes, self.size)


class Side(Protocol):
    """What is timed: a JPEG file's bytes in, detections with RLE out; in two parts for a clock between them."""

    def decode(self, data: bytes) -> Any: ...

    def detect(self, decoded: Any) -> Any: ...

    def encode(self, detected: Any) -> Found: ...


def whole(side: Side, data: bytes) -> Found:
    """Picture to RLE."""
    return side.encode(side.detect(side.decode(data)))


class Ours:
    """What a user of this package calls: `predict`, then `masks.rle()`."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def decode(self, data: bytes) -> np.ndarray:
        return read_picture(data)

    def detect(self, decoded: np.ndarray) -> Detections:
        found: Detections = self.predictor.predict(decoded)
        return found

    def encode(self, detected: Detections) -> Found:
        masks = detected.masks
        return Found(
            boxes=detected.boxes,
            scores=detected.scores,
            labels=detected.labels,
            probabilities=None if masks is None else masks.probabilities,
            rles=[] if masks is None else masks.rle(),
            size=detected.size,
        )


class Theirs:
    """Torchvision's detector as people use it: Pillow, the call, which pastes too, a threshold, pycocotools' RLE.

    RLE is written by our own code where pycocotools is not installed (`encoder` says which).
    """

    def __init__(self, model: Any, device: torch.device | str = "cpu", precision: str = "float32") -> None:
        self.model = model.to(device).eval()
        self.device, self.precision = torch.device(device), precision
        self.encoder = "pycocotools" if _has_pycocotools() else "maskrcnn.ops.rle"
        self._probabilities: Tensor | None = None
        self.model.roi_heads.register_forward_hook(self._keep)

    def _keep(self, module: Any, inputs: Any, outputs: Any) -> None:
        """The masks before they are pasted into the picture: afterwards nobody can compare them."""
        self._probabilities = outputs[0][0].get("masks")

    def decode(self, data: bytes) -> Tensor:
        from torchvision.transforms.functional import pil_to_tensor

        with Image.open(io.BytesIO(data)) as picture:
            pixels: Tensor = pil_to_tensor(picture.convert("RGB"))
        return pixels

    @torch.no_grad()
    def detect(self, decoded: Tensor) -> dict[str, Tensor]:
        with self._arithmetic():
            (found,) = self.model([decoded.to(self.device) / 255])
        found["size"] = decoded.shape[1:]
        return dict(found)

    def encode(self, detected: dict[str, Any]) -> Found:
        size = (int(detected["size"][0]), int(detected["size"][1]))
        bitmaps = None if "masks" not in detected else (detected["masks"][:, 0] > 0.5).cpu().numpy()
        probabilities = self._probabilities
        return Found(
            boxes=detected["boxes"].float().cpu(),
            scores=detected["scores"].float().cpu(),
            labels=detected["labels"].cpu(),
            probabilities=None if probabilities is None else probabilities[:, 0].float().cpu(),
            rles=[] if bitmaps is None else encoded(bitmaps),
            size=size,
        )

    def _arithmetic(self) -> AbstractContextManager[Any]:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def encoded(bitmaps: np.ndarray) -> list[RLE]:
    """(D, H, W) bool as D RLEs, as torchvision's reference scripts do it: one by one, by pycocotools if it is here."""
    if not _has_pycocotools():
        return [rle.encode(bitmap) for bitmap in bitmaps]
    from pycocotools import mask

    return [mask.encode(np.array(bitmap[:, :, None], dtype=np.uint8, order="F"))[0] for bitmap in bitmaps]


def _has_pycocotools() -> bool:
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError:
        return False
    return True
