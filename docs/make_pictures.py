"""The pictures of how-it-works.md and lineage.md, made by the code that they explain: `python docs/make_pictures.py`.

A shipped picture goes through the shipped detector; its figures are written to `images/how-it-works/`, and the page's
list of lost objects is written anew. The figures of the lineage are drawn to `images/lineage-*.png`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

import maskrcnn
from maskrcnn.inspection.figures import figures
from maskrcnn.inspection.gates import Fate, fates, sentence
from maskrcnn.inspection.probe import Steps
from maskrcnn.lineage.figures import FIGURES, draw
from maskrcnn.ops.files import whole_file

PAGE = Path(__file__).parent / "how-it-works.md"
FOLDER = Path(__file__).parent / "images" / "how-it-works"
LINEAGE = {key: Path(__file__).parent / "images" / f"lineage-{key}.png" for key in FIGURES}
LOST = ("<!-- lost: written by docs/make_pictures.py -->\n", "<!-- /lost -->\n")
PICTURE = 0  # of the demo's, smear.jpg: 26 nuclei of many sizes, some of which are missed
FILES = (  # figures of flat colours are smaller as .png, photographs as .jpg
    "result_tasks.jpg",
    "input.jpg",
    "features_levels.png",
    "anchors_shapes.jpg",
    "anchors_coverage.jpg",
    "anchors_objectness.png",
    "proposals_refined.jpg",
    "proposals_gates.jpg",
    "levels_assigned.jpg",
    "levels_samples.jpg",
    "boxes_scores.jpg",
    "boxes_refined.jpg",
    "boxes_suppressed.jpg",
    "masks_steps.jpg",
    "result.jpg",
    "result_fates.jpg",
)


def steps_of_the_page() -> Steps:
    """What the page shows, with ground truth."""
    data = maskrcnn.open_dataset(Path(maskrcnn.__file__).parent / "demo_pictures")
    picture, truth = data[PICTURE]
    return maskrcnn.inspect(maskrcnn.load("nuclei", device="cpu"), picture, ground_truth=truth)


def lost_objects(outcomes: Sequence[Fate]) -> str:
    """The lines between the marks of `LOST`."""
    return "".join(f'- object {fate.index}, "{fate.gate}": {sentence(fate)}\n' for fate in outcomes if not fate.found)


def write_flat(image: Image.Image, path: Path) -> None:
    """Flat colours as a small PNG."""
    image.quantize(256, dither=Image.Dither.NONE).save(path, format="PNG", optimize=True)


def draw_lineage() -> None:
    """Each system's boxes and arrows."""
    for key, path in LINEAGE.items():
        with whole_file(path) as unfinished:
            write_flat(Image.fromarray(draw(FIGURES[key])), unfinished)


def main() -> None:
    draw_lineage()
    steps = steps_of_the_page()
    outcomes = fates(steps)
    drawn = {figure.name: figure.picture for figure in figures(steps, outcomes)}
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        image = Image.fromarray(drawn[Path(name).stem])
        with whole_file(FOLDER / name) as unfinished:
            if name.endswith(".png"):
                write_flat(image, unfinished)
            else:
                image.save(unfinished, format="JPEG", quality=72, optimize=True, progressive=True)
    for old in set(FOLDER.iterdir()) - {FOLDER / name for name in FILES}:
        old.unlink()
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(LOST[0])
    after = rest.partition(LOST[1])[2]
    PAGE.write_text(before + LOST[0] + "\n" + lost_objects(outcomes) + "\n" + LOST[1] + after, encoding="utf-8")
    total = sum(path.stat().st_size for path in FOLDER.iterdir())
    print(f"{len(FILES)} pictures, {total / 1e6:.2f} MB, in {FOLDER}")


if __name__ == "__main__":
    main()
