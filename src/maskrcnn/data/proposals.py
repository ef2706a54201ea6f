"""Proposals that come with the pictures instead of from an RPN: a data set that carries them, and their file.

The file is one `.safetensors`: a tensor (P, 4) float32 under each image id, and in its metadata under
`maskrcnn_proposals` a JSON object:

    format_version   whole number; a reader refuses another
    source           what proposed them ("Selective Search, fast"; the name of a detector)
    pictures         sha256 over id, file name and size of every picture, in their order
    content          sha256 over the tensors, so that a damaged file is known as one

    P proposals of a picture    boxes: (x1, y1, x2, y2), float pixels of the picture as the data set gives it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from maskrcnn.data.dataset import Dataset, Sample, position
from maskrcnn.errors import InputError
from maskrcnn.ops.files import whole_file
from maskrcnn.structures import Target

FORMAT_VERSION = 1
METADATA_KEY = "maskrcnn_proposals"
_EXPECTED = "float32 (P, 4), finite, x1 <= x2 and y1 <= y2"


class WithProposals(Dataset):
    """Another data set, whose targets carry proposals as well.

    proposals: of each picture, (P, 4) float32 in the frame in which `dataset` gives it; P may be 0.

    Raises:
        InputError: not as many as there are pictures, or one is not of that form.
    """

    def __init__(self, dataset: Dataset, proposals: Sequence[Tensor]) -> None:
        _require_one_for_each(dataset, proposals)
        self.dataset, self.proposals = dataset, tuple(proposals)
        self.classes, self.skipped, self.keypoints = dataset.classes, dataset.skipped, dataset.keypoints

    def __len__(self) -> int:
        return len(self.dataset)

    def sample(self, i: int) -> Sample:
        picture, target = self.dataset.sample(i)
        return picture, replace(target, proposals=self.proposals[i])

    def target(self, i: int) -> Target:
        return replace(self.dataset.target(i), proposals=self.proposals[position(i, len(self))])

    def path(self, i: int) -> str:
        return self.dataset.path(i)

    def image_id(self, i: int) -> int:
        return self.dataset.image_id(i)

    def ground_truth(self) -> dict[str, Any]:
        return self.dataset.ground_truth()


def write_proposals(path: str | Path, dataset: Dataset, proposals: Sequence[Tensor], source: str) -> Path:
    """Write the proposals of every picture of `dataset` to one file, whole or not at all.

    Args:
        proposals: as in `WithProposals`. source: what proposed them, for people.

    Raises:
        InputError: not as many as there are pictures, or one is not of that form.
    """
    _require_one_for_each(dataset, proposals)
    tensors = {
        str(image_id): boxes.detach().cpu().contiguous().clone()  # safetensors refuses tensors that share memory
        for image_id, boxes in zip(dataset.image_ids, proposals, strict=True)
    }
    document = {
        "format_version": FORMAT_VERSION,
        "source": source,
        "pictures": pictures_digest(dataset),
        "content": content_digest(tensors),
    }
    metadata = {METADATA_KEY: json.dumps(document, ensure_ascii=False)}
    with whole_file(path) as unfinished:
        unfinished.write_bytes(safetensors.torch.save(tensors, metadata=metadata))
    return Path(path)


def read_proposals(path: str | Path, dataset: Dataset) -> list[Tensor]:
    """The proposals of each picture of `dataset`, in its order: (P, 4) float32.

    Raises:
        InputError: no such file, not one of proposals, damaged, or written for other pictures.
    """
    document, tensors = _read_file(Path(path))
    if document.get("format_version") != FORMAT_VERSION:
        found = document.get("format_version")
        raise InputError("format of another version", file=path, found=found, expected=str(FORMAT_VERSION))
    if document.get("content") != content_digest(tensors):
        raise InputError("is damaged", file=path, field="content", expected="tensors with the sha256 beside them")
    if document.get("pictures") != pictures_digest(dataset):
        found = f"{len(tensors)} pictures that {document.get('source')!r} looked at"
        expected = f"the {len(dataset)} of the data set, with its ids, file names and sizes"
        raise InputError("proposals for other pictures", file=path, found=found, expected=expected)
    return [tensors[str(image_id)] for image_id in dataset.image_ids]


def pictures_digest(dataset: Dataset) -> str:
    """sha256 over id, file name (without its folder) and size of every picture, in their order.

    No picture is decoded for it. The name is in it because ids and sizes alone do not tell much: drawn shapes of any
    seed have the same.
    """
    digest = hashlib.sha256()
    for i in range(len(dataset)):
        name = PureWindowsPath(dataset.path(i)).name  # which knows both kinds of slashes
        digest.update(json.dumps([dataset.image_id(i), name, *map(int, dataset.target(i).size)]).encode())
    return digest.hexdigest()


def content_digest(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, shapes, types and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def _require_one_for_each(dataset: Dataset, proposals: Sequence[Tensor]) -> None:
    if len(proposals) != len(dataset):
        expected = f"{len(dataset)}, one (P, 4) for each picture"
        raise InputError("do not fit the pictures", field="proposals", found=len(proposals), expected=expected)
    for i, boxes in enumerate(proposals):
        if not _is_boxes(boxes):
            found = f"{boxes.dtype} {tuple(boxes.shape)}" if isinstance(boxes, Tensor) else type(boxes).__name__
            raise InputError("are not boxes", field=f"proposals[{i}]", found=found, expected=_EXPECTED)


def _is_boxes(boxes: object) -> bool:
    if not isinstance(boxes, Tensor) or boxes.dtype != torch.float32 or boxes.ndim != 2 or boxes.shape[1] != 4:
        return False
    return bool(boxes.isfinite().all() and (boxes[:, 2:] >= boxes[:, :2]).all())


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON object under `METADATA_KEY` and all tensors."""
    expected = "a .safetensors file of proposals"
    if not path.is_file():
        raise InputError("no such file", file=path, expected=expected)
    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            document = json.loads((stream.metadata() or {}).get(METADATA_KEY, "null"))
            # copies: what safetensors gives is the file itself, and would change with it
            tensors = {name: stream.get_tensor(name).clone() for name in stream.keys()}
    except (safetensors.SafetensorError, json.JSONDecodeError, RecursionError) as error:
        raise InputError("is truncated, damaged or of another kind", file=path, found=str(error)) from error
    if not isinstance(document, dict):
        raise InputError("holds no proposals", file=path, field="metadata", expected=f"an entry {METADATA_KEY!r}")
    return document, tensors
