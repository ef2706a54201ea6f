"""What names and shapes of tensors tell of a network: the same questions for every family."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.model.layers import Norm

State = Mapping[str, Tensor]


def norm_after(state: State, conv: str) -> Norm:
    """The norm behind a convolution of the pyramid or of a head, by our names or theirs."""
    if f"{conv}.norm.weight" not in state:
        return None
    return "batch" if f"{conv}.norm.running_mean" in state else "group"


def count(state: State, pattern: str) -> int:
    """How many tensors have a name of this pattern."""
    return sum(re.fullmatch(pattern, name) is not None for name in state)


def shape(state: State, name: str) -> tuple[int, ...]:
    """Errors: `InputError` if there is no such tensor."""
    if name not in state:
        raise InputError("is missing", field=name, expected="a tensor")
    return tuple(state[name].shape)
