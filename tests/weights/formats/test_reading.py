"""Files of weights of every kind: told apart by content, unwrapped, and damage is one line whatever it is."""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.weights.formats.reading import read_content

from .hostile import HARM, peak_memory


def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "backbone.conv1.weight": torch.rand(4, 3, 3, 3),
        "backbone.bn1.num_batches_tracked": torch.tensor(7),
        "half": torch.rand(5).half(),
        "double": torch.rand(2, 3).double(),
    }


def saved(content: Any, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def keras(tensors: Mapping[str, Tensor]) -> bytes:
    h5py = pytest.importorskip("h5py")
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, tensor in tensors.items():
            file[name] = tensor.numpy()
    return buffer.getvalue()


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def file_of(kind: str) -> bytes:
    """The same tensors as each framework writes them."""
    tensors = state()
    if kind == "keras":
        return keras(tensors)
    if kind == "safetensors":
        return safetensors.torch.save(tensors, {"format": "pt"})
    if kind == "zip":
        return saved({"model": tensors, "iteration": 5})
    if kind == "legacy":
        return saved({"state_dict": tensors, "meta": {"epoch": 5}}, legacy=True)
    protocol = int(kind.removeprefix("pickle "))
    content = {"model": arrays(tensors), "__author__": "Caffe2", "matching_heuristics": True}
    return pickle.dumps(content, protocol)


KINDS = ["zip", "legacy", "safetensors", "keras", *(f"pickle {i}" for i in range(6))]


def equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in wanted.items()
    )


