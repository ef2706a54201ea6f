"""Random weights that come out the same wherever they are made: where a fixture is printed, and in its test."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

Roles = Sequence[tuple[str, str]]  # (pattern that is searched in a tensor's name, its role); the first that fits counts


def seeded_state(shapes: Mapping[str, Sequence[int]], roles: Roles, seed: int = 0) -> dict[str, np.ndarray]:
    """float32 values for every name. A tensor's values hang on its name, its shape, its role and `seed` alone.

    Roles: "weight" (He et al. 2015: variance 2 / fan in), "weight:S" (that times S), "normal:S" (standard deviation S),
    "bias:S" (the same for biases), "scale:S" (S times 0.8 to 1.2, for norms), "variance" (0.5 to 1.5), "zero",
    "constant:V". numpy's RandomState draws: its stream never changes between versions.
    """
    return {name: _values(name, tuple(shape), _role(name, roles), seed) for name, shape in shapes.items()}


def _role(name: str, roles: Roles) -> str:
    for pattern, role in roles:
        if re.search(pattern, name):
            return role
    raise ValueError(f"no role for {name}")


def _values(name: str, shape: tuple[int, ...], role: str, seed: int) -> np.ndarray:
    random = np.random.RandomState(zlib.crc32(name.encode()) ^ seed)
    kind, _, number = role.partition(":")
    factor = float(number) if number else 1.0
    if kind == "weight":
        fan_in = int(np.prod(shape[1:])) or 1
        values = random.standard_normal(shape) * (factor * np.sqrt(2.0 / fan_in))
    elif kind in ("normal", "bias"):
        values = random.standard_normal(shape) * factor
    elif kind == "scale":
        values = factor * random.uniform(0.8, 1.2, shape)
    elif kind == "variance":
        values = random.uniform(0.5, 1.5, shape)
    elif kind in ("zero", "constant"):
        values = np.full(shape, factor if kind == "constant" else 0.0)
    else:
        raise ValueError(f"no such role: {role}")
    return np.asarray(values, dtype=np.float32)
