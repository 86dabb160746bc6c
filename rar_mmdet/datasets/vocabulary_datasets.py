"""MMDetection's LVIS, V3Det and COCO datasets for any vocabulary: that of the annotation file, or any part of it."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset, LVISV1Dataset
from mmengine.fileio import get, get_local_path, join_path
from mmengine.logging import print_log
from mmengine.utils import is_abs

from rar_mmdet.datasets.annotation_records import read_records
from rar_mmdet.datasets.proposal_files import read_proposals
from rar_mmdet.errors import AnnotationFileError, ImageReadError, InvalidBoxError, RepeatedIdError
from rar_mmdet.files.coco import path_in_url
from rar_mmdet.files.images import check_complete, decode_image
from rar_mmdet.files.opencv import cv2
from rar_mmdet.files.vocabulary import read_vocabulary
from rar_mmdet.registry import DATASETS
from rar_mmdet.scoring.image_lists import check_known_images, read_image_ids

__all__ = ["CocoVocabularyDataset", "LVISVocabularyDataset", "V3DetVocabularyDataset", "VocabularyDataset"]


class _IdList(list):
    """A list of category ids whose `in` is a set look-up.

    MMDetection asks `category_id in self.cat_ids` for every annotation: with 13,204 categories a plain list costs
    minutes.
    """

    def __init__(self, ids: Iterable[int]) -> None:
        super().__init__(ids)
        self._members = frozenset(self)

    def __contains__(self, item: object) -> bool:
        return item in self._members


class VocabularyDataset:
    """Labels that follow `metainfo.classes`, fast membership, and errors that name file, record and image.

    What the datasets below share; stands before one of MMDetection's datasets among the bases.
    """

    proposal_file: str | None

    def __init__(
        self,
        ann_file: str = "",
        metainfo: Mapping[str, Any] | None = None,
        data_root: str = "",
        backend_args: dict | None = None,
        lazy_init: bool = False,
        image_ids: str | None = None,
        max_unreadable: int = 0,
        **kwargs: Any,
    ) -> None:
        self._image_list, self._max_unreadable = image_ids, max_unreadable
        self._unreadable: list[str] = []
        given = dict(metainfo or {})
        classes = given.get("classes")
        self._classes: tuple[str, ...] | None = None
        if classes is not None:
            self._classes = tuple(read_vocabulary(classes, backend_args))
            given["classes"] = self._classes
        elif lazy_init:
            # `DetInferencer` builds the test dataset only for its classes and palette; no data need be there.
            path = ann_file if is_abs(ann_file) or not data_root else join_path(data_root, ann_file)
            if os.path.exists(path):
                given["classes"] = tuple(read_vocabulary(path, backend_args))
        super().__init__(  # type: ignore[call-arg]
            ann_file=ann_file,
            metainfo=given or None,
            data_root=data_root,
            backend_args=backend_args,
            lazy_init=lazy_init,
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """Read the annotation file.

        Raises:
            AnnotationFileError: a record is odd; the message names it.
            VocabularyError: `metainfo.classes` are not categories of the file.
        """
        ann_file: str = self.ann_file  # type: ignore[attr-defined]
        with get_local_path(ann_file, backend_args=self.backend_args) as path:  # type: ignore[attr-defined]
            found = read_records(path, f"annotation file {ann_file}", self._classes)
        for note in found.notes:
            print_log(note, logger="current", level=logging.WARNING)
        chosen = set(found.images)
        if self._image_list is not None:
            chosen = set(read_image_ids(self._image_list))
            check_known_images(chosen, found.images, f"annotation file {ann_file}")
        if self._classes is None:
            self._metainfo["classes"] = found.names  # type: ignore[attr-defined]
        self.cat_ids = _IdList(found.category_ids)
        self.cat2label = {category: label for label, category in enumerate(self.cat_ids)}
        self.cat_img_map: dict[int, list[Any]] = {category: [] for category in self.cat_ids}
        ids = [annotation["id"] for own in found.annotations.values() for annotation in own if "id" in annotation]
        if self.ANN_ID_UNIQUE and len(set(ids)) < len(ids):  # type: ignore[attr-defined]
            raise RepeatedIdError(f"annotation ids in {ann_file!r} are not unique! Give each annotation its own id")
        data = []
        for image_id, image in found.images.items():
            if image_id not in chosen:
                continue
            annotations = found.annotations.get(image_id, [])
            for annotation in annotations:
                if annotation["category_id"] in self.cat_img_map:
                    self.cat_img_map[annotation["category_id"]].append(image_id)
            data.append(self._data_info(image_id, image, annotations))
        return data

    def _data_info(self, image_id: Any, image: dict, annotations: list[dict]) -> dict:
        sizes = {key: image.get(key) or math.inf for key in ("height", "width")}  # an unknown side cuts no box
        raw = {**image, **sizes, "img_id": image_id, "file_name": self._file_name(image)}
        info: dict = self.parse_data_info({"raw_img_info": raw, "raw_ann_info": annotations})  # type: ignore[attr-defined]
        return {key: value for key, value in info.items() if value is not math.inf}

    def _file_name(self, image: dict) -> str:
        """Path of the image file below `data_prefix`."""
        return _text_of(image, "file_name", self.ann_file)  # type: ignore[attr-defined]

    def load_proposals(self) -> None:
        """Read `proposal_file`, which may have more images than the dataset.

        Raises:
            MissingAssetError: there is no such file.
            InvalidBoxError: it holds something else, or lacks an image of the dataset.
        """
        path = str(self.proposal_file)
        path = path if is_abs(path) else join_path(self.data_root, path)  # type: ignore[attr-defined]
        proposals = read_proposals(path, self.backend_args)  # type: ignore[attr-defined]
        for info in self.data_list:  # type: ignore[attr-defined]
            name = "/".join(info["img_path"].split("/")[-2:])  # the key of MMDetection's proposal files
            if name not in proposals:
                raise InvalidBoxError(
                    f"proposal file {path} has no image {name!r} (it has {len(proposals)}, such as "
                    f"{', '.join(map(repr, list(proposals)[:2]))}); images are named by folder and file"
                )
            info["proposals"] = proposals[name]

    def prepare_data(self, idx: int) -> Any:
        """Run the pipeline on one image.

        Up to `max_unreadable` images whose file is missing or damaged become samples without boxes; their metainfo says
        so (`unreadable`), and the models of this project leave them without detections.

        Raises:
            ImageReadError: the file is missing or not an image, and so were `max_unreadable` before.
        """
        try:
            return super().prepare_data(idx)  # type: ignore[misc]
        except (OSError, AssertionError, cv2.error, ImageReadError) as error:  # mmcv's loaders often give no name
            problem = self._why_unreadable(idx)
            if problem is None:
                raise  # the file is sound, so it was about something else
            self._unreadable.append(str(problem))
            if len(self._unreadable) <= self._max_unreadable:
                blank = self._without_pixels(idx, str(problem))
                if blank is not None:
                    return blank
            if len(self._unreadable) > 1:
                problem = ImageReadError(
                    f"{problem} It is such image number {len(self._unreadable)}, the first was: {self._unreadable[0]} "
                    "Is data_root, or the data prefix, another folder?"
                )
            raise problem from error

    def _why_unreadable(self, idx: int) -> ImageReadError | None:
        """What is wrong with the file of an image, if anything."""
        info = self.get_data_info(idx)  # type: ignore[attr-defined]
        name = f"image {info.get('img_id')} ({info.get('img_path')})"
        try:
            data = get(info.get("img_path"), backend_args=self.backend_args)  # type: ignore[attr-defined]
            decode_image(data, name)
            check_complete(data, name)
        except ImageReadError as problem:
            return problem
        except OSError as problem:
            return ImageReadError(f"{name} cannot be read: {problem}. Is the file missing?")
        return None

    def _without_pixels(self, idx: int, reason: str) -> Any:
        """A black image without boxes through the rest of the pipeline; `None` where the pipeline drops the reason."""
        results = self.get_data_info(idx)  # type: ignore[attr-defined]
        shape = (int(results.get("height") or 32), int(results.get("width") or 32))
        empty = {"bboxes": np.zeros((0, 4), np.float32), "scores": np.zeros(0, np.float32)}
        results |= {"img": np.zeros((*shape, 3), np.uint8), "img_shape": shape, "ori_shape": shape}
        results |= {"instances": [], "unreadable": reason} | ({"proposals": empty} if "proposals" in results else {})
        for transform in self.pipeline.transforms:  # type: ignore[attr-defined]
            if not isinstance(transform, LoadImageFromFile):
                results = transform(results)
        samples = results["data_samples"]
        views = samples if isinstance(samples, list) else [samples]
        return results if all("unreadable" in view.metainfo for view in views) else None


@DATASETS.register_module()
class CocoVocabularyDataset(VocabularyDataset, CocoDataset):
    """`CocoDataset` for any vocabulary: label i is the i-th category of the annotation file, or of `metainfo.classes`.

    Args:
        ann_file: annotation file in COCO style.
        metainfo: as in `CocoDataset`; `classes`, a list or a file of names, may be any of the file's names in any
            order, and labels follow them.
        data_root: root of `ann_file` and `data_prefix`.
        backend_args: MMEngine file backend.
        lazy_init: as in `BaseDataset`.
        image_ids: file that lists the images to take, see `read_image_ids`; all by default.
        max_unreadable: images whose file is missing or damaged that are taken as images without boxes, counted in each
            process that loads data; the next one ends the run.
        kwargs: the other arguments of `CocoDataset`, checked there.
    """


@DATASETS.register_module()
class V3DetVocabularyDataset(CocoVocabularyDataset):
    """V3Det without its side file: MMDetection's `V3DetDataset` needs `category_name_13204_v3det_2023_v1.txt` even when
    the names are given; the annotation file has all 13,204 of them."""


@DATASETS.register_module()
class LVISVocabularyDataset(VocabularyDataset, LVISV1Dataset):
    """`LVISV1Dataset` for any annotation file of that format; image files come from the end of `coco_url`,
    on any host, or from `file_name` where there is none.

    Args:
        ann_file: annotation file in LVIS v1 style.
        metainfo: as in `CocoVocabularyDataset`.
        data_root: root of `ann_file` and `data_prefix`.
        backend_args: MMEngine file backend.
        lazy_init: as in `BaseDataset`.
        max_unreadable: as in `CocoVocabularyDataset`.
        image_ids: as in `CocoVocabularyDataset`; LVIS minival is such a list, or an annotation file of its own.
        kwargs: the other arguments of `LVISV1Dataset`, checked there.
    """

    def _file_name(self, image: dict) -> str:
        if "coco_url" not in image:
            return super()._file_name(image)
        return path_in_url(_text_of(image, "coco_url", self.ann_file))


def _text_of(image: dict, key: str, ann_file: str) -> str:
    value = image.get(key)
    if not isinstance(value, str) or not value:
        raise AnnotationFileError(
            f"annotation file {ann_file}: image {image.get('id')} has {key} {value!r}, expected the path of its file"
        )
    return value
