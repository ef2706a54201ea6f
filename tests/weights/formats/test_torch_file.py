"""Files of torch.save in both formats: equal to what torch.load makes of them, nothing run, and nothing believed."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.weights.formats.torch_file import read_legacy, read_zip
from maskrcnn.weights.formats.unpickle import parse

from .hostile import HARM, Calls, peak_memory

FORMATS = ["zip", "legacy"]
DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
]
NEWER_DTYPES = [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2]


def saved(content: Any, kind: str = "zip", protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=kind == "zip")
    return buffer.getvalue()


def read(content: bytes | bytearray) -> Any:
    data = memoryview(bytearray(content))
    if bytes(data[:4]) == b"PK\x03\x04":
        return read_zip(data)
    magic, end = parse(data)
    assert magic == 0x1950A86A20F9469CFC6C
    return read_legacy(data, end)


def same(found: Tensor, wanted: Tensor) -> bool:
    alike = (found.dtype, found.shape, found.stride()) == (wanted.dtype, wanted.shape, wanted.stride())
    return alike and torch.equal(bits(found), bits(wanted))


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype: torch.dtype, kind: str) -> None:
    torch.manual_seed(0)
    content = saved({"a": (torch.rand(3, 4) * 100).to(dtype), "b": torch.zeros(0, 5, dtype=dtype)}, kind)
    found, wanted = read(content), torch.load(io.BytesIO(content))
    assert same(found["a"], wanted["a"])
    assert same(found["b"], wanted["b"])


@pytest.mark.parametrize("dtype", NEWER_DTYPES, ids=str)
def test_dtypes_without_a_storage_of_their_own(dtype: torch.dtype) -> None:
    numbers = torch.arange(12).reshape(3, 4).to(dtype)
    assert same(read(saved({"a": numbers}))["a"], numbers)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_views_of_one_storage(kind: str, protocol: int) -> None:
    whole = torch.arange(60.0).reshape(6, 10)
    content = saved(
        {
            "whole": whole,
            "turned": whole.t(),
            "part": whole[2:5, ::3],
            "number": whole[3, 3],
            "expanded": torch.ones(1).expand(1000),
            "parameter": torch.nn.Parameter(whole),
            "gradient": torch.ones(3, requires_grad=True),
        },
        kind,
        protocol,
    )
    found, wanted = read(content), torch.load(io.BytesIO(content), weights_only=False)
    for name, tensor in wanted.items():
        assert same(found[name], tensor.detach()), name
        assert not found[name].requires_grad
    assert found["whole"].data_ptr() == found["turned"].data_ptr() == found["parameter"].data_ptr()
    found["whole"][3, 3] = -1
    assert found["number"] == -1  # tied, as they were


@pytest.mark.parametrize("kind", FORMATS)
def test_a_training_checkpoint(kind: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    optimiser.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [3, 6])
    content = saved(
        {
            "model": model.state_dict(),
            "optimizer": optimiser.state_dict(),
            "scheduler": schedule.state_dict(),
            "scaler": torch.amp.GradScaler("cpu").state_dict(),
            "random": torch.get_rng_state(),
            "iteration": 5,
        },
        kind,
    )
    found = read(content)
    wanted = torch.load(io.BytesIO(content), weights_only=False)
    assert all(same(found["model"][name], tensor) for name, tensor in wanted["model"].items())
    assert found["optimizer"]["param_groups"] == [
        {name: list(v) if isinstance(v, list) else v for name, v in group.items()}
        for group in wanted["optimizer"]["param_groups"]
    ]
    moments = wanted["optimizer"]["state"][0]["exp_avg"]
    assert same(found["optimizer"]["state"][0]["exp_avg"], moments)
    assert found["scheduler"]["milestones"] == {3: 1, 6: 1}
    assert found["scaler"] == wanted["scaler"]
    assert (found["random"].dtype, found["iteration"]) == (torch.uint8, 5)


def test_a_tensor_with_fields_of_its_own() -> None:
    tensor = torch.rand(3)
    tensor.note = "x"  # type: ignore[attr-defined]
    content = saved({"a": tensor, "b": torch.nn.Parameter(tensor)})
    assert b"_rebuild_from_type_v2" in content
    assert same(read(content)["a"], tensor)


def test_tensors_lie_where_their_bytes_are() -> None:
    """No copy is made: a number that is changed here is changed there, as the checksum shows."""
    data = memoryview(bytearray(saved({"a": torch.zeros(1000)})))
    read_zip(data)["a"][0] = 1.0
    with pytest.raises(InputError, match="data/0: is damaged; found bytes that do not give their checksum"):
        read_zip(data)


# --- harm -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("harm", HARM)
def test_nothing_is_run(harm: str, kind: str, tmp_path: Path) -> None:
    mark = tmp_path / "harm"
    content = saved({"model": {"w": torch.zeros(3)}, "epoch": HARM[harm][1](mark)}, kind)
    with pytest.raises(InputError, match="asks for ") as caught:
        read(content)
    name = HARM[harm][0].rpartition(".")[2]
    assert name in str(caught.value) or "import_module" in str(caught.value)
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore")
def test_the_harm_is_real(tmp_path: Path) -> None:
    for kind in FORMATS:
        mark = tmp_path / kind
        torch.load(io.BytesIO(saved({"model": HARM["system"][1](mark)}, kind)), weights_only=False)
        assert mark.exists()


@pytest.mark.parametrize("place", range(5))
def test_nothing_is_run_of_any_pickle_of_the_legacy_format(place: int, tmp_path: Path) -> None:
    """Magic number, version, facts of the machine, content, list of keys."""
    mark = tmp_path / "harm"
    parts: list[Any] = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"a": 1}, []]
    parts[place] = HARM["system"][1](mark)
    data = memoryview(b"".join(pickle.dumps(part, 2) for part in parts))
    with pytest.raises(InputError, match=r"asks for (posix|nt)\.system"):
        read_legacy(data, parse(data)[1])
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (lambda: torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (
            lambda: torch.quantize_per_tensor(torch.rand(4), 0.1, 0, torch.qint8),
            "torch.*(_rebuild_qtensor|QInt8Storage)",
        ),
        (lambda: torch.eye(3).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        (lambda: torch.empty(3, device="meta"), "lacks the bytes|_rebuild_meta|truncated"),
    ],
    ids=["module", "quantised", "sparse", "meta"],
)
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_plain_tensor_is_named(content: Callable[[], Any], name: str, kind: str) -> None:
    with pytest.raises(InputError, match=name):
        read(saved({"a": content()}, kind))


def test_a_conjugated_tensor_is_refused() -> None:
    with pytest.raises(InputError, match="stored conjugated or negated; found conj"):
        read(saved({"a": torch.ones(2, dtype=torch.complex64).conj()}))


# --- tensors that claim what is not there -----------------------------------------------------------------------------


class Reference:
    """What is pickled as a reference to a storage."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts


