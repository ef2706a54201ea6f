"""The folder of a run while it goes: log, weights, state and, at the end, scores, pictures and a page about it all."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from maskrcnn.errors import InputError
from maskrcnn.evaluation.evaluate import Evaluation
from maskrcnn.inspection.weight_histograms import weight_statistics
from maskrcnn.model.config import to_dict
from maskrcnn.predictor import Predictor, load
from maskrcnn.training.checkpoint import TrainingState, save_state
from maskrcnn.training.distributed import World
from maskrcnn.training.recipe import Recipe
from maskrcnn.training.report import compare, draw_curves, draw_pictures, write_json, write_page
from maskrcnn.training.run_log import Bar, RunLog, progress_bar
from maskrcnn.training.schedule import Length, crossings, in_parts, length_of
from maskrcnn.training.start import Pictures
from maskrcnn.training.validate import Validation, places, score
from maskrcnn.weights.files import read_checkpoint, save_checkpoint

_SKIPPED_SHOWN = 20  # lines about bad annotations in the log
_ALARMS_SHOWN = 5  # lines about weights, at each validation
_BOARD_PICTURES = 3  # per validation, on TensorBoard


@dataclass(frozen=True)
class Plan:
    """What a run is going to do, settled before anything is written.

    settings: preset, weights, data, pictures and recipe, ready for JSON; what a resumed run has to share.
    origin: licence and source of the weights that come out.
    """

    recipe: Recipe
    pictures: Pictures
    settings: dict[str, Any]
    origin: dict[str, str]

    def __post_init__(self) -> None:
        in_parts(self.recipe, self.length)  # an impossible schedule is refused here

    @property
    def length(self) -> Length:
        return length_of(self.recipe, len(self.pictures.train))


class RunFolder:
    """Writes what the loop reports; made by the main process only, and used in a `with` block."""

    def __init__(self, folder: Path, plan: Plan, world: World, step: int, *, quiet: bool) -> None:
        self.folder, self.plan, self.world = folder, plan, world
        for unfinished in folder.glob(".*.unfinished"):  # of a process that was killed in mid-write
            unfinished.unlink()
        with ExitStack() as stack:
            self.bar: Bar = stack.enter_context(progress_bar(visible=not quiet))
            self.log: RunLog = stack.enter_context(RunLog(folder, step))
            self._stack = stack.pop_all()
        self._losses = ""  # of the last logged step, for the bar
        self._alarms: set[str] = set()  # layers that were told of

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def begin(self, state: TrainingState, notes: list[str]) -> None:
        """config.json, and the first lines of the log."""
        plan, model = self.plan, state.model
        facts = {
            "training_pictures": len(plan.pictures.train),
            "validation_pictures": len(plan.pictures.val),
            "classes": len(model.config.class_names),
            "weights": sum(parameter.numel() for parameter in model.parameters()),
            "device": str(self.world.device),
            "processes": self.world.size,
            "threads": torch.get_num_threads(),
            "precision": plan.recipe.precision,
        }
        self.log.write("start", state.progress.step, facts)
        self.bar.say(" · ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items()))
        if plan.settings["weights"] and state.progress.step == 0:
            notes = [f"start: the weights {plan.settings['weights']}", *notes]
        for note in [*notes, *self._warnings()]:
            self.log.write("note", state.progress.step, {"text": note})
            self.bar.say(note)
        content = {
            **plan.settings,
            "classes": dict(zip(model.config.class_names, model.config.category_ids, strict=True)),
            "model": to_dict(model.config),
            "recipe": to_dict(plan.recipe),
            "validation_image_ids": list(plan.pictures.val.image_ids),
            "versions": _versions(),
        }
        write_json(self.folder / "config.json", content)

    def _warnings(self) -> list[str]:
        pictures = self.plan.pictures
        lines = [f"left out: {error}" for error in pictures.skipped[:_SKIPPED_SHOWN]]
        if len(pictures.skipped) > _SKIPPED_SHOWN:
            lines.append(f"left out: {len(pictures.skipped) - _SKIPPED_SHOWN} more")
        if not pictures.judged:
            lines.append("the validation pictures hold no object, so there is no AP: the best weights are the last")
        return lines

    def losses(self, step: int, values: Mapping[str, float]) -> None:
        """A line of the log."""
        self.log.write("train", step, values)
        parts = {"objectness": "rpn_objectness", "anchor": "rpn_box", "class": "box_class", "box": "box_delta"}
        parts |= {"mask": "mask", "keypoint": "keypoint"}
        shown = (f"{short} {values[name]:.2f}" for short, name in parts.items() if name in values)
        self._losses = f"loss {values['total']:.2f}: {', '.join(shown)}"

    def stepped(self, state: TrainingState) -> None:
        """Move the bar; keep the weights of every so many epochs."""
        progress, length, every = state.progress, self.plan.length, self.plan.recipe.keep_every
        part_done = length.part_done(progress.step, progress.seconds)
        self.bar.show(part_done, f"step {progress.step} {self._losses}")
        if every and crossings(every, length.epochs(progress.step - 1), length.epochs(progress.step)):
            self._keep(state, f"epoch-{round(length.epochs(progress.step)):04d}", {})

    def validated(self, state: TrainingState, result: Validation) -> bool:
        """Log the scores, keep the weights as last and, if they are, as best; says whether to stop early."""
        progress, values, patience = state.progress, result.values(), self.plan.recipe.patience
        # on a tie the later weights have learned more, but they are no reason to go on
        is_best = result.ap is None or result.ap >= progress.best
        is_better = result.ap is None or result.ap > progress.best
        progress.validations_since_best = 0 if is_better else progress.validations_since_best + 1
        self._keep(state, "last", values)
        if is_best:
            progress.best, progress.best_step = result.ap or 0.0, progress.step
            self._keep(state, "best", values)
        self.log.write("validation", progress.step, values | {"seconds": progress.seconds, "best": is_best})
        predictor, val = Predictor(state.deployed, self.world.device), self.plan.pictures.val
        for number, i in enumerate(places(len(val), _BOARD_PICTURES)):
            self.log.picture(f"validation/{number}", progress.step, compare(predictor, val, i))
        self._look_at_weights(state)
        shown = ", ".join(f"{_readable(n)} {v:.3f}" for n, v in values.items() if n == "loss_total" or "ap" in n)
        self.bar.say(f"step {progress.step}, {_clock(progress.seconds)}: {shown}{' (best)' if is_best else ''}")
        stops = patience is not None and progress.validations_since_best >= patience
        if stops:
            self._note(state, f"no better AP in {patience} validations: stopped early, at step {progress.step}")
        return stops

    def _look_at_weights(self, state: TrainingState) -> None:
        """Histograms for TensorBoard; a note of each layer that is dead or has exploded, once."""
        layers = weight_statistics(state.deployed)
        self.log.weights(state.progress.step, layers)
        alarms = [layer for layer in layers if layer.alarm and layer.name not in self._alarms]
        for layer in alarms[:_ALARMS_SHOWN]:
            self._note(state, f"weights: {layer.warning}")
        if len(alarms) > _ALARMS_SHOWN:
            self._note(state, f"weights: {len(alarms) - _ALARMS_SHOWN} more layers are dead or have exploded")
        self._alarms |= {layer.name for layer in alarms}

    def save(self, state: TrainingState) -> None:
        save_state(self.folder, state, self.plan.settings)

    def failed(self, state: TrainingState, error: InputError) -> None:
        """The log's last words; weights and state stay as they were saved before."""
        step, seconds = state.progress.step, state.progress.seconds
        self.log.write("end", step, {"finished": False, "seconds": seconds, "error": str(error)})
        draw_curves(self.folder)

    def stopped(self, state: TrainingState) -> None:
        """The run was asked to stop before its end; the weights are kept as they are."""
        self._keep(state, "last", {})
        step, seconds = state.progress.step, state.progress.seconds
        self.log.write("end", step, {"finished": False, "seconds": seconds})
        draw_curves(self.folder)
        self.bar.say(f"stopped at step {step}; --resume goes on from there")

    def finish(self, state: TrainingState) -> Evaluation:
        """The best weights on every validation picture: scores, pictures, curves, and the page about the run."""
        progress = state.progress
        self.bar.show(1.0, "scoring the best weights")
        best = self.folder / "best.safetensors"
        predictor = load(best, device=str(self.world.device))
        scores = score(predictor, self.plan.pictures.val)
        scores.save(self.folder / "scores")
        kinds = {"mask": scores.mask, "keypoint": scores.keypoint, "box": scores.box}
        averages = {kind: part.ap for kind, part in kinds.items() if part is not None}
        found = {f"{kind}_ap": value for kind, value in averages.items() if value is not None}
        self.log.write("end", progress.step, {"finished": True, "seconds": progress.seconds, **found})
        draw_curves(self.folder)
        pictures = draw_pictures(self.folder / "validation", predictor, self.plan.pictures.val)
        training = read_checkpoint(best).metadata["training"]
        write_page(self.folder, self._facts(state, int(training["step"])), scores, pictures)
        return scores

    def _facts(self, state: TrainingState, best_step: int) -> dict[str, str]:
        plan, progress, recipe = self.plan, state.progress, self.plan.recipe
        epochs = plan.length.epochs(progress.step)
        return {
            "data": f"{plan.settings['data'] or 'a sequence'}: {len(plan.pictures.train)} pictures to learn from, "
            f"{len(plan.pictures.val)} to be judged by",
            "classes": ", ".join(state.model.config.class_names),
            "started from": _start(plan.settings),
            "length": f"{progress.step} steps of {recipe.batch_size} pictures ({epochs:.1f} epochs), "
            f"{_clock(progress.seconds)} on {self.world.device} in {recipe.precision}",
            "best weights": f"of step {best_step}",
        }

    def _keep(self, state: TrainingState, name: str, values: Mapping[str, float]) -> None:
        progress, settings = state.progress, self.plan.settings
        start = {key: settings[key] for key in ("preset", "weights", "pretrained_backbone", "data")}
        training = start | {"step": progress.step, "seconds": round(progress.seconds, 1), **values}
        metadata = self.plan.origin | {"training": training | {"recipe": to_dict(self.plan.recipe)}}
        save_checkpoint(self.folder / f"{name}.safetensors", state.deployed, metadata=metadata)

    def _note(self, state: TrainingState, text: str) -> None:
        self.log.write("note", state.progress.step, {"text": text})
        self.bar.say(text)


def _start(settings: Mapping[str, Any]) -> str:
    """What the weights were at step 0."""
    if settings["weights"]:
        return str(settings["weights"])
    backbone = "a pretrained backbone" if settings["pretrained_backbone"] else "nothing learned before"
    return f"preset {settings['preset']}, {backbone}"


def _readable(name: str) -> str:
    """mask_ap50 -> mask AP50; loss_total -> loss."""
    return name.removesuffix("_total").replace("_ap", " AP")


def _clock(seconds: float) -> str:
    """75 -> 1 min 15 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _versions() -> dict[str, str]:
    names = ("maskrcnn", "torch", "torchvision", "timm", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
