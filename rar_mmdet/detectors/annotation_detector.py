"""Boxes that are there already: drawn by people or found by another program, in the file of any tool."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from rar_mmdet.detectors.annotation_files import read_box_file
from rar_mmdet.detectors.base import Detected
from rar_mmdet.errors import AnnotationFileError, ConfigError
from rar_mmdet.files.images import ImageSource, check_size, photo_hw, read_image
from rar_mmdet.files.names import shown

__all__ = ["AnnotationDetector"]

logger = logging.getLogger(__name__)


class AnnotationDetector:
    """A "detector" that looks boxes up in a file of COCO, YOLO, Pascal VOC, CVAT or Label Studio, by the photo's file.

    Args:
        boxes: the file, or the folder of YOLO or VOC files.
        split: of a YOLO data set.
        missing: what to do with a photo that the file does not have: 'raise', or 'empty' for no boxes.

    Raises:
        AnnotationFileError: see `read_box_file`.
    """

    def __init__(self, boxes: str | Path, split: str = "val", missing: str = "raise") -> None:
        if missing not in ("raise", "empty"):
            raise ConfigError(f"missing must be 'raise' or 'empty', got {missing!r}")
        self.missing = missing
        self.file = read_box_file(boxes, split)
        for note in self.file.notes:
            logger.warning("%s", note)

    @property
    def names(self) -> tuple[str, ...]:
        """The file's categories."""
        return self.file.names

    def detect(self, images: Sequence[ImageSource], paths: Sequence[str | None] | None = None) -> list[Detected]:
        """The boxes of some photos, best first.

        Args:
            images: what `read_image` takes.
            paths: the files of the photos; `None`: the images that are paths themselves.

        Raises:
            AnnotationFileError: a photo has no file name, is not in the file, or may be several of its photos.
            ImageReadError: a photo has another size than the file says, so that boxes would fall on wrong pixels.
        """
        found = []
        for i, image in enumerate(images):
            path = paths[i] if paths is not None else image if isinstance(image, str | os.PathLike) else None
            if path is None:
                raise AnnotationFileError(
                    f"photo {i} came as {type(image).__name__}, and {self.file.where} knows photos by their files; "
                    "give paths=[...] too"
                )
            row = self.file.row_of(os.fspath(path))
            if row is not None:
                said = self.file.sizes_hw[row]
                check_size(photo_hw(read_image(image)), said if all(said) else None, f"photo {os.fspath(path)}")
                found.append(self.file.boxes[row])
            elif self.missing == "empty":
                found.append(Detected.nothing(self.names))
            else:
                raise AnnotationFileError(
                    f"{self.file.where} has no photo {os.fspath(path)!r} (it has {len(self.file.photos)}: "
                    f"{shown(self.file.photos)}); missing='empty' takes such photos for empty ones"
                )
        return found
