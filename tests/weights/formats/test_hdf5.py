"""Keras weights in HDF5: equal to what h5py reads, and no other file is ever looked at."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskrcnn.errors import InputError
from maskrcnn.weights.formats.hdf5 import read_hdf5

from .hostile import peak_memory

h5py = pytest.importorskip("h5py")

Fill = Callable[[Any], object]


def written(fill: Fill, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", **options) as file:
        fill(file)
    return buffer.getvalue()


def read(content: bytes | bytearray) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return read_hdf5(memoryview(bytearray(content)))


def keras(file: Any, layers: int = 3) -> None:
    """As Keras 2 writes a model: a group for each layer, below it a group of the same name, arrays in that."""
    names = [f"layer{i}" for i in range(layers)]
    file.attrs["layer_names"] = [name.encode() for name in names]
    file.attrs["backend"] = "tensorflow"
    file.attrs["keras_version"] = b"2.1.6"
    random = np.random.default_rng(0)
    for i, name in enumerate(names):
        group = file.create_group(name)
        weights = [f"{name}/kernel:0", f"{name}/bias:0"] if i % 3 else []  # layers without weights are there too
        group.attrs["weight_names"] = [weight.encode() for weight in weights]
        for weight in weights:
            group.create_dataset(weight, data=random.random((3, 3, 2, i)[: 4 if "kernel" in weight else 1]), dtype="f4")
    nested = file.create_group("rpn_model")
    nested.attrs["weight_names"] = [b"rpn_conv_shared/kernel:0", b"rpn_class_raw/bias:0"]
    nested.create_dataset("rpn_conv_shared/kernel:0", data=random.random((3, 3, 4, 5)), dtype="f4")
    nested.create_dataset("rpn_class_raw/bias:0", data=random.random(6), dtype="f4")


def arrays(content: bytes, below: str = "/") -> dict[str, np.ndarray]:
    """What h5py reads of all datasets."""
    found: dict[str, np.ndarray] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(io.BytesIO(content)) as file:
        file[below].visititems(visit)
    return found


@pytest.mark.parametrize("layers", [0, 3, 7, 300])
def test_agrees_with_h5py(layers: int) -> None:
    content = written(lambda file: keras(file, layers))
    assert (b"TREE\x00\x01" in content) == (layers == 300)  # names in a tree of two levels
    found, extras = read(content)
    wanted = arrays(content)
    assert found.keys() == wanted.keys()
    assert "rpn_model/rpn_conv_shared/kernel:0" in found
    for name, numbers in wanted.items():
        assert found[name].numpy().dtype == numbers.dtype
        np.testing.assert_array_equal(found[name].numpy(), numbers)
    assert extras == {
        "layer_names": [f"layer{i}" for i in range(layers)],
        "backend": "tensorflow",
        "keras_version": "2.1.6",
    }


def test_a_whole_model() -> None:
    """`model.save` keeps weights below "model_weights", beside the optimiser's and the model as JSON."""

    def fill(file: Any) -> None:
        keras(file.create_group("model_weights"))
        file.create_group("optimizer_weights").create_dataset("m", data=np.zeros(3))
        file.attrs["model_config"] = '{"class_name": "Model"}' * 100
        file.attrs["keras_version"] = np.bytes_(b"2.2.4")

    content = written(fill)
    found, extras = read(content)
    assert found.keys() == arrays(content, "model_weights").keys()
    assert extras["model_config"] == '{"class_name": "Model"}' * 100
    assert extras["layer_names"] == ["layer0", "layer1", "layer2"]


@pytest.mark.parametrize("dtype", "i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8".split())
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0, 2)])
def test_every_dtype_and_shape(dtype: str, shape: tuple[int, ...]) -> None:
    numbers = (np.random.default_rng(0).random(shape) * 100).astype(dtype)
    found, _ = read(written(lambda file: file.create_dataset("a", data=numbers)))
    assert found["a"].numpy().dtype == numbers.dtype
    np.testing.assert_array_equal(found["a"].numpy(), numbers)


def test_compact_arrays_and_shared_ones() -> None:
    def fill(file: Any) -> None:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((3,))
        h5py.h5d.create(file.id, b"small", h5py.h5t.IEEE_F32LE, space, properties).write(
            h5py.h5s.ALL, h5py.h5s.ALL, np.arange(3, dtype="f4")
        )
        file["a"] = np.arange(5.0)
        file["b"] = file["a"]  # a second name

    found, _ = read(written(fill))
    assert found["small"].tolist() == [0, 1, 2]
    assert found["a"].data_ptr() == found["b"].data_ptr()


