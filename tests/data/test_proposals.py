"""Data sets that carry proposals, and the file between whoever proposed and whoever learns from them."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from maskrcnn.data.dataset import AdaptedSequence, subset
from maskrcnn.data.proposals import WithProposals, content_digest, pictures_digest, read_proposals, write_proposals
from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.data.transforms import Flip
from maskrcnn.errors import InputError

SOURCE = "a test, by hand"


@pytest.fixture
def shapes() -> ShapesDataset:
    return ShapesDataset(3, size=(40, 50), seed=4, max_objects=3)


@pytest.fixture
def proposals() -> list[Tensor]:
    """Two, none and one."""
    return [
        torch.tensor([[1.0, 2.0, 11.0, 22.5], [0.0, 0.0, 50.0, 40.0]]),
        torch.zeros(0, 4),
        torch.tensor([[5.0, 5.0, 5.0, 9.0]]),
    ]


def test_targets_carry_them(shapes: ShapesDataset, proposals: list[Tensor]) -> None:
    carrying = WithProposals(shapes, proposals)
    assert len(carrying) == 3 and carrying.classes is shapes.classes and carrying.image_ids == shapes.image_ids
    for i in range(3):
        (picture, target), (plain_picture, plain) = carrying[i], shapes[i]
        assert target.proposals is not None and torch.equal(target.proposals, proposals[i])
        assert carrying.target(i).proposals is target.proposals and carrying.path(i) == shapes.path(i)
        assert np.array_equal(picture, plain_picture) and torch.equal(target.gt_boxes, plain.gt_boxes)
        assert plain.proposals is None
    assert carrying.target(-1).proposals is proposals[2]
    assert carrying.ground_truth() == shapes.ground_truth()


def test_parts_and_parts_of_parts(shapes: ShapesDataset, proposals: list[Tensor]) -> None:
    carrying = WithProposals(shapes, proposals)
    assert carrying[1:][1][1].proposals is proposals[2]
    assert WithProposals(subset(shapes, [2, 0]), [proposals[2], proposals[0]])[0][1].proposals is proposals[2]


def test_a_mirror_moves_them_with_the_boxes(shapes: ShapesDataset, proposals: list[Tensor]) -> None:
    picture, target = WithProposals(shapes, proposals)[0]
    after = Flip(horizontal=1.0)(picture, target, np.random.default_rng(0))[1]
    assert after.proposals is not None
    assert after.proposals.tolist() == [[39.0, 2.0, 49.0, 22.5], [0.0, 0.0, 50.0, 40.0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[:2], "do not fit the pictures; found 2; expected 3"),
        (lambda p: [*p[:2], p[2].double()], r"proposals\[2\]: are not boxes; found torch.float64 \(1, 4\)"),
        (lambda p: [p[0][:, :3], *p[1:]], r"proposals\[0\]: are not boxes; found torch.float32 \(2, 3\)"),
        (lambda p: [p[0], None, p[2]], r"proposals\[1\]: are not boxes; found NoneType"),
        (lambda p: [p[0] * torch.nan, *p[1:]], r"proposals\[0\]: are not boxes"),
        (lambda p: [p[0].flip(1), *p[1:]], r"proposals\[0\]: are not boxes"),
    ],
)
def test_proposals_that_do_not_fit(
    shapes: ShapesDataset, proposals: list[Tensor], change, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        WithProposals(shapes, change(proposals))
    with pytest.raises(InputError, match=message):
        write_proposals(tmp_path / "p.safetensors", shapes, change(proposals), SOURCE)
    assert not list(tmp_path.iterdir())


def test_written_and_read(shapes: ShapesDataset, proposals: list[Tensor], tmp_path: Path) -> None:
    path = write_proposals(tmp_path / "p.safetensors", shapes, proposals, SOURCE)
    read = read_proposals(path, shapes)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(read, proposals, strict=True))


def test_boxes_that_share_memory_can_be_written(shapes: ShapesDataset, tmp_path: Path) -> None:
    rows = torch.arange(16.0).reshape(4, 4)
    path = write_proposals(tmp_path / "p.safetensors", shapes, [rows, rows[1:3], rows], SOURCE)
    assert [len(boxes) for boxes in read_proposals(path, shapes)] == [4, 2, 4]


def test_they_go_by_image_not_by_place(shapes: ShapesDataset, proposals: list[Tensor], tmp_path: Path) -> None:
    """The same pictures in another order are other pictures: nothing is handed to the wrong one."""
    path = write_proposals(tmp_path / "p.safetensors", shapes, proposals, SOURCE)
    with pytest.raises(InputError, match="proposals for other pictures; found 3 pictures that 'a test, by hand'"):
        read_proposals(path, subset(shapes, [2, 1, 0]))


@pytest.mark.parametrize(
    "other",
    [
        ShapesDataset(3, size=(40, 50), seed=5, max_objects=3),  # the same ids and sizes
        ShapesDataset(3, size=(50, 40), seed=4, max_objects=3),
        ShapesDataset(4, size=(40, 50), seed=4, max_objects=3),
    ],
)
def test_files_of_other_pictures_are_refused(
    shapes: ShapesDataset, other: ShapesDataset, proposals: list[Tensor], tmp_path: Path
) -> None:
    path = write_proposals(tmp_path / "p.safetensors", shapes, proposals, SOURCE)
    with pytest.raises(InputError, match="p.safetensors: proposals for other pictures"):
        read_proposals(path, other)


def test_pictures_in_another_folder_are_the_same(shapes: ShapesDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = pictures_digest(shapes)
    for folder in ("/somewhere/else/", "D:\\pictures\\"):
        monkeypatch.setattr(shapes, "path", lambda i, folder=folder: f"{folder}shapes-4-{i:05d}.png")
        assert pictures_digest(shapes) == plain
    monkeypatch.setattr(shapes, "path", lambda i: f"shapes-9-{i:05d}.png")
    assert pictures_digest(shapes) != plain


def test_damaged_files(shapes: ShapesDataset, proposals: list[Tensor], tmp_path: Path) -> None:
    path = write_proposals(tmp_path / "p.safetensors", shapes, proposals, SOURCE)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(InputError, match="p.safetensors: is truncated, damaged or of another kind"):
        read_proposals(path, shapes)
    path.write_bytes(whole[:-3] + b"\x07" + whole[-2:])
    with pytest.raises(InputError, match="p.safetensors: content: is damaged"):
        read_proposals(path, shapes)
    path.write_bytes(whole.replace(b"maskrcnn_proposals", b"maskrcnn_proposers"))
    with pytest.raises(InputError, match="metadata: holds no proposals"):
        read_proposals(path, shapes)
    path.write_bytes(whole.replace(b'format_version\\": 1', b'format_version\\": 7'))
    with pytest.raises(InputError, match="format of another version; found 7; expected 1"):
        read_proposals(path, shapes)
    with pytest.raises(InputError, match="no such file"):
        read_proposals(tmp_path / "none.safetensors", shapes)


def test_a_full_disk_leaves_what_was_there(
    shapes: ShapesDataset, proposals: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_proposals(tmp_path / "p.safetensors", shapes, proposals, SOURCE)
    before = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: .*p.safetensors"):
        write_proposals(path, shapes, [torch.zeros(0, 4)] * 3, SOURCE)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["p.safetensors"]


def test_content_tells_names_shapes_types_and_values_apart() -> None:
    boxes = torch.arange(8.0).reshape(2, 4)
    others = [
        {"1": boxes},
        {"2": boxes},
        {"1": boxes.reshape(4, 2)},
        {"1": boxes.view(torch.int32)},
        {"1": boxes + 1},
        {"1": torch.zeros(0, 4)},
        {},
    ]
    assert len({content_digest(tensors) for tensors in others}) == len(others)
    assert content_digest({"1": boxes, "2": boxes + 1}) == content_digest({"2": boxes + 1, "1": boxes})


def test_no_pictures(tmp_path: Path) -> None:
    none = ShapesDataset(0)
    assert read_proposals(write_proposals(tmp_path / "p.safetensors", none, [], SOURCE), none) == []
    one_without = AdaptedSequence([ShapesDataset(1)[0]])
    assert read_proposals(
        write_proposals(tmp_path / "q.safetensors", one_without, [torch.zeros(0, 4)], SOURCE), one_without
    )[0].shape == (0, 4)
