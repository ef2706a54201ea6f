"""`maskrcnn train`: labelled pictures in, a folder with weights, scores and pictures of them out."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from tyro.conf import Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from maskrcnn.cli.options import CommandOptions, WrongUse


def presets_own(metavar: str) -> Any:
    """An option that is None where it is left out, and then the preset's own."""
    return arg(metavar=metavar, help_behavior_hint="(default: the preset's own)")


def one_of(*words: str) -> Any:
    """The words that an option takes; without this, tyro counts None as one of them where it may be left out."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(words) + "}",
        instance_from_str=lambda args: args[0],
        is_instance=lambda value: value is None or value in words,
        str_from_instance=lambda value: [str(value)],
        choices=words,
    )


# Names and types of what follows are those of `training.recipe`, which is not imported, since it loads torch; a test
# compares them.
Whole = Annotated[int | None, presets_own("INT")]
Number = Annotated[float | None, presets_own("FLOAT")]
Numbers = Annotated[tuple[float, ...] | None, presets_own("FLOAT FLOAT ...")]
Preset = Literal[  # as in model/presets.py
    "nano", "r50-fpn", "r101-fpn", "r50-c4", "r50-dc5", "cascade-r50-fpn", "keypoint-r50-fpn"
]
Flag = Annotated[Literal["true", "false"] | None, one_of("true", "false"), presets_own("{true,false}")]


@dataclass(frozen=True, kw_only=True)
class StartOptions(CommandOptions):
    """What to learn from, what to start from, and where it goes."""

    data: Annotated[Positional[str], arg(metavar="DATA")]
    """A COCO file, a folder that holds one (or one each for train and val), or shapes: the drawn data set."""

    out: Path
    """Folder of the run; a new one, but with --resume."""

    preset: Annotated[
        Preset | None,
        one_of(*get_args(Preset)),
        arg(
            metavar="{" + ",".join(get_args(Preset)) + "}",
            help_behavior_hint="(default: nano, or what --weights were trained with)",
        ),
    ] = None
    """What to build and how to train it; with --weights only how."""

    weights: Annotated[str | None, arg(metavar="W", help_behavior_hint="(default: none, start from nothing)")] = None
    """Fine-tune this detector: a name that ships with the package (nuclei) or that `maskrcnn weights list` shows, or a
    file; heads of other classes are made anew."""

    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: what the weights say)")] = None
    """What --weights do not say: a .yaml or .json file with fields of maskrcnn's config, Detectron2's config.yaml, or
    MMDetection's .py, which is read and never run."""

    pretrained_backbone: bool = False
    """Start from a backbone that has learned to classify; fetched by timm."""

    resume: bool = False
    """Go on where a run in --out was stopped, with its own recipe; DATA, --val and the split as they were."""

    val: Annotated[str | None, arg(metavar="DATA", help_behavior_hint="(default: DATA's own, else a part of it)")] = (
        None
    )
    """Pictures to be judged by: as DATA."""

    val_fraction: float = 0.1
    """Share of the pictures to be judged by where DATA has to be split, 0 to 1; the same ones for the same --seed."""

    images: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="(default: found from DATA)")] = None
    """Folder of the pictures."""

    skip_bad: bool = False
    """Leave out pictures and annotations that are wrong, rather than refuse to start."""

    scale: Number = None
    """How many times larger than the pictures the network sees them."""

    device: str = "auto"
    """auto (CUDA, else MPS, else the CPU), cpu, cuda, cuda:1, mps."""

    quiet: bool = False
    """No progress, no tables: only errors and the name of the result."""

    licence: str = "unknown"
    """Of the weights that come out; written into them."""

    source: Annotated[str, arg(help_behavior_hint="(default: DATA)")] = ""
    """Where the training pictures are from; written into the weights."""


