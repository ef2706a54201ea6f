"""MMDetection's configs, which are Python files, read as data: parsed, never executed.

Understood: names assigned to literals, lists, tuples, dicts and `dict(...)`, with `**` and `*` in them; arithmetic on
numbers; `+` of texts, lists and tuples; names assigned before, their items and slices; `list`, `tuple` and `len`; plain
f-strings; `_base_`, the files that a config starts from, merged key by key unless a dict says `_delete_=True`; values
of theirs, `_base_.model.backbone` or `{{_base_.model.backbone}}`, and assignments to them. Anything else is refused by
name, with its line.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskrcnn.errors import InputError

Config = dict[Any, Any]  # keys are texts but for a few deep down

BASE, DELETE = "_base_", "_delete_"
MAX_BYTES = 1_000_000  # of a file; the longest of MMDetection's own is 60 kB
MAX_ITEMS = 300_000  # of a list, a text, or all files together: a few lines can double a list until memory is full
MAX_NUMBER = 2**63
MAX_FILES = 50

_OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_CALLS: Mapping[str, Callable[[Any], Any]] = {"list": list, "tuple": tuple, "len": len}


def read_python_config(path: str | Path) -> Config:
    """The whole config of a `.py` file, with the `_base_` files beside it, as nested plain values.

    Errors: `InputError` for a file that is missing, is no Python, or holds what only running it could tell.
    """
    return _read(Path(path), (), _Budget())


def parse_python_config(text: str, file: str | Path) -> Config:
    """The same of a text that stands alone, as a checkpoint or a run's folder holds it. file: for messages."""
    return _evaluated(_parsed(text, file), file, None, _Budget())


def merge(child: Mapping[str, Any], base: Mapping[str, Any]) -> Config:
    """`base` with the values of `child` in it, dict by dict; a dict with `_delete_=True` replaces the base's.

    Errors: `InputError` for a dict in the place of another kind of value.
    """
    return _merged(child, base, "config", _Budget())


class _Budget:
    """What all files together may still cost."""

    def __init__(self) -> None:
        self.items, self.files = MAX_ITEMS, MAX_FILES

    def spend(self, items: int, file: str | Path) -> None:
        self.items -= items
        if self.items < 0:
            raise InputError("too large for a config", file=file, expected=f"{MAX_ITEMS} values at most")


def _read(path: Path, chain: tuple[Path, ...], budget: _Budget) -> Config:
    """chain: the files that led here."""
    place = path.resolve()
    budget.files -= 1
    if place in chain or budget.files < 0:
        problem = "is its own base" if place in chain else f"needs more than {MAX_FILES} files"
        raise InputError(problem, file=path, field=BASE, found=chain[-1] if chain else None)
    tree = _parsed(_text(path, chain), path)
    base: Config = {}
    for name in _base_names(tree, path):
        part = _read(path.parent / name, (*chain, place), budget)
        if twice := sorted(base.keys() & part.keys()):
            raise InputError("two bases set the same", file=path, field=BASE, found=", ".join(twice))
        base.update(part)
    return _evaluated(tree, path, base, budget)


def _text(path: Path, chain: tuple[Path, ...]) -> str:
    if not path.is_file():
        expected = "the files of _base_ in their places, or the whole config that a run writes beside its checkpoints"
        raise InputError(
            "no such config", file=path, found=f"named by {chain[-1]}" if chain else None, expected=expected
        )
    if path.stat().st_size > MAX_BYTES:
        raise InputError("too large for a config", file=path, found=f"{path.stat().st_size} bytes")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError("not a text", file=path, found=str(error), expected="a config in Python") from error


def _parsed(text: str, file: str | Path) -> ast.Module:
    if len(text) > MAX_BYTES:
        raise InputError("too large for a config", file=file, found=f"{len(text)} characters")
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # nested without end; null bytes
        line = getattr(error, "lineno", None)
        found = f"{error.msg if isinstance(error, SyntaxError) else type(error).__name__}"
        raise InputError("not Python", file=file, field=f"line {line}" if line else None, found=found) from error


