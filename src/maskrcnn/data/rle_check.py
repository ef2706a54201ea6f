"""Whether many compressed RLEs are sound, all at once: a hundred thousand are looked through in about a second.

Only a filter: what it does not pass is read one by one by `ops.rle`, which can say what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_BASE, _MORE, _SIGN = 48, 32, 16  # the format is explained in ops/rle.py
_GROUPS = 6  # of five bits: more than any picture needs, and no sum of such numbers leaves 64 bits
_AT_ONCE = 20_000  # strings; bounds the memory


def are_sound(strings: Sequence[str], areas: Sequence[int]) -> np.ndarray:
    """(D,) bool: the string can be read, no run is negative, the runs fill the picture, and some pixel is inside.

    strings: D compressed counts. areas: D, height x width of the picture.
    """
    parts = [np.zeros(0, dtype=bool)]
    for begin in range(0, len(strings), _AT_ONCE):
        end = begin + _AT_ONCE
        parts.append(_are_sound(strings[begin:end], np.asarray(areas[begin:end], dtype=np.int64)))
    return np.concatenate(parts)


def _are_sound(strings: Sequence[str], areas: np.ndarray) -> np.ndarray:
    codes = [text.encode("ascii", "replace") for text in strings]
    lengths = np.array([len(code) for code in codes])
    characters = np.frombuffer(b"".join(codes), dtype=np.uint8).astype(np.int64) - _BASE
    owner = np.repeat(np.arange(len(strings)), lengths)
    is_legal = (characters >= 0) & (characters < 2 * _MORE)
    is_last = (characters & _MORE) == 0
    filled = lengths > 0
    sound = filled.copy()
    sound[owner[~is_legal]] = False
    sound[filled] &= is_last[np.cumsum(lengths)[filled] - 1]
    usable = sound[owner]  # the characters of the others could run over into a neighbour's numbers
    values, owner, too_long = _numbers(characters[usable], is_last[usable], owner[usable])
    sound[too_long] = False
    runs, place = _runs(values, owner)
    sound[owner[runs < 0]] = False
    total = np.bincount(owner, weights=runs, minlength=len(strings))
    inside = np.bincount(owner, weights=runs * (place % 2), minlength=len(strings))
    checked: np.ndarray = sound & (total == areas) & (inside > 0)
    return checked


def _numbers(codes: np.ndarray, is_last: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(values, the string of each, strings with a number that is too long) from all groups of five bits."""
    lasts = np.flatnonzero(is_last)
    firsts = np.append(0, lasts[:-1] + 1)[: len(lasts)]
    groups = lasts - firsts + 1
    shift = 5 * np.minimum(np.arange(len(codes)) - np.repeat(firsts, groups), _GROUPS)
    bits = (codes & (_MORE - 1)) << shift
    values = np.add.reduceat(bits, firsts) if len(firsts) else bits
    values -= ((codes[lasts] & _SIGN) >> 4) << (5 * np.minimum(groups, _GROUPS))
    return values, owner[lasts], owner[lasts[groups > _GROUPS]]


def _runs(values: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(lengths, place in its string) of all runs, from numbers that are differences from the fourth on."""
    begins = np.flatnonzero(np.diff(owner, prepend=-1))
    place = np.arange(len(values)) - np.repeat(begins, np.diff(np.append(begins, len(values))))
    runs = values.copy()
    for chain in (place % 2 == 1, (place % 2 == 0) & (place > 0)):
        at = np.flatnonzero(chain)
        sums = np.cumsum(values[at])
        first = np.flatnonzero(np.diff(owner[at], prepend=-1))
        before = np.append(0, sums)[first]
        runs[at] = sums - np.repeat(before, np.diff(np.append(first, len(at))))
    return runs, place
