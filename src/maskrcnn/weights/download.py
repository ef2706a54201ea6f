"""One file over HTTP: resumed where it broke off, checked, and under its name whole or not at all.

Beside `NAME` lie, while it is not done, `.NAME.partial` with the bytes so far and `.NAME.partial.json`, which tells
what they are a part of: the server's ETag or Last-Modified (its validator) and the length of the whole. A later call,
in this process or another, asks for the rest with Range and If-Range (RFC 9110, 13.1.5 and 14.2), so that parts of two
versions of a file are never put together; a server that knows neither sends it all again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from maskrcnn import __version__
from maskrcnn.errors import InputError
from maskrcnn.ops.files import whole_file

Progress = Callable[[int, int | None], None]  # (bytes so far, bytes of the whole if known)

CHUNK = 2**18  # bytes between two calls of `progress`
PASSING = (408, 425, 429)  # statuses that another try may cure, besides 500 and up


@dataclass(frozen=True)
class Patience:
    """How long a server may fail.

    tries: in a row that bring no further byte. wait: seconds after the first of them; twice as long after each other.
    timeout: seconds without a byte after which a connection counts as broken.
    """

    tries: int = 5
    wait: float = 1.0
    timeout: float = 30.0
    sleep: Callable[[float], None] = time.sleep


class _Broken(Exception):
    """This try failed; str() says why. passing: whether another may succeed."""

    def __init__(self, why: object, *, passing: bool = True) -> None:
        super().__init__(" ".join(str(why).split()))
        self.passing = passing


class _Offline(_Broken):
    """The server's name cannot be resolved: most likely there is no network."""


def download(
    url: str,
    path: Path,
    *,
    check: Callable[[Path], None] = lambda path: None,
    progress: Progress | None = None,
    patience: Patience = Patience(),  # noqa: B008 (frozen)
) -> None:
    """Bring the file at `url` to `path`, in a folder that is there.

    Nobody else may be at work on `path` (`lock.one_at_a_time`).

    Args:
        check: called with the whole file before it gets its name; raises `InputError` for one that must not.

    Errors: `InputError` where it cannot be had, in one line with url and reason: no network, a status, a redirect to
    anything but http and https, no room. `OSError` where it cannot be written. What came so far is kept for a later
    call; a file that `check` refuses is deleted.
    """
    partial = _Partial(path)
    for is_last in (False, True):
        resumed = _receive(url, partial, progress or (lambda done, total: None), patience)
        try:
            check(partial.path)
            break
        except InputError:
            partial.delete()
            if is_last or not resumed:
                raise  # else once more from the start: these may have been parts of two files
    with partial.path.open("rb+") as stream:
        os.fsync(stream.fileno())  # the bytes before the name
    os.replace(partial.path, path)
    partial.delete()


class _Answer(NamedTuple):
    """What a server answers, whatever its status."""

    status: int
    reason: str
    headers: Message
    body: IO[bytes]


def partial_path(path: Path) -> Path:
    """Where the bytes of an unfinished file lie."""
    return path.with_name(f".{path.name}.partial")


class _Partial:
    """The bytes of a file so far, and what is known about the whole."""

    def __init__(self, path: Path) -> None:
        self.path = partial_path(path)
        self.note = path.with_name(f".{path.name}.partial.json")
        self.target = path

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def origin(self) -> tuple[str, str | None, int | None]:
        """Url, validator and length of the whole, as far as they were noted."""
        try:
            noted = json.loads(self.note.read_text(encoding="utf-8"))
            return str(noted["url"]), noted["validator"], noted["total"]
        except (OSError, ValueError, LookupError, TypeError):
            return "", None, None

    def begin(self, url: str, validator: str | None, total: int | None) -> None:
        """An empty file first, then the note: old bytes never stand beside the note of another file."""
        self.path.open("wb").close()
        with whole_file(self.note) as unfinished:
            unfinished.write_text(json.dumps({"url": url, "validator": validator, "total": total}), encoding="utf-8")

    def delete(self) -> None:
        for path in (self.path, self.note):
            path.unlink(missing_ok=True)


