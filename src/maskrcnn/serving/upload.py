"""An upload, byte by byte: never more than the limit in memory, and its pixels are counted before they are decoded."""

from __future__ import annotations

import asyncio
import io
import warnings
from collections.abc import AsyncIterator

from PIL import Image

from maskrcnn.structures import Size

MIB = 2**20
# Pillow knows more, some of which call other programs or write temporary files to be decoded.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")


class Refused(Exception):
    """An answer other than yes.

    status: of HTTP. line: what is wrong, in one line. field: the parameter at fault, if it is one.
    """

    def __init__(self, status: int, line: str, field: str | None = None) -> None:
        super().__init__(line)
        self.status, self.line, self.field = status, line, field


async def read_body(
    chunks: AsyncIterator[bytes], told: str | None, limit: int, patience: float = 20.0, longest: float = 600.0
) -> bytes:
    """All bytes of a request's body.

    told: its Content-Length, which may be wrong or missing: what counts is what comes. limit: bytes.
    patience: seconds to wait for the next bytes. longest: seconds for all of them.
    Errors: `Refused` with 413 as soon as the limit is passed, 408 for a client that stalls.
    """
    large = Refused(413, f"the upload is too large; expected at most {limit / MIB:g} MB")
    if told is not None and told.isascii() and told.isdigit() and int(told) > limit:
        raise large
    body = bytearray()
    try:
        async with asyncio.timeout(longest):
            while True:
                async with asyncio.timeout(patience):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return bytes(body)
                if len(body) + len(chunk) > limit:
                    raise large
                body += chunk
    except TimeoutError:
        raise Refused(408, "the upload stalled; expected the whole picture") from None


def check_picture(data: bytes, max_pixels: int) -> Size:
    """(height, width) as stored, from the header alone.

    Errors: `Refused` with 415 for what is no picture, 413 for one of more than `max_pixels`.
    """
    large = f"expected at most {max_pixels / 1e6:g} million pixels"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise Refused(413, f"the picture is too large; {large}") from None
    except Exception:  # Pillow's plugins raise of all kinds on bytes that only begin like a picture
        raise Refused(415, f"the upload is no picture that can be read; expected {_known()}") from None
    with image:
        width, height = image.size
        if image.format not in FORMATS:
            raise Refused(415, f"the upload is a {image.format} file; expected {_known()}")
    if width * height > max_pixels:
        raise Refused(413, f"the picture is too large; found {width} x {height} pixels; {large}")
    return height, width


def _known() -> str:
    return "PNG, JPEG, TIFF, WebP, BMP, GIF, PPM, TGA, JPEG 2000 or AVIF"
