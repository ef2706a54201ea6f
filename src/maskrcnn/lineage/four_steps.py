"""Training in four steps, RPN and detector in turn, that ends with one network (Ren et al. 2015, 3.2).

    1  an RPN with its body learns alone
    2  a detector with a body of its own learns from what that RPN proposes
    3  a new RPN learns on the detector's body, which is fixed
    4  the heads learn on from what the new RPN proposes; body and RPN are fixed

In the end RPN and heads read the same features. With a mask head it is how Mask R-CNN was trained where it had to be
fast (He et al. 2017, 4.4).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from maskrcnn.data.dataset import Dataset
from maskrcnn.data.proposals import WithProposals
from maskrcnn.lineage.learning import Fitted, fit, recipe_for_bench
from maskrcnn.lineage.networks import as_trained, new_network
from maskrcnn.lineage.rpn_proposals import proposals_of_rpn
from maskrcnn.lineage.system import Bench, Stopwatch, Trained
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.training.recipe import Recipe, changed

SHARED = ("backbone", "fpn")  # what RPN and heads both read, where it is there
NAMES = ("step 1, RPN", "step 2, detector", "step 3, RPN", "step 4, heads")


@dataclass(frozen=True)
class FourSteps:
    """What each step ended with; the last one's model is the result. proposals: seconds of proposing, twice."""

    steps: tuple[Fitted, Fitted, Fitted, Fitted]
    proposals: float

    def trained(self) -> Trained:
        """The last network as a system."""
        seconds = {name: step.seconds for name, step in zip(NAMES, self.steps, strict=True)}
        training = {**seconds, "proposals": self.proposals}
        return as_trained(self.steps[-1].model, training, sum(step.steps for step in self.steps))


def four_steps(bench: Bench, config: MaskRCNNConfig, **changes: Any) -> FourSteps:
    """Train a detector of `config` in `bench.folder`, each step for a quarter of the minutes.

    As in Ren et al., the bodies of steps 1 and 2 start from pretraining (or from nothing) and know nothing of each
    other. Where there is a pyramid, it belongs to the body that RPN and heads share in the end.
    changes: of the recipe of every step. Errors: as of `fit`.
    """
    recipe = recipe_for_bench(bench, **{"minutes": bench.minutes / len(NAMES), **changes})
    learner, watch = _Learner(bench, recipe), Stopwatch()
    first = learner.fit(0, new_network(bench, config, number=1), bench.train, "rpn")
    with watch("proposals"):
        found = learner.proposals(0, first.model)
    alone = new_network(bench, replace(config, rpn=None), number=2)
    second = learner.fit(1, alone, WithProposals(bench.train, found), "heads")
    with_new_rpn = new_network(bench, config, number=3)
    take_over(with_new_rpn, second.model)
    fix(with_new_rpn, SHARED)
    third = learner.fit(2, with_new_rpn, bench.train, "rpn")
    with watch("proposals"):
        found = learner.proposals(2, third.model)
    whole = new_network(bench, config, number=4)
    take_over(whole, third.model)
    fix(whole, SHARED)
    fourth = learner.fit(3, whole, WithProposals(bench.train, found), "heads")
    return FourSteps((first, second, third, fourth), watch.seconds["proposals"])


def take_over(model: MaskRCNN, other: MaskRCNN) -> None:
    """Give `model` all weights of `other`, which may lack an RPN; `model` keeps its own then."""
    lacking, unknown = model.load_state_dict(other.state_dict(), strict=False)
    assert not unknown and all(name.startswith("rpn.") for name in lacking)


def fix(model: MaskRCNN, parts: Collection[str]) -> None:
    """These parts learn no more, nor do the statistics of their norms change (see `learning_mode`)."""
    for name, part in model.named_children():
        if name in parts:
            part.requires_grad_(False)


@dataclass(frozen=True)
class _Learner:
    """How every step learns and proposes: by one recipe, in folders of the bench."""

    bench: Bench
    recipe: Recipe

    def fit(self, step: int, model: MaskRCNN, pictures: Dataset, learn: Literal["rpn", "heads"]) -> Fitted:
        heads = {name for name, _ in model.named_children()} - {*SHARED, "rpn"}
        fix(model, heads if learn == "rpn" else {"rpn"})
        recipe = changed(self.recipe, {"loss": {"learn": learn}})
        told = partial(self.bench.progress, f"training, {NAMES[step]}")
        return fit(model, pictures, recipe, self.folder(step), told, self.bench.device)

    def proposals(self, step: int, model: MaskRCNN) -> list[Tensor]:
        limits = self.recipe.loss.limits(model.config.own_rpn)
        told = partial(self.bench.progress, "proposals")
        return proposals_of_rpn(model, self.bench.train, self.folder(step), limits, told)

    def folder(self, step: int) -> Path:
        return self.bench.folder / f"step-{step + 1}"