def test_attributes_of_every_kind() -> None:
    def fill(file: Any) -> None:
        file.attrs["text"] = "é"
        file.attrs["fixed"] = np.bytes_(b"abc")
        file.attrs["texts"] = ["a", "bc", ""]
        file.attrs["fixed texts"] = np.array([b"a", b"bc"])
        file.attrs["number"] = np.float32(1.5)
        file.attrs["numbers"] = np.arange(3, dtype="i8")
        file.attrs["table"] = np.zeros((2, 2))
        file.attrs["nothing"] = h5py.Empty("f4")
        file.attrs["record"] = np.zeros(1, dtype=[("a", "f4")])
        for i in range(20):  # the header of an object goes on elsewhere
            file.attrs[f"more{i}"] = i

    _, extras = read(written(fill))
    assert {name: value for name, value in extras.items() if not name.startswith("more")} == {
        "text": "é",
        "fixed": "abc",
        "texts": ["a", "bc", ""],
        "fixed texts": ["a", "bc"],
        "number": 1.5,
        "numbers": [0, 1, 2],
    }
    assert [extras[f"more{i}"] for i in range(20)] == list(range(20))


# --- what is refused --------------------------------------------------------------------------------------------------


def external_storage(file: Any, other: Path) -> None:
    file.create_dataset("conv1/kernel:0", shape=(4,), dtype="f4", external=[(str(other), 0, 16)])


def virtual(file: Any, other: Path) -> None:
    layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
    layout[:] = h5py.VirtualSource(str(other), "secret", shape=(4,))
    file.create_virtual_dataset("conv1", layout)


def put(name: str, item: Any) -> Fill:
    return lambda file: file.__setitem__(name, item)


def external_link(name: str) -> Callable[[Any, Path], object]:
    return lambda file, other: put(name, h5py.ExternalLink(str(other), "secret"))(file)


def two_links(file: Any, other: Path) -> None:
    """A soft link in a group whose links are of the new kind, since external ones are."""
    file["b"] = h5py.ExternalLink(str(other), "secret")
    del file["b"]
    file["c"] = h5py.SoftLink("/z")


def many_links(file: Any, other: Path) -> None:
    for i in range(20):
        file[f"group{i}/a"] = np.zeros(1)
    file["b"] = h5py.ExternalLink(str(other), "secret")


ELSEWHERE: dict[str, tuple[Callable[[Any, Path], object], str]] = {
    "external link": (
        external_link("a/kernel:0"),
        "^a/kernel:0: is an external link; found other.h5; expected arrays",
    ),
    "external link in the first group": (external_link("x"), "^x: is an external link; found other.h5"),
    "external link among many": (many_links, "^/: is HDF5 of a newer layout than Keras writes; found dense links"),
    "soft link": (lambda file, other: put("a", h5py.SoftLink("/b/c"))(file), "^a: is a soft link; found /b/c"),
    "soft link of the new kind": (two_links, "^c: is a soft link; found /z"),
    "external storage": (external_storage, "^conv1/kernel:0: is stored in another file; found other.h5"),
    "virtual": (virtual, "^conv1: is a virtual dataset; expected arrays within the file"),
}


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_nothing_is_read_from_elsewhere(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    other = Path("other.h5")  # a short name: errors shorten what they found
    with h5py.File(other, "w") as file:
        file["secret"] = np.arange(4, dtype="f4")
    fill, message = ELSEWHERE[kind]
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        file["real"] = np.zeros(3)
        fill(file, other)
    with pytest.raises(InputError, match=message):
        read(path.read_bytes())


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (
            lambda file: file.create_dataset("a/b", data=np.zeros(1000), compression="gzip"),
            "a/b: is in chunks or compr",
        ),
        (lambda file: file.create_dataset("a", data=np.zeros(1000), chunks=(10,)), "a: is in chunks or compressed"),
        (lambda file: file.create_dataset("a", data=np.zeros(4), fletcher32=True), "a: is in chunks or compressed"),
        (put("a", np.arange(3, dtype=">f4")), "a: is no array of numbers; found big-endian numbers"),
        (put("a", np.arange(3, dtype=">i2")), "a: is no array of numbers; found big-endian numbers"),
        (put("a", "text"), "a: is no array of numbers; found texts"),
        (put("a", np.array([b"x", b"y"])), "a: is no array of numbers; found texts"),
        (put("a", np.zeros(2, dtype=[("x", "f4")])), "a: is no array of numbers; found records"),
        (put("a", np.array([True])), "a: is no array of numbers; found an enumeration"),
        (put("a", np.array([1j])), "a: is no array of numbers; found records"),
        (put("a", np.zeros(2, dtype=np.longdouble)), "a: is no array of numbers; found floats of 16 bytes"),
        (put("a", h5py.Empty("f4")), "a: is no array of numbers; found floats of 4 bytes"),
        (put("a", np.dtype("f4")), "a: is neither group nor array"),
        (
            lambda file: file.create_dataset("a", shape=(4, 5), dtype="f4"),
            "a: holds no numbers; found an array that was",
        ),
        (
            lambda file: file.create_dataset("a", shape=(10**6, 10**6), dtype="f4"),
            "a: is of absurd size; found .1000000",
        ),
        (lambda file: file.create_dataset("a", shape=(2**40,) * 3, dtype="f4"), "absurd size"),
    ],
)
def test_arrays_that_are_none(fill: Fill, message: str) -> None:
    def work() -> None:
        with pytest.raises(InputError, match=message):
            read(content)

    if "16 bytes" in message and np.dtype(np.longdouble).itemsize != 16:
        pytest.skip("a long double is of another size here")
    content = written(fill)
    assert peak_memory(work) < 50 << 20