class Writer(pickle.Pickler):
    def persistent_id(self, item: Any) -> Any:
        return item.parts if isinstance(item, Reference) else None


def pickled(content: Any) -> bytes:
    buffer = io.BytesIO()
    Writer(buffer, 2).dump(content)
    return buffer.getvalue()


def archive(entries: Mapping[str, bytes], **options: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as stream:
        for name, content in entries.items():
            stream.writestr(name, content)
    return buffer.getvalue()


def storage(count: int = 4, key: str = "0", *part: Any) -> Reference:
    return Reference("storage", torch.FloatStorage, key, "cpu", count, *part)


def tensor(
    size: tuple[Any, ...],
    stride: tuple[Any, ...],
    offset: Any = 0,
    of: Any = None,
    make: Any = torch._utils._rebuild_tensor_v2,
) -> Calls:
    return Calls(make, storage() if of is None else of, offset, size, stride, False, OrderedDict())


FOUR = struct.pack("<4f", 1, 2, 3, 4)


def with_tensor(content: Any, data: bytes = FOUR, kind: str = "zip") -> bytes:
    if kind == "zip":
        return archive({"x/data.pkl": pickled({"a": content}), "x/data/0": data, "x/version": b"3\n"})
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})]
    return b"".join([*head, pickled({"a": content}), pickle.dumps(["0"], 2), struct.pack("<q", len(data) // 4), data])


@pytest.mark.parametrize("kind", FORMATS)
def test_a_tensor_by_hand(kind: str) -> None:
    """The files below are sound but for what each is about."""
    assert read(with_tensor(tensor((2, 2), (2, 1)), kind=kind))["a"].tolist() == [[1, 2], [3, 4]]
    assert read(with_tensor(tensor((2,), (2,), 1), kind=kind))["a"].tolist() == [2, 4]
    assert read(with_tensor(storage(), kind=kind))["a"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tensor((5,), (1,)), "tensor larger than its storage; found .5. with strides .1. from 0 in 16 bytes"),
        (tensor((2, 2), (3, 1)), "tensor larger than its storage"),
        (tensor((4,), (1,), 1), "tensor larger than its storage"),
        (tensor((2,), (2**40,)), "tensor larger than its storage"),
        (tensor((2**40,), (1,)), "tensor larger than its storage"),
        (tensor((2**61, 2**61), (1, 1)), "absurd size"),
        (tensor((2**31, 2**20), (0, 0)), "tensor of absurd size"),
        (tensor((2**63,), (0,)), "impossible shape"),
        (tensor((-1,), (1,)), "impossible shape"),
        (tensor((2, 2), (1,)), "impossible tensor"),
        (tensor((2,), (-1,), 3), "impossible tensor"),
        (tensor((2.0,), (1,)), "calls torch._utils._rebuild_tensor_v2 with arguments"),
        (tensor((True,), (1,)), "calls torch._utils._rebuild_tensor_v2 with arguments"),
        (tensor((1,), (1,), -1), "calls torch._utils._rebuild_tensor_v2 with arguments"),
        (tensor((1,), (1,), of="x"), "calls torch._utils._rebuild_tensor_v2 with arguments"),
        (tensor((1,), (1,), of=storage(2**60)), "truncated or damaged|impossible"),
        (tensor((1,), (1,), of=storage(5)), "storage 0: is truncated or damaged"),
        (tensor((1,), (1,), of=storage(-1)), "impossible storage"),
        (tensor((1,), (1,), of=storage(4, "7")), "lacks the bytes of a tensor|no list of storages"),
        (tensor((1,), (1,), of=storage(4, "../0")), "lacks the bytes of a tensor|no list of storages"),
        (tensor((1,), (1,), of=storage(4, "0", ("v", 2, 9))), "impossible storage"),
        (tensor((1,), (1,), of=storage(4, "0", 5)), "truncated or damaged"),
        (
            tensor((1,), (1,), of=Reference("module", torch.FloatStorage, "f.py", "code", 4)),
            "refers to what is no stor",
        ),
        (tensor((1,), (1,), of=Reference("storage", torch.float32, "0", "cpu")), "refers to what is no storage"),
        (
            tensor((1,), (1,), of=Reference("storage", OrderedDict, "0", "cpu", 4)),
            "storage of an unknown kind; found coll",
        ),
        (tensor((1,), (1,), of=Reference("storage", torch.QInt8Storage, "0", "cpu", 4)), "asks for torch.QInt8Storage"),
    ],
)
def test_tensors_that_do_not_fit(content: Any, message: str, kind: str) -> None:
    def work() -> None:
        with pytest.raises(InputError, match=message):
            read(with_tensor(content, kind=kind))

    assert peak_memory(work) < 50 << 20


@pytest.mark.parametrize("kind", FORMATS)
def test_a_bool_is_true_or_false(kind: str) -> None:
    """Also where the same bytes were read as numbers before."""
    parts = [Reference("storage", one, "0", "cpu", 4) for one in (torch.ByteStorage, torch.BoolStorage)]
    head, tail = (with_tensor([tensor((4,), (1,), of=part) for part in parts], bytes(4), kind), bytes([0, 1, 0, 2]))
    if kind == "legacy":
        head = head[:-12] + struct.pack("<q", 4) + bytes(4)
    assert [one.tolist() for one in read(head)["a"]] == [[0] * 4, [False] * 4]
    bad = with_tensor([tensor((4,), (1,), of=part) for part in parts], tail, kind)
    if kind == "legacy":
        bad = bad[:-12] + struct.pack("<q", 4) + tail
    with pytest.raises(InputError, match="holds a bool that is neither true nor false"):
        read(bad)


def test_parts_of_a_legacy_storage() -> None:
    """torch before 0.4 wrote views of a storage: what part is meant stands in the reference."""
    content = tensor((2,), (1,), of=storage(4, "0", ("v", 1, 3)))
    assert read(with_tensor(content, kind="legacy"))["a"].tolist() == [2, 3]


def test_a_legacy_file_whose_lengths_are_wrong() -> None:
    good = with_tensor(tensor((4,), (1,)), kind="legacy")
    place = len(good) - len(FOUR) - 8
    for content in (good[:place] + struct.pack("<q", 5) + FOUR, good[:-1], good[:place], good[: place - 2]):
        with pytest.raises(InputError, match="is truncated or damaged"):
            read(content)
    with pytest.raises(InputError, match="unknown version of torch.save"):
        read(good.replace(pickle.dumps(1001, 2), pickle.dumps(1002, 2)))


# --- archives ---------------------------------------------------------------------------------------------------------

GOOD = {"x/data.pkl": pickled({"a": tensor((4,), (1,))}), "x/data/0": FOUR}


def changed(change: Callable[[bytearray, int], None], name: bytes = b"x/data/0") -> bytes:
    """The archive with something changed in the directory entry of a name, whose first byte is handed over."""
    content = bytearray(archive(GOOD))
    entry = content.rfind(b"PK\x01\x02", 0, content.rfind(name))
    change(content, entry)
    return bytes(content)


def put(layout: str, offset: int, number: int) -> Callable[[bytearray, int], None]:
    return lambda content, entry: struct.pack_into(layout, content, entry + offset, number)


def twice(name: str) -> bytes:
    first = archive({**GOOD, "x/data/y": FOUR})
    return first.replace(b"x/data/y", name.encode())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            archive(GOOD, compression=zipfile.ZIP_DEFLATED),
            "x/data.pkl: is compressed; found .* expected stored as it is",
        ),
        (archive({**GOOD, "x/data/1": bytes(1 << 26)}, compression=zipfile.ZIP_DEFLATED), "is compressed"),
        (changed(put("<H", 10, 8)), "x/data/0: is compressed"),
        (changed(put("<I", 24, 2**31)), "x/data/0: is compressed; found 16 bytes for 2147483648"),
        (changed(lambda c, e: struct.pack_into("<2I", c, e + 20, 2**31, 2**31)), "claims more than it holds"),
        (changed(lambda c, e: struct.pack_into("<2I", c, e + 20, 12, 12)), "checksum"),
        (changed(put("<H", 8, 1)), "x/data/0: is encrypted"),
        (changed(put("<I", 16, 5)), "x/data/0: is damaged; found bytes that do not give their checksum"),
        (changed(put("<I", 42, 2**31)), "x/data/0: is truncated or damaged"),
        (changed(put("<I", 42, 0)), "x/data/0: is truncated or damaged"),
        (changed(put("<H", 28, 2000)), "is truncated or damaged"),
        (twice("x/data/0"), "x/data/0: is twice in the archive"),
        (archive({**GOOD, "../../evil": b"x"}), "../../evil: leads out of the archive"),
        (archive({**GOOD, "/etc/evil": b"x"}), "/etc/evil: leads out of the archive"),
        (archive({**GOOD, "C:\\evil": b"x"}), "leads out of the archive"),
        (archive({"x/data/0": FOUR}), "is a zip archive, but not of torch.save; found 1 entries: x/data/0"),
        (archive({**GOOD, "y/data.pkl": b"x"}), "is a zip archive, but not of torch.save"),
        (archive({"a/b/data.pkl": GOOD["x/data.pkl"]}), "is a zip archive, but not of torch.save"),
        (archive({"x/data.pkl": GOOD["x/data.pkl"]}), "lacks the bytes of a tensor; found x/data/0"),
        (archive({**GOOD, "x/byteorder": b"big"}), "holds no little-endian numbers; found b'big'"),
        (b"PK\x03\x04" + bytes(100), "a zip archive without its directory"),
    ],
)
def test_archives_that_lie(content: bytes, message: str) -> None:
    def work() -> None:
        with pytest.raises(InputError, match=message):
            read(content)

    assert peak_memory(work) < 100 << 20


