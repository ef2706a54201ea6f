"""A device without memory left: one line that says what to lower, in place of torch's paragraph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from maskrcnn.errors import InputError

TO_DETECT = "a smaller batch_size, size or proposals, or precision bf16"
TO_LEARN = "a smaller batch_size or crop, more parts (accumulate), or precision bf16"


@contextmanager
def enough_memory(lower: str, at_work: str) -> Iterator[None]:
    """What happens inside is told in one line where the device's memory does not suffice.

    lower: what would need less (`TO_DETECT`, `TO_LEARN`). at_work: on what ("8 pictures"). What torch keeps of freed
    memory is given back first, so that a smaller try may follow.
    Errors: `InputError` in place of `torch.OutOfMemoryError`; all others as they come.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise InputError("the device is out of memory", found=at_work, expected=lower) from error
