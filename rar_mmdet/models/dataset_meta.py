"""Whose classes the labels of a model index."""

from __future__ import annotations

from typing import Any

__all__ = ["VocabularyMeta"]


class VocabularyMeta:
    """`dataset_meta` of a model with a `branch`: its `classes` are always the recogniser's vocabulary, all coloured.

    MMDetection's inference helpers set the classes of the detector's checkpoint, or COCO's; labels index neither.
    """

    def __get__(self, model: Any, owner: type | None = None) -> Any:
        """The dictionary, or `None` while nobody has set one."""
        return self if model is None else model.__dict__.get("_dataset_meta")

    def __set__(self, model: Any, meta: dict | None) -> None:
        """Keep everything but the classes, and colours that are too few for them."""
        names = tuple(model.branch.recognizer.category_names)
        kept = {**(meta or {}), "classes": names}
        palette = kept.get("palette")
        if isinstance(palette, list | tuple) and len(palette) < len(names):
            kept["palette"] = "random"  # it was made for the detector's own classes
        model.__dict__["_dataset_meta"] = kept