@pytest.mark.parametrize("suffix", [".h5", ".pth", ".safetensors", ""])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_whatever_its_name(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(file_of(kind))
    content = read_content(path)
    assert equal(content.tensors, state())
    assert all(tensor.device.type == "cpu" for tensor in content.tensors.values())
    assert content.file == path


def test_tensors_can_be_written_and_the_file_stays(tmp_path: Path) -> None:
    for kind in KINDS:
        path, content = tmp_path / kind, file_of(kind)
        path.write_bytes(content)
        for tensor in read_content(path).tensors.values():
            tensor.zero_()
        assert path.read_bytes() == content
        assert equal(read_content(path).tensors, state())


# --- what is taken out of what ----------------------------------------------------------------------------------------

A, B = torch.ones(2), torch.zeros(3)


@pytest.mark.parametrize(
    ("content", "tensors", "extras"),
    [
        ({"a": A, "b": B}, {"a": A, "b": B}, {}),
        (OrderedDict(a=A), {"a": A}, {}),
        ({"model": {"a": A}, "epoch": 3}, {"a": A}, {"epoch": 3}),
        ({"state_dict": {"a": A}, "meta": {"cfg": "x = 1"}}, {"a": A}, {"meta": {"cfg": "x = 1"}}),
        ({"model_state_dict": {"a": A}, "loss": 0.5}, {"a": A}, {"loss": 0.5}),
        ({"model_state": {"a": A}, "cfg": "A: 1"}, {"a": A}, {"cfg": "A: 1"}),
        ({"blobs": {"conv1_w": A}, "cfg": "A: 1"}, {"conv1_w": A}, {"cfg": "A: 1"}),
        ({"model": {"state_dict": {"a": A}, "x": 1}, "y": 2}, {"a": A}, {"y": 2, "x": 1}),
        ({"model": "r50", "state_dict": {"a": A}}, {"a": A}, {"model": "r50"}),
        ({"model": {"depth": 50}, "state_dict": {"a": A}}, {"a": A}, {"model": {"depth": 50}}),
        ({"state_dict": {"module.a": A, "b": B}}, {"a": A, "b": B}, {}),
        ({"module.a": A, "epoch": 3}, {"a": A}, {"epoch": 3}),
        ({"model": {"a": A, "_extra_state": None}}, {"a": A}, {"_extra_state": None}),
        ({"model": {"a": A}, "best": torch.tensor(0.5)}, {"a": A}, {"best": torch.tensor(0.5)}),
        ({"model": {"a": A}, "ema_state_dict": {"a": B}}, {"a": A}, {"ema_state_dict": {"a": B}}),
        ({"model": {}, "a": A}, {"a": A}, {"model": {}}),
        ({7: A}, {"7": A}, {}),
    ],
)
def test_what_training_scripts_wrap(content: Any, tensors: Any, extras: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(saved(content))
    found = read_content(path)
    assert equal(found.tensors, tensors)
    assert str(found.extras) == str(extras)


def test_extras_of_the_formats(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(file_of("safetensors"))
    assert read_content(tmp_path / "a").extras == {"format": "pt"}
    (tmp_path / "b").write_bytes(file_of("pickle 4"))
    assert read_content(tmp_path / "b").extras == {"__author__": "Caffe2", "matching_heuristics": True}


def test_a_name_with_and_without_module(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(saved({"a": A, "module.a": B}))
    with pytest.raises(InputError, match=r"weights\.pth: a: names a tensor twice"):
        read_content(path)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "unknown format; found an empty file; expected .safetensors, .pth"),
        (b"hello world", "unknown format; found 11 bytes that begin with b'hello wo'"),
        (b"PK\x03\x04" + bytes(100), "is truncated or damaged; found a zip archive without its directory"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "unknown format; found 58 bytes"),
        (b"\x80\x04]", "is truncated or damaged"),
        (struct.pack("<Q", 2) + b"{}", "holds no state_dict"),
        (struct.pack("<Q", 5) + b"{abc}", "invalid JSON"),
        (struct.pack("<Q", 2**62) + b"{}", "unknown format"),
        (struct.pack("<Q", 17 << 20) + b"{" + b" " * (17 << 20), "header of absurd size; found 17825792 bytes"),
        (struct.pack("<Q", 10**6) + b'{"a":' + b"[" * 10**6, "JSON|recursion"),
        (b"cos\nsystem\n(S'true'\ntR.", "asks for os.system"),
        (b"ios\nsystem\n(S'true'\ntR.", "asks for os.system"),
        (saved([1, 2]), "holds no state_dict; found list; expected tensors by name"),
        (saved({"epoch": 3, "model": {"x": 1}}), "holds no state_dict; found epoch, model; expected tensors by name"),
        (saved(torch.ones(3)), "holds no state_dict; found Tensor"),
    ],
)
def test_what_is_no_file_of_weights(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_content(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.pth: no such checkpoint; expected a file: .safetensors, .pth"):
        read_content(tmp_path / "no.pth")
    with pytest.raises(InputError, match="no such checkpoint; found a folder"):
        read_content(tmp_path)


@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy"])
@pytest.mark.parametrize("harm", HARM)
def test_nothing_is_run(harm: str, kind: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "harm", tmp_path / "weights.pth"
    content = {"model": {"w": np.zeros(3) if kind == "pickle" else A}, "args": HARM[harm][1](mark)}
    path.write_bytes(pickle.dumps(content) if kind == "pickle" else saved(content, legacy=kind == "legacy"))
    with pytest.raises(InputError, match=r"weights\.pth: not a readable checkpoint: asks for ") as caught:
        read_content(path)
    name = HARM[harm][0].rpartition(".")[2]
    assert name in str(caught.value) or "import_module" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_harm_within_a_zip_within_a_pickle(tmp_path: Path) -> None:
    """Bytes are bytes, whatever they would be to another reader."""
    mark, path = tmp_path / "harm", tmp_path / "weights.pkl"
    inner = saved({"model": HARM["system"][1](mark)})
    path.write_bytes(pickle.dumps({"model": {"w": np.zeros(3)}, "more": inner}))
    assert read_content(path).extras["more"] == inner
    assert not mark.exists()


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_files_cut_short(kind: str, tmp_path: Path) -> None:
    content = file_of(kind)
    for size in np.linspace(0, len(content) - 1, 50).astype(int):
        path = tmp_path / str(size)  # anew: a file whose tensors are in use is not to be written to
        path.write_bytes(content[:size])
        with pytest.raises(InputError) as caught:
            read_content(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_files_with_a_wrong_byte(kind: str, tmp_path: Path) -> None:
    """Where there are checksums, of a zip archive, the tensors are equal or it is an error. The other formats have
    none: what is read may differ, but it is tensors of no more bytes than the file, or an error."""
    content, wanted, random = file_of(kind), state(), np.random.default_rng(len(kind))

    def work() -> None:
        for i in range(200):
            path = tmp_path / str(i)
            changed = bytearray(content)
            changed[random.integers(len(content))] ^= 1 << random.integers(8)
            path.write_bytes(changed)
            try:
                found = read_content(path)
            except InputError as error:
                assert "\n" not in str(error)
                continue
            if kind == "zip":
                assert equal(found.tensors, wanted)
            assert sum(tensor.nbytes for tensor in found.tensors.values()) <= len(content)

    assert peak_memory(work) < 50 << 20


@pytest.mark.parametrize(("kind", "times"), [("pickle", 2.3), ("zip", 1.3), ("legacy", 2.3), ("keras", 2.3)])
def test_memory_of_a_large_file(kind: str, times: float, tmp_path: Path) -> None:
    """At most the file, which the system may drop at will, and one copy where numbers lie askew in it."""
    tensors = {f"w{i}": torch.rand(500, 1000) for i in range(16)}  # 32 MB
    content = {"pickle": lambda: pickle.dumps({"model": arrays(tensors)}), "keras": lambda: keras(tensors)}.get(
        kind, lambda: saved(tensors, legacy=kind == "legacy")
    )
    path = tmp_path / "weights"
    path.write_bytes(content())
    size = path.stat().st_size
    found: dict[str, Tensor] = {}
    assert peak_memory(lambda: found.update(read_content(path).tensors)) < times * size
    assert equal(found, tensors)
