"""Fast R-CNN: proposals from elsewhere, and one network that looks at the picture once (Girshick 2015).

What it changed: features are made once a picture and cut out for each region by RoIPool, where R-CNN ran the network on
every region; classes and boxes are learned together with the features, where R-CNN trained SVMs and regressors on top
of them. What stayed slow: the proposals, which are Selective Search's.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from maskrcnn.data.dataset import Dataset
from maskrcnn.data.proposals import WithProposals, read_proposals
from maskrcnn.lineage.learning import fit, recipe_for_bench
from maskrcnn.lineage.networks import new_network, train_at_once
from maskrcnn.lineage.proposing import proposals_of, seconds_of_proposing
from maskrcnn.lineage.rpn_proposals import proposals_of_rpn, propose_in
from maskrcnn.lineage.selective_search import selective_search
from maskrcnn.lineage.small import fast_rcnn_config, faster_rcnn_config
from maskrcnn.lineage.system import Bench, Stopwatch, System, Trained
from maskrcnn.predictor import Proposer
from maskrcnn.training.recipe import changed


def train(bench: Bench, **changes: Any) -> Trained:
    """On proposals of Selective Search, which are made once and kept in `bench.proposals`. changes: of the recipe."""
    found = proposals_of(
        bench.train, bench.proposals, lambda done, total: bench.progress("Selective Search", done / max(1, total))
    )
    trained = _train_on(WithProposals(bench.train, found), bench, selective_search, changes)
    seconds = seconds_of_proposing(bench.train, bench.proposals)  # of whoever searched first
    return replace(trained, training={"proposals": seconds, **trained.training})


def train_from_file(bench: Bench, file: str | Path, proposer: Proposer, **changes: Any) -> Trained:
    """On proposals that `write_proposals` wrote for the pictures of `bench.train`.

    proposer: what makes such proposals, for new pictures.
    Errors: `InputError` for a file that is none, is damaged, or is of other pictures.
    """
    return _train_on(WithProposals(bench.train, read_proposals(file, bench.train)), bench, proposer, changes)


def train_on_rpn(bench: Bench, **changes: Any) -> Trained:
    """On proposals of an RPN with a body of its own, which learns for half of the time (Ren et al. 2015, Table 2)."""
    changes = {"minutes": bench.minutes / 2, **changes}
    recipe = changed(recipe_for_bench(bench, **changes), {"loss": {"learn": "rpn"}})
    first = fit(
        new_network(bench, faster_rcnn_config(bench, bench.train.classes), number=1),
        bench.train,
        recipe,
        bench.folder / "rpn",
        lambda done: bench.progress("training, RPN", done),
        bench.device,
    )
    limits, watch = recipe.loss.limits(first.model.config.own_rpn), Stopwatch()
    with watch("proposals"):
        told = partial(bench.progress, "proposals")
        found = proposals_of_rpn(first.model, bench.train, bench.folder / "rpn", limits, told)
    trained = _train_on(WithProposals(bench.train, found), bench, partial(propose_in, first.model), changes)
    return replace(
        trained,
        training={"RPN": first.seconds} | watch.seconds | trained.training,
        facts={"steps": trained.facts["steps"] + first.steps},
    )


def _train_on(pictures: Dataset, bench: Bench, proposer: Proposer, changes: dict[str, Any]) -> Trained:
    return train_at_once(bench, fast_rcnn_config(bench, bench.train.classes), pictures, proposer, **changes)


SYSTEM = System("fast-rcnn", "Fast R-CNN", "Girshick 2015", train)
ON_RPN = System("fast-rcnn-rpn", "Fast R-CNN, proposals of an RPN", "Ren et al. 2015", train_on_rpn)
