"""What a detector calls its classes, and what the data set calls them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from maskrcnn.data.classes import Classes
from maskrcnn.errors import InputError

SHOWN = 5  # class names in an error message


class ClassMap:
    """From a detector's class to the data set's category id, by name.

    Names go before ids, since two data sets that both count from 1 mean different things by 1. Case and outer spaces
    do not matter. A class without a name goes by its id.
    """

    def __init__(self, classes: Classes) -> None:
        self.classes = classes
        pairs = list(zip(classes.names, classes.category_ids, strict=True))
        self._exact = dict(pairs)
        self._plain = {_plain(name): category_id for name, category_id in reversed(pairs)}

    def category_id(self, name: str, category_id: int) -> int | None:
        """The data set's id of the detector's class (`name`, `category_id`); None where it has no such class."""
        if not name:
            return category_id if category_id in self.classes.category_ids else None
        return self._exact.get(name, self._plain.get(_plain(name)))

    def check(self, names: Iterable[str]) -> None:
        """Raise InputError where not one of the detector's class `names` is one of the data set's."""
        names = tuple(names)
        if not any(_plain(name) in self._plain for name in names):
            raise InputError(
                "not one class of the detector is in the data set",
                field="class names",
                found=_listed(names),
                expected=f"some of {_listed(self.classes.names)}",
            )


def _plain(name: str) -> str:
    return name.strip().casefold()


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)}: " + ", ".join(names[:SHOWN]) + more