@pytest.mark.parametrize("options", [{"libver": "latest"}, {"libver": "v108"}, {"track_order": True}])
def test_layouts_that_keras_does_not_write(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="is HDF5 of a newer layout than Keras writes"):
        read(written(keras, **options))


def test_texts_of_no_bytes_without_end() -> None:
    """A list of 2**60 texts of length 0 is passed over at once."""
    content = bytearray(written(lambda file: file.attrs.__setitem__("texts", np.array([b"abc"] * 1234))))
    assert read(content)[1] == {"texts": ["abc"] * 1234}
    (kind,) = [at for at in positions(content, struct.pack("<I", 3)) if content[at - 4] == 0x13]  # texts of 3 bytes
    (side,) = positions(content, struct.pack("<2Q", 1234, 1234))
    struct.pack_into("<I", content, kind, 0)
    struct.pack_into("<2Q", content, side, 2**60, 2**60)
    assert read(content)[1] == {}


def test_texts_that_stand_in_one_place_do_not_add_up() -> None:
    """A list of a thousand texts that all point to the longest."""
    content = bytearray(written(lambda file: file.attrs.__setitem__("texts", ["x" * 20_000] + ["y"] * 1000)))
    assert len(read(content)[1]["texts"]) == 1001
    first = struct.pack("<I", 20_000)
    place = next(at for at in positions(content, first) if content[at + 16 : at + 20] == struct.pack("<I", 1))
    content[place + 16 : place + 16 * 1001] = content[place : place + 16] * 1000
    with pytest.raises(InputError, match="texts longer than the file"):
        read(content)


def test_a_group_within_itself() -> None:
    def fill(file: Any) -> None:
        group = file.create_group("a")
        group["b"] = np.zeros(3)
        group["again"] = group

    with pytest.raises(InputError, match="is part of itself"):
        read(written(fill))
    with pytest.raises(InputError, match="is nested too deeply"):
        read(written(lambda file: file.create_dataset("/".join("a" * 40), data=np.zeros(1))))


def test_arrays_that_share_their_bytes_do_not_add_up() -> None:
    """Two arrays of one place, as no library writes them: together larger than the file."""
    content = bytearray(written(lambda file: [put(name, np.zeros(1000))(file) for name in "ab"]))
    assert read(content)[0].keys() == {"a", "b"}
    for part in (struct.pack("<2Q", 1000, 1000), struct.pack("<Q", 8000)):  # sides and their limits, and bytes
        places = list(positions(content, part))
        assert len(places) == 2
        for place in places:
            content[place : place + len(part)] = b"".join(
                struct.pack("<Q", number * 3 // 2) for (number,) in struct.iter_unpack("<Q", part)
            )
    with pytest.raises(InputError, match="is of absurd size"):
        read(content)


def positions(content: bytes | bytearray, part: bytes) -> Iterator[int]:
    place = content.find(part)
    while place >= 0:
        yield place
        place = content.find(part, place + 1)


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> bytes:
    return written(keras)


def test_files_cut_short(small: bytes) -> None:
    for size in np.linspace(8, len(small) - 1, 50).astype(int):
        with pytest.raises(InputError):
            read(small[:size])


@pytest.mark.parametrize("seed", range(4))
def test_files_with_a_wrong_byte(small: bytes, seed: int) -> None:
    """HDF5 keeps no checksums here: arrays of the shapes that were read, or an error, and no memory for either."""
    random = np.random.default_rng(seed)

    def work() -> None:
        for _ in range(100):
            content = bytearray(small)
            content[random.integers(len(content))] = random.integers(256)
            try:
                found, _ = read(content)
            except InputError:
                continue
            assert sum(tensor.nbytes for tensor in found.values()) <= len(small)

    assert peak_memory(work) < 50 << 20