@dataclass(frozen=True, kw_only=True)
class AugmentationOptions:
    """What a picture goes through before the network learns from it."""

    crop: Annotated[int | Literal["none"] | None, presets_own("INT|none")] = None
    """Side of a square cut from the rescaled picture, in px; none: learn from whole pictures."""

    scale: Annotated[tuple[float, float] | None, presets_own("FLOAT FLOAT")] = None
    """Of crops: smallest and largest factor, around the size at which the network detects."""

    shortest: Annotated[tuple[int, ...] | None, presets_own("INT INT ...")] = None
    """Of whole pictures: shorter sides to draw from, in px."""

    longest: Whole = None
    """Of whole pictures: most that the longer side may have, in px."""

    flip: Number = None
    """Probability of a mirror image, left to right, 0 to 1."""

    flip_vertical: Number = None
    """Probability of a mirror image upside down, 0 to 1; for pictures without an up."""

    turn: Number = None
    """Probability of a turn by 90, 180 or 270 degrees, 0 to 1."""

    photometric: Number = None
    """Strength of changes in brightness, contrast, colour, blur and noise: 0 none, 1 usual."""

    grey: Number = None
    """Probability of losing all colour, 0 to 1."""

    invert: Number = None
    """Probability of a negative, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class RPNLossOptions:
    """Where objects may be: learning of the region proposal network."""

    anchors_per_image: Whole = None
    """Anchors sampled from each picture."""

    foreground_fraction: Number = None
    """Most of them that lie on objects, 0 to 1."""

    foreground_iou: Number = None
    """Overlap from which an anchor is an object, 0 to 1."""

    background_iou: Number = None
    """Overlap below which an anchor is background, 0 to 1."""

    objectness_weight: Number = None
    """Weight in the total."""

    box_weight: Number = None
    """Weight in the total: the lambda of Ren et al. 2015."""

    beta: Number = None
    """Where smooth L1 turns from square to linear; 0: plain L1."""


@dataclass(frozen=True, kw_only=True)
class BoxLossOptions:
    """Which class, and where exactly: learning of the box head."""

    rois_per_image: Whole = None
    """Proposals sampled from each picture."""

    foreground_fraction: Number = None
    """Most of them that lie on objects, 0 to 1."""

    foreground_iou: Number = None
    """Overlap from which a proposal is an object, 0 to 1."""

    class_weight: Number = None
    """Weight in the total."""

    box_weight: Number = None
    """Weight in the total."""

    beta: Number = None
    """Where smooth L1 turns from square to linear; 0: plain L1."""


@dataclass(frozen=True, kw_only=True)
class MaskLossOptions:
    """Which pixels: learning of the mask head."""

    rois_per_image: Annotated[int | Literal["all"] | None, presets_own("INT|all")] = None
    """Proposals on objects that it learns from, of each picture; all: those of the box head."""

    weight: Number = None
    """Weight in the total."""

    binary_target: Flag = None
    """Whether a cell of the true mask is 0 or 1, rather than its covered part."""

    aligned_target: Flag = None
    """Whether the true mask is cut by the pixel model of this package; false: by torchvision's."""


@dataclass(frozen=True, kw_only=True)
class CascadeLossOptions:
    """What the later stages of a cascade learn from; one number for each."""

    foreground_ious: Numbers = None
    """Overlaps from which a box is an object, 0 to 1."""

    weights: Numbers = None
    """Weights of the stages' losses in the total."""


@dataclass(frozen=True, kw_only=True)
class KeypointLossOptions:
    """Where the joints are: learning of the keypoint head."""

    rois_per_image: Annotated[int | Literal["all"] | None, presets_own("INT|all")] = None
    """Proposals on objects that it learns from, of each picture; all: those of the box head."""

    weight: Number = None
    """Weight in the total."""

    normalise: Annotated[
        Literal["visible", "possible"] | None, one_of("visible", "possible"), presets_own("{visible,possible}")
    ] = None
    """Divide by the keypoints that are learned from, or by as many as there could be."""


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """What the losses are computed from."""

    rpn: RPNLossOptions = field(default_factory=RPNLossOptions)
    box: BoxLossOptions = field(default_factory=BoxLossOptions)
    cascade: CascadeLossOptions = field(default_factory=CascadeLossOptions)
    mask: MaskLossOptions = field(default_factory=MaskLossOptions)
    keypoint: KeypointLossOptions = field(default_factory=KeypointLossOptions)

    pre_nms_top_n: Whole = None
    """Proposals of each level before NMS."""

    post_nms_top_n: Whole = None
    """Proposals of each picture after NMS."""

    learn: Annotated[
        Literal["all", "rpn", "heads"] | None, one_of("all", "rpn", "heads"), presets_own("{all,rpn,heads}")
    ] = None
    """The whole detector, or its RPN or its heads alone; the body learns with either, unless --freeze."""


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """How to train: the fields of a recipe."""

    minutes: Number = None
    """Length of the run in minutes of wall time; the learning rate then follows the clock."""

    epochs: Number = None
    """Length of the run in passes over the training pictures."""

    steps: Whole = None
    """Length of the run in optimizer steps."""

    batch_size: Whole = None
    """Pictures per optimizer step, over all processes and accumulated parts."""

    accumulate: Whole = None
    """Parts that a batch is computed in, for small memory."""

    recompute: Flag = None
    """Compute activations a second time in the backward pass, for small memory: about half, and a third more time."""

    optimizer: Annotated[Literal["sgd", "adamw"] | None, one_of("sgd", "adamw"), presets_own("{sgd,adamw}")] = None
    """SGD with momentum, or AdamW."""

    learning_rate: Number = None
    """At a batch of --reference-batch; it grows and shrinks with the batch."""

    reference_batch: Whole = None
    """The batch size that --learning-rate is meant for, pictures."""

    momentum: Number = None
    """Of SGD, 0 to below 1."""

    weight_decay: Number = None
    """Per step and unit of learning rate; not on norms and biases."""

    schedule: Annotated[Literal["cosine", "step"] | None, one_of("cosine", "step"), presets_own("{cosine,step}")] = None
    """How the learning rate falls: along half a cosine, or to a tenth at each of --milestones."""

    schedule_unit: Annotated[
        Literal["part", "epochs", "steps"] | None, one_of("part", "epochs", "steps"), presets_own("{part,epochs,steps}")
    ] = None
    """What --warmup and --milestones are counted in; part: of the run, 0 to 1."""

    warmup: Number = None
    """How long the learning rate rises at the start, in --schedule-unit."""

    milestones: Numbers = None
    """After each of which the schedule step divides the rate by 10, in --schedule-unit."""

    clip_norm: Number = None
    """Longest gradient; longer ones are shortened to it."""

    precision: Annotated[
        Literal["auto", "float32", "bf16"] | None, one_of("auto", "float32", "bf16"), presets_own("{auto,float32,bf16}")
    ] = None
    """Of the forward pass; auto: what is faster on this machine."""

    ema: Number = None
    """Decay per step of the averaged weights that are scored and kept, 0 to below 1; 0: no average."""

    freeze: Whole = None
    """Stages of the backbone that do not learn: 0 none, 1 the stem, 2 also c2, to 5, all."""

    colour_weight: Number = None
    """How many times as often a picture with colour is seen as a grey one."""

    evaluate_every: Number = None
    """Epochs between validations (with --minutes: a tenth of the run, at least three minutes); 0: only at the end."""

    validation_pictures: Annotated[int | Literal["all"] | None, presets_own("INT|all")] = None
    """At most so many, evenly spread, while running; the end scores all."""

    keep_every: Whole = None
    """Also keep the weights of every so many epochs."""

    patience: Whole = None
    """Early stopping: end the run after so many validations without a better AP."""

    save_minutes: Number = None
    """Between saves of the state: the most that is lost when the run is killed."""

    log_every: Whole = None
    """Steps between lines of the log."""

    workers: Whole = None
    """Processes that prepare pictures; 0: none but this one."""

    seed: Whole = None
    """Of first weights, order, changes of pictures, and the split."""

    augmentation: AugmentationOptions = field(default_factory=AugmentationOptions)
    loss: LossOptions = field(default_factory=LossOptions)


