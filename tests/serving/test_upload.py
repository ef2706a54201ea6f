"""Bytes are counted as they come, pixels before they are decoded."""

from __future__ import annotations

import asyncio
import io
import struct
import zlib
from collections.abc import AsyncIterator

import numpy as np
import pytest
from PIL import Image

from maskrcnn.serving.upload import MIB, Refused, check_picture, read_body

from .conftest import png


def read(chunks: AsyncIterator[bytes], told: str | None, limit: int, patience: float = 5.0) -> bytes:
    return asyncio.run(read_body(chunks, told, limit, patience))


async def of(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def test_bytes_come_together() -> None:
    assert read(of(b"ab", b"", b"cd"), "4", 4) == b"abcd"
    assert read(of(b"abcd"), None, 4) == b"abcd"
    assert read(of(), "0", 4) == b""


class Endless:
    """Chunks of 1 MB without an end; counts those that were asked for."""

    asked = 0

    def __aiter__(self) -> Endless:
        return self

    async def __anext__(self) -> bytes:
        self.asked += 1
        return bytes(MIB)


@pytest.mark.parametrize(
    ("told", "asked"), [(None, 4), ("17", 4), ("nonsense", 4), ("-5", 4), ("²", 4), ("4194304", 0)]
)
def test_reading_stops_at_the_limit_whatever_was_told(told: str | None, asked: int) -> None:
    chunks = Endless()
    with pytest.raises(Refused, match="too large; expected at most 3 MB") as caught:
        read(chunks, told, 3 * MIB)
    assert caught.value.status == 413 and chunks.asked == asked


def test_a_client_that_stalls_is_not_waited_for() -> None:
    async def stalling() -> AsyncIterator[bytes]:
        yield b"ab"
        await asyncio.sleep(60)

    with pytest.raises(Refused, match="stalled") as caught:
        read(stalling(), "4", 10, patience=0.05)
    assert caught.value.status == 408


def test_a_client_that_drips_is_not_waited_for() -> None:
    async def dripping() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0.01)
            yield b"a"

    with pytest.raises(Refused, match="stalled"):
        asyncio.run(read_body(dripping(), None, 10**6, patience=5, longest=0.1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "TGA"])
def test_pictures_of_every_kind(kind: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(stream, format=kind)
    assert check_picture(stream.getvalue(), 1200) == (30, 40)
    with pytest.raises(Refused, match="40 x 30 pixels; expected at most 0.001199 million") as caught:
        check_picture(stream.getvalue(), 1199)
    assert caught.value.status == 413


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is very large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(12_001, 10_000), (20_000, 20_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_known_by_its_header(size: tuple[int, int]) -> None:
    with pytest.raises(Refused, match="the picture is too large; .*expected at most 120 million pixels") as caught:
        check_picture(bomb(*size), 120_000_000)
    assert caught.value.status == 413


def test_a_large_picture_within_the_limit_passes() -> None:
    assert check_picture(bomb(12_000, 9_000), 120_000_000) == (9_000, 12_000)


def eps() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, format="EPS")
    return stream.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.4", b"PK\x03\x04", bytes(1000), png()[:20]],
)
def test_what_is_no_picture(data: bytes) -> None:
    with pytest.raises(Refused, match="is no picture that can be read; expected PNG, JPEG") as caught:
        check_picture(data, 10**6)
    assert caught.value.status == 415


def test_a_kind_that_another_program_would_decode_is_refused() -> None:
    with pytest.raises(Refused, match="the upload is a EPS file; expected PNG") as caught:
        check_picture(eps(), 10**6)
    assert caught.value.status == 415
