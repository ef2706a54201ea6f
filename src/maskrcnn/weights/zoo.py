"""The zoo: public checkpoints by name, with published scores, licence, url and what is known to verify a file by.

The facts lie in `zoo.json`, each as its publisher states it:

    Detectron2   MODEL_ZOO.md, model_zoo.py, defaults.py, the configs: AP, url, first 6 hex digits of md5, settings
    torchvision  the weights enums and builders: AP, url, size, first 8 hex digits of sha256, settings
    MMDetection  metafile.yml of 3.3.0: AP, url, first 8 hex digits of sha256
    Matterport   mrcnn/utils.py: url; size and sha256 are those that others recorded who downloaded the file

What no source tells is None. A name says DATA[-KIND]-BODY-NECK[-VARIANT], with the framework in place of the data for
all but Detectron2; without a VARIANT it is the one that was trained longest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from maskrcnn.errors import InputError

ZOO = Path(__file__).with_name("zoo.json")
MIB = 2**20  # bytes


@dataclass(frozen=True)
class Entry:
    """A public checkpoint.

    name: ours. framework: whose file it is. published: its name there.
    kind: mask, cascade (with masks), keypoint or box.
    data: what it was trained on; AP are percent on that data's validation pictures (VOC: test 2007), as published.
    url: of the file. licence: of the weights. page: where the publisher tells of it.
    size: bytes, right to `size_slack` bytes. algorithm, digest: a hash, md5 or sha256, or its first digits, in hex;
    told_by: where the digest comes from.
    settings: what the weights cannot tell, in the terms of the framework's config (torchvision has none: in ours).
    """

    name: str
    framework: str
    published: str
    kind: str
    data: str
    box_ap: float | None
    mask_ap: float | None
    keypoint_ap: float | None
    url: str
    licence: str
    page: str
    size: int | None
    size_slack: int
    algorithm: str
    digest: str | None
    told_by: str
    settings: Mapping[str, Any]

    @property
    def file(self) -> str:
        """The name of the file as published."""
        return self.url.rpartition("/")[2]


@cache
def zoo() -> Mapping[str, Entry]:
    """All entries by name, in the order in which they are listed."""
    publishers = json.loads(ZOO.read_text(encoding="utf-8"))
    entries = [_entry(publisher, facts) for publisher in publishers for facts in publisher["entries"]]
    return {entry.name: entry for entry in entries}


def find(name: str) -> Entry:
    """The entry of that name.

    Errors: `InputError` where there is none; it tells the names that are nearest.
    """
    if name in zoo():
        return zoo()[name]
    near = get_close_matches(name, zoo(), n=3, cutoff=0.5)
    expected = " or ".join([*near, "a name that `maskrcnn weights list` shows"])
    raise InputError("no such name in the zoo", field="weights", found=name, expected=expected)


def search(words: Iterable[str]) -> list[Entry]:
    """Entries that have each of the words somewhere in name, framework, published name, kind or data."""
    wanted = [word.casefold() for word in words]
    return [entry for entry in zoo().values() if all(word in _searched(entry) for word in wanted)]


def _searched(entry: Entry) -> str:
    return " ".join((entry.name, entry.framework, entry.published, entry.kind, entry.data)).casefold()


def _entry(publisher: Mapping[str, Any], facts: Mapping[str, Any]) -> Entry:
    digest = publisher["digest"]
    size, slack = facts.get("size"), 0
    if "size_mib" in facts:  # rounded to thousandths
        size, slack = round(facts["size_mib"] * MIB), MIB // 2000 + 1
    return Entry(
        name=facts["name"],
        framework=publisher["framework"],
        published=facts["published"],
        kind=facts["kind"],
        data=facts["data"],
        box_ap=facts.get("box_ap"),
        mask_ap=facts.get("mask_ap"),
        keypoint_ap=facts.get("keypoint_ap"),
        url=publisher["base"] + facts["path"],
        licence=publisher["licence"],
        page=publisher["page"],
        size=size,
        size_slack=slack,
        algorithm=digest["algorithm"],
        digest=facts.get("digest") or _digits(digest.get("pattern"), facts["path"]),
        told_by=digest["told_by"],
        settings=_settings(publisher, facts.get("settings", [])),
    )


def _digits(pattern: str | None, path: str) -> str | None:
    """The hash that a file's name holds."""
    found = re.search(pattern, path) if pattern else None
    return found[1] if found else None


def _settings(publisher: Mapping[str, Any], parts: Iterable[str]) -> dict[str, Any]:
    """Parts of a config put over one another in order, and its dotted keys made nested."""
    flat = dict(publisher["common"])
    for part in parts:
        flat |= publisher["settings"][part]
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *folders, leaf = key.split(".")
        place = nested
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = value
    return nested
