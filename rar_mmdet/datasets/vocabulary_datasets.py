"""MMDetection's LVIS, V3Det and COCO datasets, with the category names taken from the annotation file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from mmdet.datasets import CocoDataset, LVISV1Dataset
from mmengine.fileio import get, join_path
from mmengine.utils import is_abs

from rar_mmdet.errors import ImageReadError, RarError
from rar_mmdet.files.images import decode_image
from rar_mmdet.files.opencv import cv2
from rar_mmdet.files.vocabulary import read_vocabulary
from rar_mmdet.registry import DATASETS

__all__ = ["CocoVocabularyDataset", "LVISVocabularyDataset", "V3DetVocabularyDataset"]


class _IdList(list):
    """A list of category ids whose `in` is a set look-up.

    MMDetection asks `category_id in self.cat_ids` for every annotation, and `getCatIds` filters names by a tuple: with
    13,204 categories a plain list costs minutes.
    """

    def __init__(self, ids: Iterable[int]) -> None:
        super().__init__(ids)
        self._members = frozenset(self)

    def __contains__(self, item: object) -> bool:
        return item in self._members


def _names_metainfo(
    metainfo: dict | None, ann_file: str, data_root: str | None, backend_args: dict | None, lazy_init: bool
) -> dict | None:
    if metainfo is not None and "classes" in metainfo:
        return metainfo
    path = ann_file if is_abs(ann_file) or not data_root else join_path(data_root, ann_file)
    if lazy_init and not os.path.exists(path):
        return metainfo  # `DetInferencer` builds the test dataset only for its palette; no data need be there
    names = read_vocabulary(path, backend_args)
    return {**(metainfo or {}), "classes": tuple(names)}


class _VocabularyMixin:
    """Names from the annotation file, fast membership, and errors that name the image."""

    def __init__(
        self,
        ann_file: str = "",
        metainfo: dict | None = None,
        data_root: str = "",
        backend_args: dict | None = None,
        lazy_init: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(  # type: ignore[call-arg]
            ann_file=ann_file,
            metainfo=_names_metainfo(metainfo, ann_file, data_root, backend_args, lazy_init),
            data_root=data_root,
            backend_args=backend_args,
            lazy_init=lazy_init,
            **kwargs,
        )

    @property
    def cat_ids(self) -> list[int]:
        """Annotation ids of the categories, in label order."""
        return self._cat_ids

    @cat_ids.setter
    def cat_ids(self, ids: Iterable[int]) -> None:
        self._cat_ids = _IdList(ids)

    def prepare_data(self, idx: int) -> Any:
        """Run the pipeline on one image.

        Raises:
            ImageReadError: its file is missing or not an image.
        """
        try:
            return super().prepare_data(idx)  # type: ignore[misc]
        except RarError:
            raise
        except (OSError, AssertionError, cv2.error) as error:  # what mmcv's loaders raise, often without a name
            info = self.get_data_info(idx)  # type: ignore[attr-defined]
            name = f"image {info.get('img_id')} ({info.get('img_path')})"
            try:
                decode_image(get(info.get("img_path"), backend_args=self.backend_args), name)  # type: ignore[attr-defined]
            except ImageReadError as problem:
                raise problem from error
            except OSError as problem:
                raise ImageReadError(f"{name} cannot be read: {problem}. Is the file missing?") from error
            raise  # the file is sound, so it was about something else


@DATASETS.register_module()
class CocoVocabularyDataset(_VocabularyMixin, CocoDataset):
    """`CocoDataset` for any vocabulary: label i is the i-th category of the annotation file.

    Args:
        ann_file: annotation file in COCO style.
        metainfo: as in `CocoDataset`; with `classes` a subset of the names can be chosen.
        data_root: root of `ann_file` and `data_prefix`.
        backend_args: MMEngine file backend.
        lazy_init: as in `BaseDataset`.
        kwargs: the other arguments of `CocoDataset`, checked there.
    """


@DATASETS.register_module()
class V3DetVocabularyDataset(CocoVocabularyDataset):
    """V3Det without its side file: MMDetection's `V3DetDataset` needs `category_name_13204_v3det_2023_v1.txt` even when
    the names are given; the annotation file has all 13,204 of them."""


@DATASETS.register_module()
class LVISVocabularyDataset(_VocabularyMixin, LVISV1Dataset):
    """`LVISV1Dataset` for any annotation file of that format; image files come from `coco_url`.

    Args:
        ann_file: annotation file in LVIS v1 style.
        metainfo: as in `LVISV1Dataset`; names are read from the annotation file when `classes` is absent.
        data_root: root of `ann_file` and `data_prefix`.
        backend_args: MMEngine file backend.
        lazy_init: as in `BaseDataset`.
        kwargs: the other arguments of `LVISV1Dataset`, checked there.
    """
