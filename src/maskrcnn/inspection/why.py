"""Why a detector misses what it misses, over a whole data set: objects lost at each gate, and the AP that each costs.

The AP with a fault mended is TIDE's (Bolya et al. 2020, 2.3): objects lost at a gate are taken out of those to find;
a detection of the wrong class or place becomes right, unless its object is found or a better one becomes it; all other
false positives go.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskrcnn.inspection.average_precision import average_precision
from maskrcnn.inspection.false_positives import KINDS, false_positives
from maskrcnn.inspection.fate import GATES, SETTINGS
from maskrcnn.inspection.gates import fates_of
from maskrcnn.inspection.matched import matched, truth_of
from maskrcnn.inspection.probe import Steps
from maskrcnn.ops.files import whole_file

if TYPE_CHECKING:
    from rich.table import Table

FALSE = "false_positive_"  # before a kind in `Why.ap_if_fixed`, where gates of the same names stand too
KIND_SETTINGS: Mapping[str, str] = {
    "class": "more labelled examples of the classes that are mixed up",
    "place": "a larger --size, a larger M, or boxes refined in turn (preset cascade-r50-fpn)",
    "both": "longer training",
    "duplicate": "a lower --nms-iou, or --mask-nms-iou",
    "background": "pictures without objects among the training data; is every object labelled?",
}


@dataclass(frozen=True)
class Why:
    """What became of all objects and detections.

    objects: to find, crowd regions apart; each is found, or lost at one of `GATES`: lost {gate: number}.
    false_positives: {kind of `KINDS`: number}. ap: 0..1 at `iou_threshold`, as TIDE has it; None without objects and
    detections. ap_if_fixed: the AP there would be without {gate}, {"missed"} (TIDE's, objects that not even a mended
    detection finds) and {"false_positive_" + kind}. detections: that count.
    """

    objects: int
    found: int
    lost: Mapping[str, int]
    false_positives: Mapping[str, int]
    ap: float | None
    ap_if_fixed: Mapping[str, float | None]
    iou_threshold: float
    detections: int

    def summary(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return {
            "objects": self.objects,
            "found": self.found,
            "lost": dict(self.lost),
            "false_positives": dict(self.false_positives),
            "ap_if_fixed": dict(self.ap_if_fixed),
            "ap": self.ap,
            "iou_threshold": self.iou_threshold,
            "detections": self.detections,
            "settings": {**SETTINGS, **{FALSE + kind: text for kind, text in KIND_SETTINGS.items()}},
        }

    def save(self, folder: str | Path) -> Path:
        """Write why.json, whole or not at all; returns its path."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        path = Path(folder) / "why.json"
        with whole_file(path) as unfinished:
            unfinished.write_text(json.dumps(self.summary(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return path

    def table(self) -> Table:
        """Each gate and kind of false positive, what it costs, and the setting that most likely helps."""
        from rich.table import Table

        ap = "-" if self.ap is None else f"{self.ap:.3f}"
        title = (
            f"{self.found} of {self.objects} objects found at IoU {self.iou_threshold:g}, AP {ap}: why not the others"
        )
        table = Table(title=title, title_justify="left", show_edge=False)
        table.add_column("lost at", min_width=13)
        table.add_column("number", justify="right", min_width=6)
        table.add_column("AP won", justify="right", min_width=6)
        table.add_column("what may help")
        for gate in GATES:
            table.add_row(gate, str(self.lost[gate]), self._won(gate), SETTINGS[gate])
        table.add_section()
        for kind in KINDS:
            cells = str(self.false_positives[kind]), self._won(FALSE + kind), KIND_SETTINGS[kind]
            table.add_row(f"wrong: {kind}", *cells)
        return table

    def _won(self, name: str) -> str:
        after = self.ap_if_fixed[name]
        return "-" if after is None or self.ap is None else f"{max(after - self.ap, 0):.3f}"


@dataclass(eq=False)
class Reasons:
    """Gathers the pictures of a data set, one by one; `why` sums them up.

    iou_threshold: overlap from which an object is found. masks: whether overlap is of masks; None: where detector and
    truth have them. labels: those detections that count; None: all. `evaluate` leaves out classes that the data lacks.
    """

    iou_threshold: float = 0.5
    masks: bool | None = None
    labels: Collection[int] | None = None
    _pictures: list[_Picture] = field(default_factory=list, repr=False)
    _lost: Counter[tuple[str, int]] = field(default_factory=Counter, repr=False)  # (gate, label) -> number

    def add(self, steps: Steps) -> None:
        """One picture with its ground truth."""
        found = matched(steps, self.iou_threshold, self.masks)
        truth, near = truth_of(steps), found.near
        labels = truth.gt_labels.cpu().numpy()
        counts = ~found.in_crowd
        if self.labels is not None:
            counts &= np.isin(near.labels, list(self.labels))
        for fate in fates_of(steps, found):
            if fate.gate is not None:
                self._lost[fate.gate, int(labels[fate.index])] += 1
        wrong = false_positives(found, ~counts)
        picture = _Picture(
            scores=near.scores[counts],
            labels=near.labels[counts],
            is_right=found.gt_index[counts] >= 0,
            kind=wrong.kind[counts],
            mended_label=np.where(wrong.mended >= 0, np.append(labels, 0)[wrong.mended], 0)[counts],
            object_labels=labels[~near.is_crowd],
            missed_labels=labels[wrong.missed],
        )
        self._pictures.append(picture)

    def why(self) -> Why:
        """What all pictures so far come to."""
        every = _joined(self._pictures)
        top = max([0, *every.labels.tolist(), *every.object_labels.tolist()])
        objects = np.bincount(every.object_labels, minlength=top + 1)
        lost = {gate: sum(n for (at, _), n in self._lost.items() if at == gate) for gate in GATES}
        fixed = {gate: every.ap(objects - self._lost_labels(gate, top)) for gate in GATES}
        fixed["missed"] = every.ap(objects - np.bincount(every.missed_labels, minlength=top + 1))
        for position, kind in enumerate(KINDS):
            fixed[FALSE + kind] = every.mended(position).ap(objects)
        return Why(
            objects=len(every.object_labels),
            found=int(every.is_right.sum()),
            lost=lost,
            false_positives={kind: int((every.kind == position).sum()) for position, kind in enumerate(KINDS)},
            ap=every.ap(objects),
            ap_if_fixed=fixed,
            iou_threshold=self.iou_threshold,
            detections=len(every.scores),
        )

    def _lost_labels(self, gate: str, top: int) -> np.ndarray:
        """(top + 1,) how many objects of each label were lost at a gate."""
        return np.array([self._lost[gate, label] for label in range(top + 1)], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class _Picture:
    """The D detections that count and the G objects of a picture, or of all.

    mended_label: (D,) int64, the class under which a detection would be right without its fault; 0 for none.
    """

    scores: np.ndarray
    labels: np.ndarray
    is_right: np.ndarray
    kind: np.ndarray
    mended_label: np.ndarray
    object_labels: np.ndarray
    missed_labels: np.ndarray

    def ap(self, objects: np.ndarray) -> float | None:
        return average_precision(self.scores, self.labels, self.is_right, objects)

    def mended(self, kind: int) -> _Picture:
        """As it would be without the fault `kind`: its detections are right, or gone."""
        has_fault = self.kind == kind
        keep = ~has_fault | (self.mended_label > 0)
        labels = np.where(has_fault, self.mended_label, self.labels)
        is_right = self.is_right | has_fault
        return _Picture(
            self.scores[keep],
            labels[keep],
            is_right[keep],
            self.kind[keep],
            self.mended_label[keep],
            self.object_labels,
            self.missed_labels,
        )


def _joined(pictures: list[_Picture]) -> _Picture:
    def all_of(name: str, dtype: type = np.int64) -> np.ndarray:
        return np.concatenate([np.zeros(0, dtype), *(getattr(picture, name) for picture in pictures)])

    return _Picture(
        scores=all_of("scores", np.float64),
        labels=all_of("labels"),
        is_right=all_of("is_right", np.bool_),
        kind=all_of("kind"),
        mended_label=all_of("mended_label"),
        object_labels=all_of("object_labels"),
        missed_labels=all_of("missed_labels"),
    )
