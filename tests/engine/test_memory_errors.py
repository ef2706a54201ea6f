"""A full device is told in one line that says what to lower; nothing else is touched."""

from __future__ import annotations

import pytest
import torch

from maskrcnn.engine.memory_errors import TO_DETECT, TO_LEARN, enough_memory
from maskrcnn.errors import InputError

PARAGRAPH = """CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 15.77 GiB
If reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF"""


@pytest.mark.parametrize("lower", [TO_DETECT, TO_LEARN])
def test_one_line_names_what_to_lower(lower: str) -> None:
    with pytest.raises(InputError) as caught, enough_memory(lower, "8 pictures"):
        raise torch.OutOfMemoryError(PARAGRAPH)
    assert str(caught.value) == f"the device is out of memory; found 8 pictures; expected {lower}"
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_other_errors_come_through() -> None:
    with pytest.raises(RuntimeError, match="size of tensor"), enough_memory(TO_DETECT, "1 picture"):
        torch.zeros(2) + torch.zeros(3)