def _receive(url: str, partial: _Partial, progress: Progress, patience: Patience) -> bool:
    """Try until all bytes are there; whether some of them came in an earlier try."""
    failures, before = 0, partial.size
    most = before
    while True:
        try:
            return _try(url, partial, progress, patience.timeout)
        except _Broken as broken:
            failures = 1 if partial.size > most else failures + 1
            most = max(most, partial.size)
            is_offline = isinstance(broken, _Offline) and most == before
            if is_offline or not broken.passing or failures >= patience.tries:
                expected = f"the file; one fetched by other means can be put at {partial.target}"
                raise InputError("cannot be downloaded", file=url, found=str(broken), expected=expected) from broken
        patience.sleep(patience.wait * 2 ** (failures - 1))


def _try(url: str, partial: _Partial, progress: Progress, timeout: float) -> bool:
    """One connection, from where the last one broke off or from the start; whether it was not from the start."""
    start, (origin, validator, total) = partial.size, partial.origin()
    if start and start == total and origin == url:
        return True  # stopped between the last byte and the check
    headers = {"User-Agent": f"maskrcnn/{__version__}", "Accept-Encoding": "identity"}
    if start and validator and origin == url:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    answer = _ask(url, headers, timeout)
    with closing(answer.body):
        if answer.status < 300 and answer.headers.get_content_type() == "text/html":
            raise _Broken("a web page in its place", passing=False)  # of a gateway that wants a login
        if answer.status == 206:
            if _range_start(answer.headers) == start and _validator(answer.headers) == validator:
                _save(answer.body, partial, start, total, progress)
                return True
        elif answer.status < 300:
            total = _length(answer.headers)
            partial.begin(url, _validator(answer.headers), total)
            _save(answer.body, partial, 0, total, progress)
            return False
        elif answer.status != 416:  # 416: the file ends before this range
            passing = answer.status in PASSING or answer.status >= 500
            raise _Broken(f"{answer.status} {answer.reason}", passing=passing)
    partial.delete()  # what the server has is not what these bytes are a part of
    return _try(url, partial, progress, timeout)


def _save(body: IO[bytes], partial: _Partial, start: int, total: int | None, progress: Progress) -> None:
    _require_room(partial.path, (total or 0) - start)
    done = start
    progress(done, total)
    with partial.path.open("ab") as stream:
        for chunk in _chunks(body):
            stream.write(chunk)
            done += len(chunk)
            progress(done, total)
    if total is not None and done != total:
        raise _Broken(f"the connection broke off after {done} of {total} bytes")


def _chunks(body: IO[bytes]) -> Iterator[bytes]:
    try:
        while chunk := body.read(CHUNK):
            yield chunk
    except (HTTPException, OSError) as error:
        raise _Broken(error or type(error).__name__) from error


def _require_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise InputError("no room for the file", file=path.parent, found=f"{free} bytes", expected=f"{needed} bytes")


def _validator(headers: Message) -> str | None:
    """What tells one version of the file from another, if the server says it; a weak ETag does not tell bytes apart."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified")


def _length(headers: Message) -> int | None:
    length = headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _range_start(headers: Message) -> int | None:
    found = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(found[1]) if found else None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """To http and https alone, and never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        allowed = ("https",) if urlsplit(req.full_url).scheme == "https" else ("http", "https")
        if urlsplit(newurl).scheme not in allowed:
            raise HTTPError(req.full_url, code, f"a redirect to {newurl}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _ask(url: str, headers: dict[str, str], timeout: float) -> _Answer:
    if urlsplit(url).scheme not in ("http", "https"):
        raise _Broken("an address of another kind than http and https", passing=False)
    opener = urllib.request.build_opener(_Redirects)
    try:
        response: HTTPResponse = opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)
        return _Answer(response.status, response.reason, response.headers, response)
    except HTTPError as error:
        return _Answer(error.code, error.reason, error.headers, error)
    except URLError as error:
        if isinstance(error.reason, socket.gaierror):
            raise _Offline(f"{error.reason.strerror}: no network?") from error
        raise _Broken(error.reason, passing=not isinstance(error.reason, ssl.SSLCertVerificationError)) from error
    except (HTTPException, OSError) as error:
        raise _Broken(error or type(error).__name__) from error
