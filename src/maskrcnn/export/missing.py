"""What is said where a runtime is not installed."""

from __future__ import annotations

from pathlib import Path

from maskrcnn.errors import InputError

EXTRA = "pip install 'maskrcnn[export]'"


def missing(library: str, file: str | Path | None = None) -> InputError:
    """The error to raise, in one line."""
    return InputError(f"needs {library}", file=file, expected=EXTRA)
