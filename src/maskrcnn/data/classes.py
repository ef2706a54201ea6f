"""Class names and category ids of a data set, and the one place where labels 1..K meet them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from maskrcnn.errors import InputError


@dataclass(frozen=True)
class Classes:
    """K foreground classes. Label k, counted from 1, is `names[k - 1]`; label 0 is background and has no entry.

    names: K names. category_ids: K ids as the data set counts them, holes allowed.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "category_ids", tuple(int(i) for i in self.category_ids))
        if len(self.names) != len(self.category_ids):
            found = f"{len(self.names)} names and {len(self.category_ids)} ids"
            raise InputError("names and category ids do not pair up", field="Classes", found=found)
        if not self.names:
            raise InputError("there is no class", field="Classes.names", expected="at least one")
        for field, values in (("names", self.names), ("category_ids", self.category_ids)):
            twice = _repeated(values)
            if twice:
                raise InputError("holds duplicates", field=f"Classes.{field}", found=twice)

    @classmethod
    def numbered(cls, count: int) -> Classes:
        """Names "1".."K" with the ids 1..K, for data that brings no names."""
        return cls(tuple(str(k) for k in range(1, count + 1)), tuple(range(1, count + 1)))

    @classmethod
    def named(cls, names: Iterable[str]) -> Classes:
        """These names with the ids 1..K."""
        names = tuple(names)
        return cls(names, tuple(range(1, len(names) + 1)))

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def label_of_category(self) -> dict[int, int]:
        """Category id to label 1..K."""
        return {category: k for k, category in enumerate(self.category_ids, start=1)}

    @cached_property
    def label_of_name(self) -> dict[str, int]:
        """Class name to label 1..K."""
        return {name: k for k, name in enumerate(self.names, start=1)}


def _repeated(values: Iterable[object]) -> str:
    return ", ".join(repr(value) for value, count in Counter(values).items() if count > 1)
