"""Bytes as tensors: where they stand if they can, exactly as many as the shape asks for, and never written back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from maskrcnn.errors import InputError
from maskrcnn.weights.formats.mapped import ALIGNMENT, array, flat, map_file, num_bytes, numbers, require_bools


def test_a_file_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    wanted = np.arange(100, dtype="f4")
    path.write_bytes(wanted.tobytes())
    data = map_file(path)
    found = array(flat(data), torch.float32, (10, 10))
    np.testing.assert_array_equal(found.numpy(), wanted.reshape(10, 10))
    found.zero_()
    assert not any(data)  # the same memory
    assert path.read_bytes() == wanted.tobytes()
    (tmp_path / "empty").touch()
    assert len(map_file(tmp_path / "empty")) == 0


def test_bytes_that_lie_askew_are_copied() -> None:
    content = bytearray(8 * ALIGNMENT)
    shift = -torch.frombuffer(content, dtype=torch.uint8).data_ptr() % ALIGNMENT
    view = memoryview(content)[shift:]
    for start in range(ALIGNMENT):
        found = flat(view[start : start + 16])
        assert found.data_ptr() % ALIGNMENT == 0
        found[0] = 9
        assert (view[start] == 9) == (start == 0)
        content[:] = bytes(len(content))


def test_bytes_that_cannot_be_written_are_copied() -> None:
    found = flat(memoryview(b"12345678"))
    found[0] = 0
    assert bytes(found.numpy()) == b"\x002345678"
    assert flat(memoryview(b"")).shape == (0,)


@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3, 4)])
def test_as_many_bytes_as_the_shape_asks_for(shape: tuple[int, ...]) -> None:
    wanted = torch.rand(shape, dtype=torch.float64)
    content = wanted.numpy().tobytes()
    assert num_bytes(shape, torch.float64) == len(content)
    assert torch.equal(array(flat(memoryview(content)), torch.float64, shape), wanted)
    with pytest.raises(InputError, match="array and its bytes do not agree"):
        array(flat(memoryview(content + b"x")), torch.float64, shape)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((-1,), "impossible shape"),
        ((2**62,), "impossible shape"),
        ((1,) * 33, "impossible shape"),
        ((True,), "impossible shape"),
        ((2**40, 2**40), "absurd size"),
        ((0, 2**40, 2**40), "absurd size"),
    ],
)
def test_shapes_that_no_array_has(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        num_bytes(shape, torch.float32)


def test_bytes_left_over() -> None:
    with pytest.raises(InputError, match="has bytes left over; found 7 bytes of torch.float32"):
        numbers(flat(memoryview(b"1234567")), torch.float32)
    assert require_bools(flat(memoryview(b"\x00\x01"))).tolist() == [0, 1]
    with pytest.raises(InputError, match="holds a bool that is neither true nor false"):
        require_bools(flat(memoryview(b"\x00\x01\x02")))
