"""The hub: checkpoints of the zoo, downloaded once into a cache folder and verified by what their publishers tell.

    CACHE/weights/NAME/FILE         the file as published
    CACHE/weights/NAME/FILE.json    its record: url, licence, bytes, sha256, and what it was verified by
    CACHE/weights/NAME/config.yaml  the settings that the zoo knows and the weights cannot tell, if there are any

CACHE is the folder that the variable MASKRCNN_CACHE names, else the platform's own. A file without a record was put
there by hand: it is verified and recorded when it is first asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from maskrcnn.errors import InputError
from maskrcnn.ops.files import whole_file
from maskrcnn.weights.download import Patience, Progress, download, partial_path
from maskrcnn.weights.lock import one_at_a_time
from maskrcnn.weights.zoo import Entry, find, zoo

CACHE_VARIABLE = "MASKRCNN_CACHE"
SETTINGS_FILE = "config.yaml"


def cache_folder() -> Path:
    """Where downloads are kept: the folder that MASKRCNN_CACHE names, else the platform's own.

    ~/.cache/maskrcnn, in which XDG_CACHE_HOME stands for ~/.cache; ~/Library/Caches/maskrcnn on macOS;
    %LOCALAPPDATA%\\maskrcnn\\Cache on Windows.
    """
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser().absolute()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "maskrcnn" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "maskrcnn"
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))  # to be ignored unless absolute, as its specification says
    return (base if base.is_absolute() else Path.home() / ".cache") / "maskrcnn"


def is_known(name: str) -> bool:
    """Whether the zoo has an entry of that name."""
    return name in zoo()


def place(entry: Entry, cache: Path | None = None) -> Path:
    """Where the entry's file lies once it is there."""
    return (cache or cache_folder()) / "weights" / entry.name / entry.file


def is_here(entry: Entry, cache: Path | None = None) -> bool:
    """Whether the entry's file is in the cache, whole and verified."""
    return _is_recorded(place(entry, cache))


def get(
    what: str | Entry,
    *,
    cache: Path | None = None,
    mirror: str | None = None,
    progress: Progress | None = None,
    patience: Patience = Patience(),  # noqa: B008 (frozen)
) -> Path:
    """The file of a zoo entry, from the cache or downloaded into it.

    Args:
        what: a name of the zoo, or an entry. cache: in place of `cache_folder()`.
        mirror: a url that is put before the path of the file's own url, in place of its server ("http://localhost:8000").
        progress: called with (bytes so far, bytes of the whole or None).

    Errors: `InputError`, one line, for an unknown name, a file that cannot be had (no network among the reasons; it
    tells where one fetched by other means can be put) or is not what was published, a cache that cannot be written.
    """
    entry = find(what) if isinstance(what, str) else what
    path = place(entry, cache)
    if _is_recorded(path):
        return path
    url = entry.url if mirror is None else mirror.rstrip("/") + urlsplit(entry.url).path
    with _in_cache(path):
        with one_at_a_time(path.with_name(f".{path.name}.lock"), waiting=_watch(path, progress)):
            if path.is_file():  # by hand, or somebody else was quicker
                require_published(entry, path, path)
            else:
                check = partial(require_published, entry, named=url)
                download(url, path, check=check, progress=progress, patience=patience)
            _record(entry, path, url)
    return path


def resolve(name: str) -> Path:
    """`get` for code that was handed a name: where the file has to be downloaded, stderr says so, and how far it is."""
    entry = find(name)
    if is_here(entry):
        return place(entry)
    print(f"downloading {name} ({entry.framework}; licence: {entry.licence}) to {place(entry)}", file=sys.stderr)
    is_watched = sys.stderr.isatty()
    path = get(entry, progress=_print_progress if is_watched else None)
    if is_watched:
        print(file=sys.stderr)
    return path


def _print_progress(done: int, total: int | None) -> None:
    of = f" of {total / 1e6:.0f}" if total else ""
    print(f"\r{done / 1e6:.0f}{of} MB", end="", file=sys.stderr, flush=True)


def record(path: Path) -> dict[str, Any]:
    """What was noted beside a file of the cache when it came; empty where nothing was."""
    try:
        noted = json.loads(_record_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def require_published(entry: Entry, path: Path, named: str | Path) -> None:
    """Errors: `InputError` unless the file at `path`, called `named`, has the size and the hash known of the entry."""
    size = path.stat().st_size
    if entry.size is not None and abs(size - entry.size) > entry.size_slack:
        about = f" give or take {entry.size_slack}" if entry.size_slack else ""
        expected = f"{entry.size}{about}"
        raise InputError("not of the published size", file=named, field="bytes", found=size, expected=expected)
    if entry.digest is not None:
        found = _digest(path, entry.algorithm)
        if not found.startswith(entry.digest):
            expected = f"{entry.digest}... ({entry.told_by})"
            raise InputError(
                "not the published file", file=named, field=entry.algorithm, found=found, expected=expected
            )


def verified_by(entry: Entry) -> list[str]:
    """What `require_published` goes by, in words; empty where nothing is known of the entry."""
    words = []
    if entry.size is not None:
        words.append(f"size {entry.size} bytes" if not entry.size_slack else f"size {entry.size / 2**20:.3f} MiB")
    if entry.digest is not None:
        whole = len(entry.digest) == hashlib.new(entry.algorithm, usedforsecurity=False).digest_size * 2
        words.append(f"{entry.algorithm} {entry.digest}{'' if whole else '...'} ({entry.told_by})")
    return words


def _record(entry: Entry, path: Path, url: str) -> None:
    if entry.settings:
        _write_json(path.with_name(SETTINGS_FILE), entry.settings)  # JSON is YAML too
    facts = {
        "name": entry.name,
        "url": url,
        "licence": entry.licence,
        "source": entry.page,
        "bytes": path.stat().st_size,
        "sha256": _digest(path, "sha256"),
        "verified_by": verified_by(entry),
    }
    _write_json(_record_path(path), facts)


def _is_recorded(path: Path) -> bool:
    return path.is_file() and record(path).get("bytes") == path.stat().st_size


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    text = json.dumps(values, indent=1, ensure_ascii=False)
    text = re.sub(r"\b(\d+)e-", r"\1.0e-", text) if path.suffix == ".yaml" else text  # to YAML 1.1, 1e-05 is a word
    with whole_file(path) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _watch(path: Path, progress: Progress | None) -> Callable[[], None]:
    """Shows how far somebody else is with the file."""

    def watch() -> None:
        part = partial_path(path)
        if progress is not None and part.is_file():
            progress(part.stat().st_size, None)

    return watch


@contextmanager
def _in_cache(path: Path) -> Iterator[None]:
    """The folder of `path` is made; what the disk refuses becomes one line."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        expected = f"a folder that can be written to; {CACHE_VARIABLE} names another"
        found = error.strerror or str(error)
        raise InputError("cannot be written", file=error.filename or path, found=found, expected=expected) from error
