"""What a label means to a metric: the category of the annotation file that stands for it, checked against the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from rar_mmdet.errors import MetricConfigError, VocabularyError
from rar_mmdet.files.vocabulary import label_order, vocabulary_hash

__all__ = ["check_vocabulary", "classes_of", "label_ids"]

ADVICE = (
    "Point `recognizer.vocabulary` (model.recognizer.vocabulary or model.roi_head.recognizer.vocabulary) at the "
    "dataset's annotation file, or set the dataset's metainfo=dict(classes=...) to the model's names"
)


def classes_of(dataset_meta: Mapping[str, Any] | None) -> Sequence[str]:
    """The names of the labels, as the dataset states them.

    Raises:
        MetricConfigError: It states none.
    """
    classes = (dataset_meta or {}).get("classes")
    if classes is None:
        raise MetricConfigError(
            "the dataset's metainfo has no `classes`, so labels have no meaning: use a dataset of this project "
            "(rar_mmdet.CocoVocabularyDataset and so on), or set metainfo=dict(classes=[...])"
        )
    return tuple(classes)


def check_vocabulary(sample: Mapping[str, Any], dataset_meta: Mapping[str, Any] | None) -> bool:
    """Whether the sample's labels are known to follow the dataset's classes; models of this project say what they know.

    Args:
        sample: A data sample; `recognition`, where there is one, holds `vocabulary`: `vocabulary_hash` of the names.
        dataset_meta: With `classes`.

    Raises:
        VocabularyError: The model's names, or their order, are not the dataset's.
    """
    recognition = sample.get("recognition")
    stated = None if recognition is None else recognition.get("vocabulary")
    if stated is None:
        return False
    classes = classes_of(dataset_meta)
    if stated != _hash_of(tuple(classes)):
        raise VocabularyError(
            f"the model recognises other names, or in another order, than the dataset's {len(classes)} classes "
            f"({', '.join(map(repr, classes[:3]))}, …): labels would mean different things. {ADVICE}"
        )
    return True


def label_ids(
    categories: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    where: str,
    *,
    known_order: bool,
    all_categories: bool,
) -> list[Any]:
    """Category id of each label.

    Args:
        categories: Of the annotation file, in its order.
        classes: Of the dataset.
        where: The file, for messages.
        known_order: The labels are known to follow `classes`, see `check_vocabulary`. Labels of other detectors follow
            the order of the file in MMDetection's own datasets, and of `classes` in this project's.
        all_categories: MMDetection's own dataset numbers all categories of the file, not those in `classes` alone.

    Raises:
        VocabularyError: A class is no category of the file, or it cannot be known which of two orders labels follow.
    """
    ids = label_order(categories, classes, where)
    chosen = set(ids)
    in_file_order = [c["id"] for c in categories if all_categories or c["id"] in chosen]
    if not known_order and ids != in_file_order:
        what = "in another order than" if len(ids) == len(in_file_order) else "only some of"
        raise VocabularyError(
            f"the dataset's {len(ids)} classes are {what} the {len(categories)} categories of {where}, and the "
            "detector does not say which order its labels follow: MMDetection's own datasets number the categories of "
            "the file, this project's the classes. Write metainfo=dict(classes=...) in the order of the file"
            + (", with all of its categories" if all_categories else "")
        )
    return ids


@lru_cache(maxsize=4)
def _hash_of(classes: tuple[str, ...]) -> str:
    return vocabulary_hash(classes)
