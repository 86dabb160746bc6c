"""Labels in the formats that tools read. Each is written beside its place and moved there when it is whole.

Photos come one at a time, so that memory does not grow with them. Boxes are in pixels of the upright photo; scores
stand wherever a format has room for them.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

from PIL import Image

from rar_mmdet.errors import ConfigError
from rar_mmdet.files.images import read_image
from rar_mmdet.files.xml import VOC_SOURCE
from rar_mmdet.labelling.outlines import Outline, area_of, one_line
from rar_mmdet.labelling.photos import Label, LabelledPhoto

__all__ = ["FORMATS", "Writer", "open_writers"]

JPEG_QUALITY = 92
UNREAD = (".gif", ".ppm")  # kinds of photos that readers of the YOLO and VOC layouts pass over


class Writer(ABC):
    """One format.

    Args:
        folder: of all labels; the format has a file or folder of its own in it.
        classes: C names.
        outlines: whether labels have outlines, for formats where all labels are of one kind.
    """

    name: str  # of the format
    place: str  # file or folder in the folder of labels

    def __init__(self, folder: Path, classes: Sequence[str], outlines: bool = False) -> None:
        self.classes, self.outlines = tuple(classes), outlines
        self.target = folder / self.place
        self._part = folder / f".{self.place}.part"
        self._files, self._is_closed = ExitStack(), False
        folder.mkdir(parents=True, exist_ok=True)
        _remove(self._part)
        self._open()

    @abstractmethod
    def _open(self) -> None:
        """Start to write at `_part`."""

    @abstractmethod
    def add(self, photo: LabelledPhoto) -> None:
        """Write one photo's labels; also a photo without any."""

    def _end(self) -> None:  # noqa: B027 - most formats have nothing to say at the end
        """Write what stands behind the last photo."""

    def _text(self, path: Path, mode: str = "w") -> IO[str]:
        """A file that stays open until the end."""
        return self._files.enter_context(open(path, mode, encoding="utf-8"))

    def close(self) -> None:
        """Write what is left; a full disk shows itself here at the latest, and nothing was moved yet."""
        if not self._is_closed:
            self._is_closed = True
            self._end()
            self._files.close()

    def finish(self) -> Path:
        """Move the labels into their place; the place."""
        self.close()
        _remove(self.target)
        os.replace(self._part, self.target)
        return self.target

    def drop(self) -> None:
        """Give up: nothing of this run stays, what was there before does."""
        with suppress(OSError):  # on a full disk there is no room for what waits to be written either
            self._files.close()
        _remove(self._part)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class _Stems:
    """Names of label files, which have no suffix of their own: photos that share a stem are told apart by theirs."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def __call__(self, name: str) -> Path:
        """Path of the photo's name, changed where another photo has its stem."""
        path = Path(name)
        while str(path.with_suffix("")) in self._taken:
            path = path.with_name(f"{path.stem}_{path.suffix[1:]}{path.suffix}")
        self._taken.add(str(path.with_suffix("")))
        return path


def _place_photo(photo: LabelledPhoto, place: Path) -> None:
    """The photo beside its labels: a link, or PNG where readers pass over its kind."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.suffix.lower() in UNREAD:
        Image.fromarray(read_image(photo.path)).save(place.with_suffix(".png"))
        return
    try:
        place.symlink_to(photo.path.resolve())
    except OSError:  # a disk without links
        shutil.copyfile(photo.path, place)


def _number(value: float) -> str:
    """Two decimals, a hundredth of a pixel, without zeros at the end."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _polygons(outline: Outline) -> str:
    return "[" + ", ".join("[" + ", ".join(map(_number, part)) + "]" for part in outline) + "]"


def _points(polygon: Sequence[float]) -> str:
    return ";".join(f"{_number(x)},{_number(y)}" for x, y in zip(polygon[::2], polygon[1::2], strict=True))


class CocoWriter(Writer):
    """COCO JSON with `score` beside each box: images, annotations, categories with ids from 1 on.

    A label with a mask has its polygons as `segmentation`, and their area.
    """

    name, place = "coco", "coco.json"

    def _open(self) -> None:
        self._stream = self._text(self._part)
        # The format has all images before all annotations; these wait in a file that goes away by itself.
        waiting = self._files.enter_context(tempfile.TemporaryDirectory(dir=self._part.parent))
        self._annotations = self._text(Path(waiting) / "annotations", "w+")
        self._count = self._images = 0
        categories = [{"id": row, "name": name} for row, name in enumerate(self.classes, 1)]
        info = {"description": "labels of rar-mmdet label"}
        head = json.dumps({"info": info, "categories": categories}, ensure_ascii=False)
        self._stream.write(head[:-1] + ', "images": [')

    def add(self, photo: LabelledPhoto) -> None:
        image = {"id": photo.id, "file_name": photo.name, "width": photo.width, "height": photo.height}
        self._stream.write((", " if self._images else "") + json.dumps(image, ensure_ascii=False))
        self._images += 1
        lines = []
        for label in photo.labels:
            x1, y1, x2, y2 = label.box_xyxy
            width, height = x2 - x1, y2 - y1
            comma, self._count = ", " if self._count else "", self._count + 1
            area, mask = width * height, ""
            if label.outline:
                area, mask = area_of(label.outline), f'"segmentation": {_polygons(label.outline)}, '
            lines.append(
                f'{comma}{{"id": {self._count}, "image_id": {photo.id}, "category_id": {label.class_id + 1}, "bbox": '
                f"[{_number(x1)}, {_number(y1)}, {_number(width)}, {_number(height)}], "
                f'"area": {_number(area)}, {mask}"iscrowd": 0, "score": {label.score:.4f}}}'
            )
        self._annotations.write("".join(lines))

    def _end(self) -> None:
        self._stream.write('], "annotations": [')
        self._annotations.seek(0)
        shutil.copyfileobj(self._annotations, self._stream)
        self._stream.write("]}\n")


