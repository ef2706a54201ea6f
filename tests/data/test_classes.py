from __future__ import annotations

import pytest

from maskrcnn.data.classes import Classes
from maskrcnn.errors import InputError


def test_labels_count_from_one() -> None:
    classes = Classes(("cat", "dog"), (90, 3))
    assert len(classes) == 2
    assert classes.label_of_category == {90: 1, 3: 2}
    assert classes.label_of_name == {"cat": 1, "dog": 2}


def test_lists_become_tuples_so_that_classes_compare_and_hash() -> None:
    assert Classes(["a"], [4]) == Classes(("a",), (4,))  # type: ignore[arg-type]
    assert len({Classes.named("ab"), Classes.named(["a", "b"])}) == 1


def test_numbered() -> None:
    assert Classes.numbered(2) == Classes(("1", "2"), (1, 2))


@pytest.mark.parametrize(
    ("names", "ids", "words"),
    [
        ((), (), "at least one"),
        (("a",), (1, 2), "1 names and 2 ids"),
        (("a", "a"), (1, 2), "Classes.names: holds duplicates; found 'a'"),
        (("a", "b"), (1, 1), "Classes.category_ids: holds duplicates; found 1"),
    ],
)
def test_impossible_classes(names: tuple[str, ...], ids: tuple[int, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Classes(names, ids)
