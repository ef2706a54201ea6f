"""The systems of the lineage by key: the five of the story, and the other ways in which the papers trained them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from maskrcnn.errors import InputError
from maskrcnn.lineage.system import System

# key -> file of this folder, and what it calls the system; imported when asked for, since each brings a library or two
MAIN = {
    "hog-svm": ("hog_svm", "SYSTEM"),
    "rcnn": ("rcnn", "SYSTEM"),
    "fast-rcnn": ("fast_rcnn", "SYSTEM"),
    "faster-rcnn": ("faster_rcnn", "SYSTEM"),
    "mask-rcnn": ("mask_rcnn", "SYSTEM"),
}
OTHERS = {
    "fast-rcnn-rpn": ("fast_rcnn", "ON_RPN"),
    "faster-rcnn-alternating": ("faster_rcnn", "ALTERNATING"),
    "mask-rcnn-stagewise": ("mask_rcnn", "STAGEWISE"),
    "mask-rcnn-alternating": ("mask_rcnn", "ALTERNATING"),
}


def systems_of(keys: Sequence[str] = tuple(MAIN)) -> tuple[System, ...]:
    """The systems of these keys, in this order.

    Raises InputError for a key that is unknown, or given twice, and for none at all.
    """
    places = MAIN | OTHERS
    expected = f"some of {', '.join(places)}, each once"
    for key in keys:
        if key not in places:
            raise InputError("no such system", field="systems", found=key, expected=expected)
    if not keys or len(set(keys)) < len(keys):
        raise InputError("impossible choice", field="systems", found=" ".join(keys) or "none", expected=expected)
    return tuple(_system(*places[key]) for key in keys)


def _system(file: str, name: str) -> System:
    found = getattr(import_module(f"maskrcnn.lineage.{file}"), name)
    assert isinstance(found, System)
    return found