class YoloWriter(Writer):
    """Ultralytics' layout: images/ (links to the photos), labels/ (class, centre and size as fractions), data.yaml.

    Where labels have masks, lines are outlines (class, x1, y1, x2, y2, ...): its reader drops all outlines of a data
    set in which some lines are boxes, so that a box without a mask is written by its corners.
    """

    name, place = "yolo", "yolo"

    def _open(self) -> None:
        import yaml

        self._part.mkdir(parents=True)
        self._stems = _Stems()
        content = {"train": "images", "val": "images", "names": dict(enumerate(self.classes))}
        text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
        (self._part / "data.yaml").write_text(text, encoding="utf-8")

    def add(self, photo: LabelledPhoto) -> None:
        # Its reader finds the labels of a photo behind the last folder "images" of the path.
        folders = ("images_" if part == "images" else part for part in Path(photo.name).parent.parts)
        name = self._stems(str(Path(*folders, Path(photo.name).name)))
        _place_photo(photo, self._part / "images" / name)
        text = (self._part / "labels" / name).with_suffix(".txt")
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text("".join(f"{self._line(photo, label)}\n" for label in photo.labels), encoding="utf-8")

    def _line(self, photo: LabelledPhoto, label: Label) -> str:
        x1, y1, x2, y2 = label.box_xyxy
        if self.outlines:
            points = one_line(label.outline or ((x1, y1, x2, y1, x2, y2, x1, y2),))
            shares = (v / (photo.height if i % 2 else photo.width) for i, v in enumerate(points))
            return " ".join([str(label.class_id), *(f"{share:.6f}" for share in shares)])
        values = (x1 + x2) / 2 / photo.width, (y1 + y2) / 2 / photo.height, (x2 - x1) / photo.width
        return f"{label.class_id} {values[0]:.6f} {values[1]:.6f} {values[2]:.6f} {(y2 - y1) / photo.height:.6f}"


class VocWriter(Writer):
    """Pascal VOC's layout: Annotations/NAME.xml for each photo, JPEGImages/ (links), the names in ImageSets/Main/.

    Its boxes are the first and the last pixel, counted from 1, in whole numbers: many readers take no others.
    """

    name, place = "voc", "voc"

    def _open(self) -> None:
        for folder in ("Annotations", "ImageSets/Main"):
            (self._part / folder).mkdir(parents=True)
        self._names = self._text(self._part / "ImageSets" / "Main" / "trainval.txt")
        self._stems = _Stems()

    def add(self, photo: LabelledPhoto) -> None:
        name = self._stems(photo.name)
        _place_photo(photo, self._part / "JPEGImages" / name)
        self._names.write(f"{name.with_suffix('').as_posix()}\n")
        file = (self._part / "Annotations" / name).with_suffix(".xml")
        file.parent.mkdir(parents=True, exist_ok=True)
        objects = "".join(self._object(label) for label in photo.labels)
        folder = escape(str(Path(photo.name).parent.as_posix()))
        file.write_text(
            f"<annotation><folder>{folder}</folder><filename>{escape(Path(photo.name).name)}</filename>"
            f"<source><database>{VOC_SOURCE}</database></source>"
            f"<size><width>{photo.width}</width><height>{photo.height}</height><depth>3</depth></size>"
            f"<segmented>0</segmented>{objects}</annotation>\n",
            encoding="utf-8",
        )

    def _object(self, label: Label) -> str:
        x1, y1, x2, y2 = (int(value + 0.5) for value in label.box_xyxy)
        corners = ("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", max(x2, x1 + 1)), ("ymax", max(y2, y1 + 1))
        box = "".join(f"<{key}>{value}</{key}>" for key, value in corners)
        return (
            f"<object><name>{escape(self.classes[label.class_id])}</name><pose>Unspecified</pose><truncated>0</truncated>"
            f"<difficult>0</difficult><score>{label.score:.4f}</score><bndbox>{box}</bndbox></object>"
        )


