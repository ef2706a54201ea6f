"""The notebook runs from top to bottom in a real kernel, and what it shows is so."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "mask_rcnn_step_by_step.ipynb"
SAID = "what the cells left behind: "

# run after the last cell, where all of the notebook's variables are in reach
ASK = f"""
import json
import sys

left = dict(
    folder=str(maskrcnn.__path__[0]),
    same=same,
    stages=sorted({{figure.stage for figure in drawn.values()}}),
    anchors=[cells * per_cell, len(steps.anchors)],
    best_iou=[float(iou.max()), float(next(f for f in outcomes if f.index == 0).found)],
    decoded=float((moved - refined).abs().max()),
    level=[f"p{{min(max(k, 2), 5)}}", first_level],
    mask=list(one.chosen.shape),
    outcomes=[fate.gate for fate in outcomes],
    lost=[fate.index for fate in lost],
    changed=[fate.gate for fate in changed],
    by_size=by_size,
    why=why.summary(),
    foreign=[len(objects), len(foreign_outcomes), sum(fate.found for fate in foreign_outcomes)],
    ap=scores.mask.ap,
    alarms=alarms,
    broken=broken_alarms,
    silent=[name for name, layer in silent.items() if layer.alarm],
)
print({SAID!r} + json.dumps(left))
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    book = nbformat.read(NOTEBOOK, as_version=4)
    book.cells.append(nbformat.v4.new_code_cell(ASK))
    folder = tmp_path_factory.mktemp("notebook")
    nbclient.NotebookClient(book, timeout=500, resources={"metadata": {"path": str(folder)}}).execute()
    assert not list(folder.iterdir())  # it writes nothing
    return book


@pytest.fixture(scope="module")
def left(executed: Any) -> dict[str, Any]:
    text = "".join(output.get("text", "") for output in executed.cells[-1].outputs)
    values: dict[str, Any] = json.loads(text[text.index(SAID) + len(SAID) :])
    return values


def code_cells() -> list[dict[str, Any]]:
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def test_it_is_stored_without_outputs_and_small() -> None:
    assert NOTEBOOK.stat().st_size < 100_000
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code_cells())
    assert all(len(cell["source"]) <= 20 for cell in code_cells())  # a few lines each


def test_every_cell_runs_in_order_and_complains_of_nothing(executed: Any) -> None:
    cells = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(code_cells()) + 2))
    complaints = [output.text for cell in cells for output in cell.outputs if output.get("name") == "stderr"]
    assert [text for text in complaints if "IProgress not found" not in text] == []  # of tqdm, where no widgets are


def test_it_shows_a_picture_of_every_stage(executed: Any, left: dict[str, Any]) -> None:
    pictures = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in pictures if "image/png" in output.get("data", {})]
    shown = sum(len(re.findall(r"\bshow\(", "".join(cell["source"]))) for cell in code_cells()) - 1  # but its def
    assert len(pictures) == shown > 20
    stages = ["anchors", "boxes", "features", "input", "levels", "masks", "proposals", "result"]
    assert left["stages"] == stages


def test_what_it_computes_by_hand_is_what_the_detector_has(left: dict[str, Any]) -> None:
    assert left["same"] is True
    assert left["anchors"][0] == left["anchors"][1] == 2 * (128 * 160 + 64 * 80 + 32 * 40 + 16 * 20)
    assert 0.5 <= left["best_iou"][0] <= 1
    assert left["decoded"] < 1e-3  # px
    assert left["level"][0] == left["level"][1]
    assert left["mask"] == [28, 28]


def test_the_reasons_of_the_notebook_add_up(left: dict[str, Any]) -> None:
    from maskrcnn.inspection.gates import GATES

    assert len(left["outcomes"]) == 26
    assert [gate for gate in left["outcomes"] if gate is not None]
    assert left["lost"] == [i for i, gate in enumerate(left["outcomes"]) if gate is not None]
    small, large = left["outcomes"].index("anchors"), left["changed"].index("anchors")  # of which the text speaks
    assert left["changed"][small] not in (None, "anchors") and left["outcomes"][large] is None
    assert left["by_size"]["512"] < left["by_size"]["1024"] <= 34
    why = left["why"]
    assert why["objects"] == why["found"] + sum(why["lost"].values()) == 26 + 97 + 28
    assert set(why["lost"]) == set(GATES)
    assert 0.3 < left["ap"] < 0.9
    objects, told, found = left["foreign"]
    assert objects == told and objects / 2 < found


def test_only_the_broken_detector_raises_alarms(left: dict[str, Any]) -> None:
    assert left["alarms"] == []
    assert len(left["broken"]) == 1 and left["broken"][0].startswith("fpn.output.p4.conv.weight is dead")
    assert any("fpn.output.p4" in name for name in left["silent"])
    assert not any("p3" in name for name in left["silent"])


def test_the_kernel_ran_this_package(left: dict[str, Any]) -> None:
    import maskrcnn

    assert Path(left["folder"]) == Path(maskrcnn.__file__).parent
