"""MMDetection's configs as data. The expected values were checked against mmengine 0.10.7, which runs such files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from maskrcnn.errors import InputError
from maskrcnn.weights.formats import python_config
from maskrcnn.weights.formats.python_config import merge, parse_python_config, read_python_config


def values(text: str) -> Any:
    return parse_python_config(text, "config.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A config in three files, as MMDetection lays them out."""
    (tmp_path / "_base_").mkdir()
    (tmp_path / "_base_" / "model.py").write_text(
        "model = dict(type='MaskRCNN', backbone=dict(depth=50, norm_cfg=dict(type='BN', eps=1e-5)), heads=[dict(k=80)])"
    )
    (tmp_path / "_base_" / "data.py").write_text(
        "'''Data.'''\nroot = 'data/'\nsteps = [dict(type='Load'), dict(type='Resize')]"
    )
    (tmp_path / "middle.py").write_text(
        "_base_ = ['./_base_/model.py', '_base_/data.py']\nmodel = dict(backbone=dict(depth=101))\n"
    )
    return tmp_path


def child(folder: Path, text: str, base: str = "middle.py") -> Any:
    (folder / "child.py").write_text(f"_base_ = '{base}'\n{text}")
    return read_python_config(folder / "child.py")


# --- one file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("'''What this is.'''\n# and why\na = 1", {"a": 1}),
        ("a = dict(b=[1, 2.5, -3], c=('x', None, True))", {"a": {"b": [1, 2.5, -3], "c": ("x", None, True)}}),
        ("a = {'b': 1, 2: {}}", {"a": {"b": 1, 2: {}}}),
        ("n = dict(m=1)\na = dict(type='N', **n, s=3)", {"n": {"m": 1}, "a": {"type": "N", "m": 1, "s": 3}}),
        ("n = dict(m=1)\na = {**n, 'm': 2}", {"n": {"m": 1}, "a": {"m": 2}}),
        ("x = [1]\na = [0, *x, *(2, 3)]", {"x": [1], "a": [0, 1, 2, 3]}),
        ("root = 'd/'\na = root + 'x.json'", {"root": "d/", "a": "d/x.json"}),
        ("root = 'd/'\na = f'{root}x_{2}.json'", {"root": "d/", "a": "d/x_2.json"}),
        ("a = 0.02 * 4\nb = 1 / 8 + 2 ** 3 - 7 // 2 + 7 % 4", {"a": 0.08, "b": 8.125}),
        ("a = [1, 2] + [3]\nb = (1,) + (2,)\nc = [0.] * 3", {"a": [1, 2, 3], "b": (1, 2), "c": [0.0, 0.0, 0.0]}),
        ("n = ('cat', 'dog')\nk = len(n)\nl = list(n)", {"n": ("cat", "dog"), "k": 2, "l": ["cat", "dog"]}),
        ("p = [1, 2, 3]\na = p[1:]\nb = p[-1]", {"p": [1, 2, 3], "a": [2, 3], "b": 3}),
        ("m = dict(x=dict(y=5))\na = m['x']['y']", {"m": {"x": {"y": 5}}, "a": 5}),
        ("t = 1\na = t\ndel t", {"a": 1}),
        ("a = dict()\na = 2", {"a": 2}),
    ],
)  # fmt: skip
def test_values(text: str, expected: Any) -> None:
    found = values(text)
    assert found == expected
    assert repr(found) == repr(expected)  # 1 is not 1.0, and a list no tuple


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a = 1\nimport os", 2, "an import"),
        ("from mmengine.config import read_base", 1, "an import"),
        ("with read_base():\n    from .base import *", 1, "a with block"),
        ("a = __import__('os').system('touch gone')", 1, r"the call __import__\('os'\).system\(...\)"),
        ("a = open('/etc/passwd').read()", 1, "the call open"),
        ("a = dict\nb = a(x=1)", 1, "the name dict, which nothing is assigned to"),
        ("dict = 1\nb = dict(x=1)", 2, r"the call dict\(...\)"),
        ("a = dict([('x', 1)])", 1, r"the call dict\(...\)"),
        ("a = [i for i in range(3)]", 1, "a comprehension"),
        ("a = 1 if True else 2", 1, "a conditional"),
        ("a = lambda: 1", 1, "a lambda"),
        ("def f():\n    pass", 1, "a function"),
        ("a = dict()\na.update(b=1)", 2, "an expression that assigns nothing"),
        ("a = dict()\na['b'] = 1", 2, "an assignment to something else than one name"),
        ("a = 1\na += 1", 2, "a change of a value"),
        ("a = {1, 2}", 1, "a set"),
        ("a = b", 1, "the name b, which nothing is assigned to"),
        ("a = [1][5]", 1, r"\[1\]\[5\], which is not there"),
        ("a = dict(b=1).c", 1, r"dict\(b=1\).c, which is not there"),
        ("a = 1 / 0", 1, "1 / 0, which has no value"),
        ("a = 'x' - 1", 1, "arithmetic on something else than numbers"),
        ("a = '%s' % 3", 1, "arithmetic on something else than numbers"),
        ("a = f'{1.5:.3f}'", 1, "an f-string that formats"),
        ("a = dict(**[1])", 1, r"\*\* before something else than a dict"),
        ("_base_ = 'other.py'", 1, "_base_ in a text that stands alone"),
    ],
)
def test_what_only_running_could_tell_is_refused(text: str, line: int, what: str) -> None:
    with pytest.raises(InputError, match=rf"^config.py: line {line}: cannot be read; found {what}") as caught:
        values(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a = (", "a = 1\x00", "a = " + "(" * 5000, "/work/config.py\na = 1"])
def test_no_python(text: str) -> None:
    with pytest.raises(InputError, match="config.py: .*not Python"):
        values(text)


@pytest.mark.parametrize(
    "text",
    [
        "a = 9 ** 9 ** 9",
        "a = 10 ** 60\nb = a ** 60",
        "a = 'x' * 10 ** 9",
        "a = [0] * 1000\n" + "a = a + a\n" * 40,
        "a = 'xx'\n" + "a = f'{a}{a}'\n" * 60,
        "a = dict(x=1)\n" + "a = dict(x=a, y=a)\n" * 60,  # small in memory, endless to walk through
    ],
)
def test_a_few_lines_do_not_fill_the_memory(text: str) -> None:
    with pytest.raises(InputError, match="too large for a config|has no value"):
        values(text)


def test_deep_nesting_is_no_crash() -> None:
    with pytest.raises(InputError, match="not Python|nested too deeply"):
        values("a = " + "-" * 90000 + "1")


# --- several files ----------------------------------------------------------------------------------------------------


def test_bases_are_merged_key_by_key(folder: Path) -> None:
    config = child(folder, "model = dict(backbone=dict(norm_cfg=dict(requires_grad=False)), heads=[dict(k=3)])")
    assert config == {
        "model": {
            "type": "MaskRCNN",
            "backbone": {"depth": 101, "norm_cfg": {"type": "BN", "eps": 1e-5, "requires_grad": False}},
            "heads": [{"k": 3}],  # lists are replaced
        },
        "root": "data/",
        "steps": [{"type": "Load"}, {"type": "Resize"}],
    }


def test_delete_replaces(folder: Path) -> None:
    config = child(folder, "model = dict(backbone=dict(_delete_=True, type='Swin', _scope_='x'))")
    assert config["model"] == {"type": "MaskRCNN", "backbone": {"type": "Swin", "_scope_": "x"}, "heads": [{"k": 80}]}


@pytest.mark.parametrize(
    "reference", ["_base_.model.backbone.depth", "{{_base_.model.backbone.depth}}", "{{ _base_.model.backbone.depth }}"]
)
def test_values_of_the_bases(folder: Path, reference: str) -> None:
    assert child(folder, f"new = dict(d={reference}, s=_base_.steps[1])")["new"] == {"d": 101, "s": {"type": "Resize"}}


def test_assignments_to_the_bases(folder: Path) -> None:
    config = child(folder, "_base_.model.backbone.depth = 152\n_base_.steps[0].type = 'New'\n_base_['root'] = 'e/'")
    assert config["model"]["backbone"] == {"depth": 152, "norm_cfg": {"type": "BN", "eps": 1e-5}}
    assert (config["steps"], config["root"]) == ([{"type": "New"}, {"type": "Resize"}], "e/")
    with pytest.raises(InputError, match="line 2: .*an assignment to neck, which is not there"):
        child(folder, "_base_.neck.channels = 1")


def test_names_of_the_bases_are_not_in_scope(folder: Path) -> None:
    with pytest.raises(InputError, match="line 2: .*the name root, which nothing is assigned to"):
        child(folder, "a = root + 'x'")


def test_merge() -> None:
    base = {"a": {"b": 1, "c": {"d": 2}}, "e": [1]}
    assert merge({"a": {"c": {"d": 3}}, "e": 5}, base) == {"a": {"b": 1, "c": {"d": 3}}, "e": 5}
    assert merge({"a": {"_delete_": True, "x": 1}}, base) == {"a": {"x": 1}, "e": [1]}
    assert base == {"a": {"b": 1, "c": {"d": 2}}, "e": [1]}


@pytest.mark.parametrize(
    ("base", "text", "message"),
    [
        (
            "missing.py",
            "",
            r"missing.py: no such config; found named by .*; expected the files of _base_ in their",
        ),
        ("child.py", "", "child.py: _base_: is its own base"),
        ("mmdet::_base_/model.py", "", "_base_: cannot be followed; found mmdet::_base_/model.py"),
        ("model.yaml", "", "_base_: cannot be followed; found model.yaml"),
        (
            "middle.py",
            "root = dict(a=1)",
            r"root: a dict cannot be merged into it; found str; expected .*_delete_=True",
        ),
    ],
)
def test_bases_that_do_not_fit(folder: Path, base: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        child(folder, text, base)


def test_two_bases_may_not_set_the_same(folder: Path) -> None:
    (folder / "more.py").write_text("root = 'e/'")
    (folder / "child.py").write_text("_base_ = ['_base_/data.py', 'more.py']")
    with pytest.raises(InputError, match="_base_: two bases set the same; found root"):
        read_python_config(folder / "child.py")


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no such config"):
        read_python_config(tmp_path)
    (tmp_path / "bytes.py").write_bytes(b"a = '\xff'")
    with pytest.raises(InputError, match="bytes.py: not a text"):
        read_python_config(tmp_path / "bytes.py")
    monkeypatch.setattr(python_config, "MAX_BYTES", 10)
    (tmp_path / "long.py").write_text("a = 123456789")
    with pytest.raises(InputError, match="long.py: too large for a config; found 13 bytes"):
        read_python_config(tmp_path / "long.py")


def test_a_chain_of_files_ends(tmp_path: Path) -> None:
    for i in range(60):
        (tmp_path / f"{i}.py").write_text(f"_base_ = '{i + 1}.py'")
    with pytest.raises(InputError, match="needs more than 50 files"):
        read_python_config(tmp_path / "0.py")