def test_an_archive_that_is_sound() -> None:
    """What the ones above are made of; with a comment, and with checksums left out as torch may."""
    assert read(archive(GOOD))["a"].tolist() == [1, 2, 3, 4]
    content = bytearray(archive(GOOD))
    content[-2:] = struct.pack("<H", 5)
    assert read(content + b"note!")["a"].tolist() == [1, 2, 3, 4]
    assert read(changed(put("<I", 16, 0)))["a"].tolist() == [1, 2, 3, 4]


def test_entries_that_overlap_are_refused() -> None:
    """A bomb of entries that all name the same bytes."""
    data = bytes(1 << 20)
    content = archive({**GOOD, "x/data/1": data})
    entry = content.rfind(b"PK\x01\x02", 0, content.rfind(b"x/data/1"))
    end = content.rfind(b"PK\x05\x06")
    one = content[entry:end]
    copies = b"".join(one.replace(b"x/data/1", f"x/dat{i:03d}".encode()) for i in range(100, 300))
    size = end - content.find(b"PK\x01\x02") + len(copies)
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 203, 203, size, content.find(b"PK\x01\x02"), 0)
    with pytest.raises(InputError, match="truncated or damaged|claims more than it holds"):
        read(content[:end] + copies + tail)


def test_wide_numbers_of_zip64() -> None:
    """An entry that keeps its lengths and place in the field for files above 4 GB, and a directory of that kind."""
    content = archive({"x/data.pkl": GOOD["x/data.pkl"]})
    start = content.find(b"PK\x01\x02")
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 45, 0, 0, 0, 0, zlib.crc32(FOUR), 16, 16, 8, 0) + b"x/data/0" + FOUR
    extra = struct.pack("<2H3Q", 1, 24, 16, 16, start)
    entry = struct.pack(
        "<4s6H3I5H2I",
        b"PK\x01\x02",
        45,
        45,
        0,
        0,
        0,
        0,
        zlib.crc32(FOUR),
        *[2**32 - 1] * 2,
        8,
        28,
        0,
        0,
        0,
        0,
        2**32 - 1,
    )
    end = content.find(b"PK\x05\x06")
    directory = content[start:end] + entry + b"x/data/0" + extra
    place = start + len(local)
    wide = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 2, 2, len(directory), place)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, place + len(directory), 1)
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    whole = content[:start] + local + directory + wide + locator + tail
    assert zipfile.ZipFile(io.BytesIO(whole)).read("x/data/0") == FOUR
    assert read(whole)["a"].tolist() == [1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore")
def test_a_program_of_torchscript_is_refused() -> None:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    with pytest.raises(InputError, match="asks for __torch__|is compressed"):
        read(buffer.getvalue())