@dataclass(frozen=True, kw_only=True)
class Options(RecipeOptions, StartOptions):
    """Train a detector on labelled pictures: from nothing, from a pretrained backbone, or from another detector.

    Writes best and last weights, the log, curves, scores and pictures to --out. Ctrl-C ends the run after the step at
    work, with status 1; --resume goes on from there. Several processes: torchrun --nproc-per-node 2 -m maskrcnn train

    The presets' own recipes: nano learns for 60 minutes in batches of 8 with AdamW, the others for 24 epochs in
    batches of 16 with SGD. config.json in --out has every value.
    """


def run(options: Options) -> int:
    """Train, then print the scores; 1 if the run was stopped before its end."""
    if options.weights is not None and options.pretrained_backbone:
        raise WrongUse("has no use with --weights", field="--pretrained-backbone", expected="one of the two")
    if options.config is not None and options.weights is None:
        raise WrongUse("has no use without --weights", field="--config", expected="both")
    lengths = [f"--{name}" for name in ("minutes", "epochs", "steps") if getattr(options, name) is not None]
    if len(lengths) > 1:
        raise WrongUse("say different lengths", field=" and ".join(lengths), expected="one of them")
    for name in ("scale", "config"):
        if options.resume and getattr(options, name) is not None:
            raise WrongUse("has no use with --resume", field=f"--{name}", expected="the run's own")
    from maskrcnn.training.train import train

    names = [option.name for option in fields(StartOptions) if option.name != "debug"]
    done = train(**{name: getattr(options, name) for name in names}, **recipe_changes(options))
    if not done.finished:
        return 1
    if done.scores is not None:  # one of several processes has them
        if not options.quiet:
            from rich.console import Console

            Console().print(*done.scores.table())
        print(f"best weights: {done.best}")
    return 0


def recipe_changes(options: RecipeOptions) -> dict[str, Any]:
    """The fields of the recipe that were given, as `training.recipe.changed` takes them."""
    return _given(options, {option.name for option in fields(RecipeOptions)})


def _given(options: Any, names: set[str]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for name in names:
        value = getattr(options, name)
        if is_dataclass(value):
            value = _given(value, {option.name for option in fields(value)}) or None
        if value is not None:
            changes[name] = _WORDS.get(value, value) if isinstance(value, str) else value
    return changes


_WORDS = {"none": None, "all": None, "true": True, "false": False}  # what the recipe says otherwise
