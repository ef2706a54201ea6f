"""The systems by key."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from maskrcnn.errors import InputError
from maskrcnn.lineage.systems import MAIN, OTHERS, systems_of


def test_the_five_of_the_story_are_found_by_name() -> None:
    names = ["HOG + SVM", "R-CNN", "Fast R-CNN", "Faster R-CNN", "Mask R-CNN"]
    assert [system.name for system in systems_of()] == names
    assert [system.key for system in systems_of()] == list(MAIN)


def test_every_key_leads_to_a_file_and_a_system_of_that_key() -> None:
    for key, (file, _) in (MAIN | OTHERS).items():
        assert find_spec(f"maskrcnn.lineage.{file}") is not None
        (system,) = systems_of([key])
        assert system.key == key and system.source and callable(system.train)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["yolo"], "systems: no such system; found yolo; expected some of hog-svm, rcnn"),
        ([], "systems: impossible choice; found none"),
        (["rcnn", "rcnn"], "systems: impossible choice; found rcnn rcnn"),
    ],
)
def test_what_is_no_choice(keys: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        systems_of(keys)
    assert str(error.value).startswith(message)