class CvatWriter(Writer):
    """CVAT for images 1.1: one XML file. A label with a mask is a polygon, or several in one group."""

    name, place = "cvat", "cvat.xml"

    def _open(self) -> None:
        self._stream = self._text(self._part)
        self._quoted = [quoteattr(name) for name in self.classes]
        labels = "".join(f"<label><name>{escape(name)}</name><attributes/></label>" for name in self.classes)
        self._stream.write(
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'
            f"<meta><task><labels>{labels}</labels></task></meta>\n"
        )

    def add(self, photo: LabelledPhoto) -> None:
        boxes = "".join(self._shape(label, number) for number, label in enumerate(photo.labels, 1))
        self._stream.write(
            f'<image id="{photo.id - 1}" name={quoteattr(photo.name)} width="{photo.width}" height="{photo.height}">'
            f"{boxes}</image>\n"
        )

    def _shape(self, label: Label, group: int) -> str:
        if not label.outline:
            return self._box(label)
        together = f' group_id="{group}"' if len(label.outline) > 1 else ""
        return "".join(
            f'<polygon label={self._quoted[label.class_id]} source="auto" occluded="0" '
            f'points="{_points(part)}" z_order="0"{together}/>'
            for part in label.outline
        )

    def _box(self, label: Label) -> str:
        x1, y1, x2, y2 = map(_number, label.box_xyxy)
        return (
            f'<box label={self._quoted[label.class_id]} source="auto" occluded="0" xtl="{x1}" ytl="{y1}" xbr="{x2}" '
            f'ybr="{y2}" z_order="0"/>'
        )

    def _end(self) -> None:
        self._stream.write("</annotations>\n")


class LabelStudioWriter(Writer):
    """Label Studio: tasks.json with pre-annotations in percent of the photo, and the label_config.xml they need.

    Photos are found by Label Studio's local storage: `/data/local-files/?d=NAME` below its document root, quoted as an
    address.
    """

    name, place = "label-studio", "label_studio"

    def _open(self) -> None:
        self._part.mkdir(parents=True)
        values = "".join(f"<Label value={quoteattr(name)}/>" for name in self.classes)
        (self._part / "label_config.xml").write_text(
            f'<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">{values}'
            "</RectangleLabels></View>\n",
            encoding="utf-8",
        )
        self._stream = self._text(self._part / "tasks.json")
        self._stream.write("[")
        self._count = 0

    def add(self, photo: LabelledPhoto) -> None:
        results = [self._result(photo, number, label) for number, label in enumerate(photo.labels)]
        prediction = {"model_version": "rar-mmdet", "result": results}
        task = {"data": {"image": f"/data/local-files/?d={quote(photo.name)}"}, "predictions": [prediction]}
        self._stream.write((",\n" if self._count else "\n") + json.dumps(task, ensure_ascii=False))
        self._count += 1

    def _result(self, photo: LabelledPhoto, number: int, label: Label) -> dict[str, Any]:
        x1, y1, x2, y2 = label.box_xyxy
        return {
            "id": f"{photo.id}-{number}",
            "type": "rectanglelabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": photo.width,
            "original_height": photo.height,
            "image_rotation": 0,
            "score": round(label.score, 4),
            "value": {
                "x": round(100 * x1 / photo.width, 4),
                "y": round(100 * y1 / photo.height, 4),
                "width": round(100 * (x2 - x1) / photo.width, 4),
                "height": round(100 * (y2 - y1) / photo.height, 4),
                "rotation": 0,
                "rectanglelabels": [self.classes[label.class_id]],
            },
        }

    def _end(self) -> None:
        self._stream.write("\n]\n")


class CropWriter(Writer):
    """A folder for each class with the boxes cut out as JPEG."""

    name, place = "crops", "crops"

    def _open(self) -> None:
        self._part.mkdir(parents=True)
        # Names as folders: what no disk takes becomes a line; numbers keep them apart.
        self._folders = [
            f"{row:05d} {''.join(c if c.isalnum() or c in ' -_.()' else '_' for c in name)[:80]}".strip()
            for row, name in enumerate(self.classes, 1)
        ]

    def add(self, photo: LabelledPhoto) -> None:
        if not photo.labels:
            return
        pixels = read_image(photo.path)
        stem = photo.name.replace("/", "__")
        for number, label in enumerate(photo.labels):
            x1, y1, x2, y2 = label.box_xyxy
            left, top = max(int(x1), 0), max(int(y1), 0)
            cut = pixels[top : max(int(-(-y2 // 1)), top + 1), left : max(int(-(-x2 // 1)), left + 1)]
            folder = self._part / self._folders[label.class_id]
            folder.mkdir(exist_ok=True)
            Image.fromarray(cut).save(folder / f"{stem}__{number}.jpg", quality=JPEG_QUALITY)


FORMATS: dict[str, type[Writer]] = {
    writer.name: writer for writer in (CocoWriter, YoloWriter, VocWriter, CvatWriter, LabelStudioWriter, CropWriter)
}


def open_writers(folder: Path, formats: Sequence[str], classes: Sequence[str], outlines: bool = False) -> list[Writer]:
    """A writer for each format; see `Writer`.

    Raises:
        ConfigError: there is no such format.
    """
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"there is no format {name!r}; known are {', '.join(FORMATS)}")
    return [FORMATS[name](folder, classes, outlines) for name in dict.fromkeys(formats)]