def _base_names(tree: ast.Module, file: Path) -> list[str]:
    """The files that `_base_` names, as written."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and _target(statement) == BASE:
            value = _Evaluator(file, None, _Budget()).value(statement.value)
            names = value if isinstance(value, list | tuple) else [value]
            if not all(isinstance(name, str) and name.endswith(".py") and "::" not in name for name in names):
                expected = "names of .py files in folders near this one"
                raise InputError("cannot be followed", file=file, field=BASE, found=value, expected=expected)
            return list(names)
    return []


def _target(statement: ast.Assign) -> str | None:
    target = statement.targets[0]
    return target.id if len(statement.targets) == 1 and isinstance(target, ast.Name) else None


def _evaluated(tree: ast.Module, file: str | Path, base: Config | None, budget: _Budget) -> Config:
    """What the statements make of the values of the `_base_` files; base None: the text stands alone."""
    evaluator = _Evaluator(file, base, budget)
    try:
        for statement in tree.body:
            evaluator.run(statement)
        return _merged(evaluator.names, evaluator.base or {}, "", budget)
    except RecursionError as error:
        raise InputError("nested too deeply for a config", file=file) from error


class _Evaluator:
    """The names of one file, filled statement by statement. A value once made never changes, so it may be shared."""

    def __init__(self, file: str | Path, base: Config | None, budget: _Budget) -> None:
        self.file, self.base, self.budget = file, base, budget
        self.names: Config = {}

    def run(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Assign) and (name := _target(statement)) is not None:
            if name != BASE:
                self.names[name] = self.value(statement.value)
            elif self.base is None:
                raise self.refused(statement, "_base_ in a text that stands alone")
        elif isinstance(statement, ast.Assign) and len(statement.targets) == 1 and self.base is not None:
            keys = self._keys_in_base(statement.targets[0])
            self.base = self._with(self.base, keys, self.value(statement.value), statement)
        elif isinstance(statement, ast.Delete) and all(isinstance(target, ast.Name) for target in statement.targets):
            for target in statement.targets:
                assert isinstance(target, ast.Name)
                self.names.pop(target.id, None)
        elif not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):  # else a comment
            raise self.refused(statement)

    def value(self, node: ast.expr) -> Any:
        made = self._value(node)
        self.budget.spend(1 + (len(made) if isinstance(made, str | bytes | list | tuple) else 0), self.file)
        return made

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return self._named(node)
            case ast.List():
                return self._items(node.elts)
            case ast.Tuple():
                return tuple(self._items(node.elts))
            case ast.Dict():
                return self._dict(node)
            case ast.Call():
                return self._call(node)
            case ast.UnaryOp():
                return self._signed(node)
            case ast.BinOp():
                return self._calculated(node)
            case ast.Attribute(value=holder, attr=name):
                return self._item(self.value(holder), name, node)
            case ast.Subscript(value=holder, slice=ast.Slice() as part):
                bounds = [None if bound is None else self.value(bound) for bound in (part.lower, part.upper, part.step)]
                return self._item(self.value(holder), slice(*bounds), node)
            case ast.Subscript(value=holder, slice=key):
                return self._item(self.value(holder), self.value(key), node)
            case ast.Set(elts=[ast.Set(elts=[ast.Attribute() as reference])]):  # {{_base_.x}} is a set in a set
                return self.value(reference)
            case ast.JoinedStr(values=parts):
                return "".join(self._text(part) for part in parts)
            case _:
                raise self.refused(node)

    def _keys_in_base(self, target: ast.expr) -> list[str | int]:
        """a, 1, c of `_base_.a[1].c` and of `_base_["a"][1]["c"]`."""
        match target:
            case ast.Name(id=name) if name == BASE:
                return []
            case ast.Attribute(value=holder, attr=key):
                return [*self._keys_in_base(holder), key]
            case ast.Subscript(value=holder, slice=ast.Constant(value=str(key) | int(key))):
                return [*self._keys_in_base(holder), key]
        raise self.refused(target, _KINDS[ast.Assign])

    def _with(self, holder: Any, keys: Sequence[str | int], value: Any, node: ast.AST) -> Any:
        """A copy of `holder` with `value` at the end of `keys`."""
        if not keys:
            return value
        key = keys[0]
        self.budget.spend(len(holder) if isinstance(holder, dict | list) else 0, self.file)
        if isinstance(holder, list) and isinstance(key, int) and 0 <= key < len(holder):
            return [*holder[:key], self._with(holder[key], keys[1:], value, node), *holder[key + 1 :]]
        if isinstance(holder, dict) and (key in holder or len(keys) == 1):
            return {**holder, key: self._with(holder.get(key), keys[1:], value, node)}
        raise self.refused(node, f"an assignment to {key}, which is not there")

    def _named(self, node: ast.Name) -> Any:
        if node.id == BASE and self.base is not None:
            return self.base
        if node.id not in self.names:
            raise self.refused(node, f"the name {node.id}, which nothing is assigned to")
        return self.names[node.id]

    def _items(self, nodes: Sequence[ast.expr]) -> list[Any]:
        items: list[Any] = []
        for node in nodes:
            if not isinstance(node, ast.Starred):
                items.append(self.value(node))
                continue
            several = self.value(node.value)
            if not isinstance(several, list | tuple):
                raise self.refused(node, "* before something else than a list")
            items.extend(several)
        return items

    def _dict(self, node: ast.Dict) -> Config:
        made: Config = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                made.update(self._mapping(value))
                continue
            name = self.value(key)
            if not isinstance(name, str | int | float | None):
                raise self.refused(key, "a key that is no text or number")
            made[name] = self.value(value)
        return made

    def _mapping(self, node: ast.expr) -> Config:
        value = self.value(node)
        if not isinstance(value, dict):
            raise self.refused(node, "** before something else than a dict")
        self.budget.spend(len(value), self.file)
        return value

    def _call(self, node: ast.Call) -> Any:
        name = node.func.id if isinstance(node.func, ast.Name) and node.func.id not in self.names else None
        if name == "dict" and not node.args:
            made: Config = {}
            for keyword in node.keywords:
                value = keyword.value
                made |= self._mapping(value) if keyword.arg is None else {keyword.arg: self.value(value)}
            return made
        if name is not None and name in _CALLS and len(node.args) == 1 and not node.keywords:
            argument = self.value(node.args[0])
            if isinstance(argument, list | tuple | dict | str):
                return _CALLS[name](argument)
        raise self.refused(node, f"the call {ast.unparse(node.func)}(...)")

    def _signed(self, node: ast.UnaryOp) -> Any:
        value = self.value(node.operand)
        if isinstance(node.op, ast.Not):
            return not value
        if not _is_number(value) or not isinstance(node.op, ast.USub | ast.UAdd):
            raise self.refused(node)
        return -value if isinstance(node.op, ast.USub) else +value

    def _calculated(self, node: ast.BinOp) -> Any:
        left, right = self.value(node.left), self.value(node.right)
        operation = _OPERATORS.get(type(node.op))
        joins = isinstance(node.op, ast.Add) and type(left) is type(right) and isinstance(left, str | list | tuple)
        repeats = isinstance(node.op, ast.Mult) and isinstance(left, str | list | tuple) and isinstance(right, int)
        if operation is None or not (joins or repeats or (_is_number(left) and _is_number(right))):
            raise self.refused(node)
        if repeats:
            self.budget.spend(len(left) * max(right, 0), self.file)
        try:
            if isinstance(node.op, ast.Pow) and abs(right) > 64:
                raise OverflowError
            result = operation(left, right)
        except (ArithmeticError, ValueError) as error:
            raise self.refused(node, f"{ast.unparse(node)}, which has no value") from error
        if isinstance(result, complex) or (isinstance(result, int) and abs(result) > MAX_NUMBER):
            raise self.refused(node, "a number too large for a config")
        return result

    def _item(self, holder: Any, key: Any, node: ast.Attribute | ast.Subscript) -> Any:
        kinds = (dict,) if isinstance(node, ast.Attribute) else (dict, list, tuple, str)
        try:
            if isinstance(holder, kinds):
                return holder[key]
        except (LookupError, TypeError, ValueError) as error:
            raise self.refused(node, f"{ast.unparse(node)}, which is not there") from error
        raise self.refused(node, f"{ast.unparse(node)} of something that has no items")

    def _text(self, part: ast.expr) -> str:
        if isinstance(part, ast.Constant):
            return str(part.value)
        if isinstance(part, ast.FormattedValue) and part.conversion == -1 and part.format_spec is None:
            value = self.value(part.value)
            if isinstance(value, str | int | float):
                return str(value)
        raise self.refused(part, "an f-string that formats")

    def refused(self, node: ast.AST, what: str | None = None) -> InputError:
        found = what or _KINDS.get(type(node)) or f"{type(node).__name__}"
        line = getattr(node, "lineno", None)
        expected = "literals, dict(...), and names assigned before: a config is read, not run"
        return InputError("cannot be read", file=self.file, field=f"line {line}", found=found, expected=expected)


_KINDS: Mapping[type[ast.AST], str] = {
    ast.Import: "an import",
    ast.ImportFrom: "an import",
    ast.With: "a with block",
    ast.If: "an if",
    ast.For: "a loop",
    ast.While: "a loop",
    ast.FunctionDef: "a function",
    ast.ClassDef: "a class",
    ast.Lambda: "a lambda",
    ast.ListComp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.SetComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.IfExp: "a conditional",
    ast.Compare: "a comparison",
    ast.AugAssign: "a change of a value",
    ast.Assign: "an assignment to something else than one name",
    ast.Expr: "an expression that assigns nothing",
    ast.Set: "a set",
    ast.BinOp: "arithmetic on something else than numbers",
    ast.UnaryOp: "arithmetic on something else than numbers",
}


def _merged(child: Mapping[str, Any], base: Mapping[str, Any], field: str, budget: _Budget) -> Config:
    """field: where both stand, "model.backbone", for messages."""
    budget.spend(1 + len(base) + len(child), field)
    merged = dict(base)
    for key, value in child.items():
        place = f"{field}.{key}" if field else str(key)
        if not isinstance(value, dict):
            merged[key] = value
            continue
        below: Any = {} if value.get(DELETE) else merged.get(key, {})
        if not isinstance(below, Mapping):
            found, expected = type(below).__name__, f"a dict in the base, or {DELETE}=True"
            raise InputError("a dict cannot be merged into it", field=place, found=found, expected=expected)
        merged[key] = _merged({k: v for k, v in value.items() if k != DELETE}, below, place, budget)
    return merged


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
