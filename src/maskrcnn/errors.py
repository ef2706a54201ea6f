"""The one error that people see: a single line with file, field, found and expected."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class InputError(ValueError):
    """Something handed in from outside is not usable.

    `str(error)` is one line; the command line prints it as it stands and exits with status 1.

    Args:
        problem: what is wrong, in a few words ("is not a picture").
        file: the file it was found in, if any.
        field: the place in that file or the argument ("annotations[3].bbox").
        found: the offending value; shortened to 80 characters.
        expected: what would have been right.

    The parts stay readable as attributes of these names.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | Path | None = None,
        field: str | None = None,
        found: object = None,
        expected: str | None = None,
    ) -> None:
        place = ": ".join(str(part) for part in (file, field) if part is not None)
        message = f"{place}: {problem}" if place else problem
        self.problem, self.file, self.field, self.found, self.expected = problem, file, field, found, expected
        if found is not None:
            message += f"; found {_short(found)}"
        if expected is not None:
            message += f"; expected {expected}"
        super().__init__(" ".join(message.split()))


class InputErrors(InputError):
    """Several things wrong with one input, collected so that they can be mended in one go.

    `errors` keeps every one, `problem` and `file` what they have in common; the message counts them and shows the first
    few, separated by " | ".
    """

    SHOWN = 5

    def __init__(self, problem: str, errors: Sequence[InputError], *, file: str | Path | None = None) -> None:
        self.errors = tuple(errors)
        shown = " | ".join(str(error) for error in self.errors[: self.SHOWN])
        rest = len(self.errors) - self.SHOWN
        more = f" | and {rest} more" if rest > 0 else ""
        super().__init__(f"{problem} ({len(self.errors)}): {shown}{more}", file=file)
        self.problem = problem


def _short(value: object, limit: int = 80) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
