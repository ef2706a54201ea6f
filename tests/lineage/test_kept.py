"""Files that know what they were made from."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from maskrcnn.errors import InputError
from maskrcnn.lineage.kept import digest_of, keep, kept


def test_there_and_back(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 4), "a": torch.arange(5), "none": torch.zeros(0, 7)}
    keep(tmp_path / "new" / "x.safetensors", "them", tensors, {"seconds": 1.5})
    found = kept(tmp_path / "new" / "x.safetensors", "them")
    assert found is not None and found.facts == {"seconds": 1.5} and set(found.tensors) == set(tensors)
    assert all(torch.equal(found.tensors[name], value) for name, value in tensors.items())


def test_an_absent_file_is_no_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert kept(tmp_path / "x.safetensors", "them") is None
    assert caplog.records == []


def test_made_from_something_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep(tmp_path / "x.safetensors", "them", {"a": torch.ones(2)})
    with caplog.at_level(logging.WARNING, logger="maskrcnn"):
        assert kept(tmp_path / "x.safetensors", "others") is None
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'x.safetensors'}: was made from something else; it is made anew"
    ]


def test_every_kind_of_damage_is_seen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.safetensors"
    keep(path, "them", {"a": torch.ones(200)})
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[-7] ^= 1  # one bit, of a value: the format itself would not tell
    foreign = safetensors.torch.save({"a": torch.ones(200)})
    for damaged in (whole[:-100], whole[:5], b"", bytes(changed), b"\0" * len(whole), foreign):
        path.write_bytes(damaged)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="maskrcnn"):
            assert kept(path, "them") is None
        assert [record.getMessage() for record in caplog.records] == [f"{path}: is damaged; it is made anew"]
    path.write_bytes(whole)
    assert kept(path, "them") is not None


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    keep(path, "them", {"a": torch.ones(2)})

    def full(self: Path, data: bytes) -> int:
        self.touch()  # its first bytes were written
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(InputError) as caught:
            keep(path, "others", {"a": torch.zeros(1 << 18)})
    assert str(caught.value) == (
        f"{path}: the disk is full, this file was not written (what is kept already is whole); "
        "expected room for 1.0 MB, then the same call again"
    )
    found = kept(path, "them")
    assert found is not None and torch.equal(found.tensors["a"], torch.ones(2))
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_other_errors_of_the_system_are_not_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, data: bytes) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "write_bytes", refused)
    with pytest.raises(OSError, match="Input/output error"):
        keep(tmp_path / "x.safetensors", "them", {"a": torch.ones(2)})


def test_a_digest_hangs_on_every_part() -> None:
    values = torch.arange(6.0)
    parts = [
        (values,),
        (values.view(2, 3),),
        (values.int(),),
        (torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.000001]),),
        (values, ""),
        ("ab", "c"),
        ("a", "bc"),
    ]
    assert len({digest_of(*some) for some in parts}) == len(parts)
    assert digest_of(values.clone(), "x") == digest_of(values, "x")
