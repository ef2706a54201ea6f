"""Score a detector on the validation pictures of `nuclei`: all, grey and colour.

    python benchmarks/nuclei.py --weights nuclei --data DATA/nuclei

Prints box and mask AP at 100 and 300 detections a picture, the seconds it took, and the time it was trained.
"""

from __future__ import annotations

import argparse
import os

from rich.console import Console
from rich.table import Table

import maskrcnn
from maskrcnn.evaluation.evaluate import evaluate
from maskrcnn.training.augment import has_colour
from maskrcnn.weights.files import read_checkpoint
from maskrcnn.weights.opening import resolve_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="nuclei", help="name or file")
    parser.add_argument("--data", default=os.path.join(os.environ.get("MASKRCNN_TEST_DATA", "."), "nuclei"))
    options = parser.parse_args()
    dataset = maskrcnn.open_dataset(options.data, split="val")
    predictor = maskrcnn.load(options.weights)
    scores = evaluate(predictor.predict, dataset, max_detections=(100, 300))
    colour = {dataset.image_id(i) for i in range(len(dataset)) if has_colour(dataset[i][0])}
    groups = {"all": set(dataset.image_ids), "grey": set(dataset.image_ids) - colour, "colour": colour}
    table = Table("pictures", "", "mask AP@100", "mask AP@300", "AP50@300", "AP75@300", "box AP@300")
    for name, ids in groups.items():
        part = scores.subset(ids).summary()
        mask, box = part["mask"], part["box"]
        cells = [mask["ap@100"], mask["ap@300"], mask["ap50@300"], mask["ap75@300"], box["ap@300"]]
        table.add_row(name, str(len(ids)), *(f"{value:.3f}" for value in cells))
    console = Console()
    console.print(table)
    training = read_checkpoint(resolve_weights(options.weights)).metadata.get("training", {})
    console.print(
        f"{scores.seconds:.1f} s for {len(dataset)} pictures; trained for {training.get('seconds', 0) / 60:.1f} minutes"
    )


if __name__ == "__main__":
    main()
