"""What a foreign config says, compared with what the weights say, and a list of what neither does.

A family whose settings do not keep every value under the one name has a kind of `Facts` of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from maskrcnn.errors import InputError, InputErrors
from maskrcnn.weights.content import Settings

T = TypeVar("T")


@dataclass
class Facts:
    """Assumptions and problems are kept; `finish` raises all problems together, so that they can be mended in one go.

    assumed: one line for each value that neither weights nor settings tell.
    """

    settings: Settings | None = None
    assumed: list[str] = field(default_factory=list)
    problems: list[InputError] = field(default_factory=list)

    def told(self, key: str) -> Any:
        """The settings' value at "a.b.c", or `None` where they have none. A family may know of other places."""
        return None if self.settings is None else find(self.settings.values, key)

    def fitted(self, key: str, value: Any, default: T) -> T:
        """`value` as the kind of thing that `default` is, else `default` and a problem."""
        fitted = like(default, value)
        if fitted is None:
            self.problem("wrong type", key, value, f"something like {as_text(default)}")
            return default
        return fitted  # type: ignore[no-any-return]

    def assume(self, place: str, value: object, reason: str) -> None:
        """Note that nothing told our field `place`, so that it is `value`."""
        self.assumed.append(f"{place} {as_text(value)}: {reason}")

    def agree(self, key: str, in_weights: Any) -> None:
        """Note a problem where the settings say something else than the weights."""
        value = self.told(key)
        if value is not None and like(in_weights, value) != in_weights:
            self.problem("contradicts the weights", key, value, f"{as_text(in_weights)}, as the weights have it")

    def only(self, key: str, *known: Any) -> None:
        """Note a problem where the settings want what is not built here, or not for a network like this one."""
        value = self.told(key)
        value = tuple(value) if isinstance(value, list) else value
        if value is not None and value not in known:
            self.problem("does not fit, or is not known here", key, value, " or ".join(map(as_text, known)))

    def problem(self, problem: str, key: str, found: object, expected: str) -> None:
        """Note a problem of any kind."""
        origin = self.settings.origin if self.settings is not None else None
        self.problems.append(InputError(problem, file=origin, field=key, found=as_text(found), expected=expected))

    def finish(self) -> tuple[str, ...]:
        """What was assumed. Errors: `InputError`, or `InputErrors` with every problem."""
        if len(self.problems) == 1:
            raise self.problems[0]
        if self.problems:
            raise InputErrors("settings and weights do not fit", self.problems)
        return tuple(self.assumed)


def find(values: Any, path: str) -> Any:
    """The value at "a.b.0.c" of nested plain values, or `None`."""
    for key in path.split("."):
        if isinstance(values, Mapping):
            values = values.get(key)
        elif isinstance(values, list | tuple) and key.isdecimal() and int(key) < len(values):
            values = values[int(key)]
        else:
            return None
    return values


def like(example: Any, value: Any) -> Any:
    """`value` as the kind of thing that `example` is (whole number, number, text, tuple of ...), or `None`."""
    if isinstance(example, tuple):
        if not isinstance(value, list | tuple) or not value:
            return None
        items = tuple(like(example[0], item) for item in value)
        return None if None in items else items
    if isinstance(example, bool) or isinstance(value, bool):
        return value if isinstance(example, bool) and isinstance(value, bool) else None
    if isinstance(example, float) and isinstance(value, int | float):
        return float(value)
    if isinstance(example, int) and isinstance(value, int | float) and float(value).is_integer():
        return int(value)
    return value if isinstance(example, str) and isinstance(value, str) else None


def as_text(value: object) -> str:
    """A value as one reads it in a message."""
    if isinstance(value, tuple | list):
        return f"({', '.join(map(as_text, value))})"
    return f"{value:g}" if isinstance(value, float) else str(value)
