"""Proposals of a whole data set: searched for once, kept, gone on with, and made again where they cannot be trusted."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from maskrcnn.data.dataset import AdaptedSequence, subset
from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.lineage import proposing
from maskrcnn.lineage.proposing import pieces_folder, proposals_of, seconds_of_proposing
from maskrcnn.lineage.selective_search import selective_search


@pytest.fixture
def shapes() -> ShapesDataset:
    return ShapesDataset(5, size=(48, 64), seed=3, max_objects=4)


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Pictures that were searched, in pieces of two."""
    pictures: list[bytes] = []

    def search(picture: np.ndarray, mode: str = "fast") -> Tensor:
        pictures.append(picture.tobytes())
        return selective_search(picture, mode)  # type: ignore[arg-type]

    monkeypatch.setattr(proposing, "selective_search", search)
    monkeypatch.setattr(proposing, "PIECE", 2)
    return pictures


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


def expected(dataset: ShapesDataset) -> list[Tensor]:
    return [selective_search(picture) for picture, _ in dataset]


def test_searched_once_then_read(shapes: ShapesDataset, searched: list[bytes], tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    first = proposals_of(shapes, tmp_path, lambda done, total: told.append((done, total)))
    assert equal(first, expected(shapes)) and len(searched) == 5
    assert told == [(2, 5), (4, 5), (5, 5)]
    assert equal(proposals_of(shapes, tmp_path), first) and len(searched) == 5
    assert len(list(pieces_folder(shapes, tmp_path).iterdir())) == 3


def test_pictures_without_proposals(searched: list[bytes], tmp_path: Path) -> None:
    target = ShapesDataset(1, size=(48, 64))[0][1]
    blank = AdaptedSequence([(np.full((48, 64, 3), 99, np.uint8), target)] * 3)
    for _ in range(2):
        assert [tuple(boxes.shape) for boxes in proposals_of(blank, tmp_path)] == [(0, 4)] * 3
    assert len(searched) == 3


def test_no_pictures(tmp_path: Path) -> None:
    assert proposals_of(ShapesDataset(0), tmp_path) == []
    assert seconds_of_proposing(ShapesDataset(0), tmp_path) == 0


def test_data_sets_and_modes_do_not_meet(shapes: ShapesDataset, searched: list[bytes], tmp_path: Path) -> None:
    others = [ShapesDataset(5, size=(48, 64), seed=4, max_objects=4), subset(shapes, [4, 1, 0]), shapes]
    kept = [proposals_of(dataset, tmp_path) for dataset in others]
    quality = proposals_of(shapes, tmp_path, mode="quality")
    assert len(searched) == 5 + 3 + 5 + 5
    assert not equal(kept[0], kept[2]) and not equal(kept[2], quality)
    assert equal(kept[1], [kept[2][i] for i in (4, 1, 0)])
    again = [proposals_of(dataset, tmp_path) for dataset in others]
    assert all(equal(a, b) for a, b in zip(kept, again, strict=True)) and len(searched) == 18


def test_goes_on_after_the_last_whole_piece(shapes: ShapesDataset, searched: list[bytes], tmp_path: Path) -> None:
    def killed(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        proposals_of(shapes, tmp_path, killed)
    half_written = pieces_folder(shapes, tmp_path) / ".00002.safetensors.abcd.unfinished"
    half_written.write_bytes(b"half")
    assert len(searched) == 4
    assert equal(proposals_of(shapes, tmp_path), expected(shapes))
    assert len(searched) == 5 and not half_written.exists()


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def change_a_number(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def another_kind(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"maskrcnn_proposing", b"maskrcnn_something"))


@pytest.mark.parametrize("damage", [cut_short, change_a_number, empty, another_kind])
def test_a_damaged_piece_is_made_again(
    shapes: ShapesDataset,
    searched: list[bytes],
    tmp_path: Path,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = proposals_of(shapes, tmp_path)
    damage(pieces_folder(shapes, tmp_path) / "00001.safetensors")
    with caplog.at_level(logging.WARNING, "maskrcnn"):
        assert equal(proposals_of(shapes, tmp_path), first)
    assert searched[5:] == [shapes[i][0].tobytes() for i in (2, 3)]
    assert [record.getMessage() for record in caplog.records] == [
        f"{pieces_folder(shapes, tmp_path) / '00001.safetensors'}: proposals are damaged and are made again"
    ]
    assert equal(proposals_of(shapes, tmp_path), first) and len(searched) == 7


def test_pictures_that_changed_under_their_names_are_searched_again(
    shapes: ShapesDataset, searched: list[bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    proposals_of(shapes, tmp_path)
    pairs = [shapes[i] for i in range(5)]
    picture, target = pairs[4]
    changed = AdaptedSequence([*pairs[:4], (picture[:, ::-1].copy(), target)])
    changed.path = shapes.path  # type: ignore[method-assign]
    assert pieces_folder(changed, tmp_path) == pieces_folder(shapes, tmp_path)
    with caplog.at_level(logging.WARNING, "maskrcnn"):
        found = proposals_of(changed, tmp_path)
    assert torch.equal(found[4], selective_search(picture[:, ::-1])) and len(searched) == 6
    assert "of other pictures or of an older search" in caplog.text


def test_an_older_search_is_not_trusted(
    shapes: ShapesDataset, searched: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposals_of(shapes, tmp_path)
    monkeypatch.setattr(proposing, "VERSION", proposing.VERSION + 1)
    proposals_of(shapes, tmp_path)
    assert len(searched) == 10


def test_a_full_disk_leaves_the_pieces_before(
    shapes: ShapesDataset, searched: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full_at_the_third(self: Path, data: bytes) -> int:
        if "00002" in self.name:
            write(self, data[:30])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full_at_the_third)
        with pytest.raises(OSError, match=r"No space left on device: '.*00002.safetensors'$") as caught:
            proposals_of(shapes, tmp_path)
    assert "\n" not in str(caught.value)
    names = sorted(file.name for file in pieces_folder(shapes, tmp_path).iterdir())
    assert names == ["00000.safetensors", "00001.safetensors"]
    searched.clear()
    assert equal(proposals_of(shapes, tmp_path), expected(shapes))
    assert searched == [shapes[4][0].tobytes()]


def test_the_time_it_took_is_kept(shapes: ShapesDataset, searched: list[bytes], tmp_path: Path) -> None:
    assert seconds_of_proposing(shapes, tmp_path) == 0
    proposals_of(shapes, tmp_path)
    took = seconds_of_proposing(shapes, tmp_path)
    assert took > 0
    proposals_of(shapes, tmp_path)
    assert seconds_of_proposing(shapes, tmp_path) == took
    (pieces_folder(shapes, tmp_path) / "00000.safetensors").unlink()
    assert 0 < seconds_of_proposing(shapes, tmp_path) < took
