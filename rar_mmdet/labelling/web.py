"""The server of `rar-mmdet web`: a photo and words in, boxes with what each was retrieved as and ranked to out.

Models are loaded once and shared. A request brings its photo and its words and gets its answer, so nothing of one user
is kept for another to ask for, and a server that starts anew loses nothing. What was found is remembered for a while:
other words do not look for boxes again, and labels to save do not ask a model.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from rar_mmdet.detectors import Detected, Detector
from rar_mmdet.drawing import crop_address
from rar_mmdet.errors import ConfigError, ImageReadError, RarError
from rar_mmdet.files.images import check_pixels, decode_image, read_image
from rar_mmdet.files.pages import render_page
from rar_mmdet.labelling.decisions import Choice, decide
from rar_mmdet.labelling.labeller import Labeller, label_of
from rar_mmdet.labelling.photos import RAW, VIDEO, LabelledPhoto
from rar_mmdet.labelling.words import WordList, read_words
from rar_mmdet.labelling.writers import FORMATS, open_writers
from rar_mmdet.records import RegionRecord

__all__ = ["LabelService", "Limits", "build_app", "page_headers"]

TEMPLATE = Path(__file__).with_name("web.html.jinja")
LISTED = 5  # names of a box that are shown, before and after ranking
PICTURE_SIDE = 1600  # longest side of the photo as the page shows it, in pixels
AT_ONCE = 2  # photos worked on at a time; further ones wait their turn (ours: one is read while a model sees another)
WORD_LISTS, PHOTOS = 16, 64  # remembered
LONGEST_NAME = 200  # bytes of a photo's name without its suffix; disks take 255
WORD_BYTES = 2**20  # some 60,000 words


@dataclass(frozen=True)
class Limits:
    """What is taken from users."""

    megabytes: float = 20  # of a photo's file, in 10^6 bytes
    megapixels: float = 50


class _Recent:
    """The values of the keys that were asked for last. Safe in threads; nobody waits while another makes a value.

    Args:
        most: values that are kept.
        keeps: whether one is kept at all.
    """

    def __init__(self, most: int, keeps: Callable[[Any], bool] = lambda value: True) -> None:
        self._most, self._keeps = most, keeps
        self._values, self._lock = OrderedDict[Hashable, Any](), threading.Lock()

    def __call__(self, key: Hashable, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        if not self._keeps(value):
            return value
        with self._lock:
            value = self._values.setdefault(key, value)
            while len(self._values) > self._most:
                self._values.popitem(last=False)
        return value


class _AskedOnce:
    """A detector that looks once at a photo, however often its words change."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._found = _Recent(PHOTOS, lambda found: found.masks is None)  # the masks of one photo can be gigabytes

    def detect(self, images: Sequence[Any], paths: Sequence[str | None] | None = None) -> list[Detected]:
        """See `Detector`."""
        names = [None] * len(images) if paths is None else paths
        return [self._one(read_image(image), name) for image, name in zip(images, names, strict=True)]

    def _one(self, photo: NDArray[np.uint8], name: str | None) -> Detected:
        key = hashlib.blake2b(photo.data).digest(), photo.shape, name
        found: Detected = self._found(key, lambda: self._detector.detect([photo], [name])[0])
        return found


class LabelService:
    """Labels of single photos for words that change. May be used from several threads at once.

    Args:
        labeller: whose models are shared; its words are replaced by those of each request.
        max_pixels: width times height of a photo.
    """

    def __init__(self, labeller: Labeller, max_pixels: int) -> None:
        self._base, self._detector, self.max_pixels = labeller, _AskedOnce(labeller.detector), max_pixels
        self._labellers = _Recent(WORD_LISTS)
        self._records, self._pictures = _Recent(PHOTOS), _Recent(PHOTOS)

    def _find(self, data: bytes, name: str, words: str) -> tuple[NDArray[np.uint8], Labeller, list[RegionRecord]]:
        labeller = self._labellers(
            words,
            lambda: Labeller(
                self._base.recognizer, read_words(words.splitlines()), self._detector, self._base.min_score
            ),
        )
        if Path(name).suffix.lower() in (*RAW, *VIDEO):  # a RAW file may be read as the small picture inside it
            raise ImageReadError(f"{name} is a RAW photo or a video; develop it, or cut it into photos, first")
        check_pixels(data, name, self.max_pixels)
        photo = decode_image(data, name)
        key = hashlib.blake2b(data).digest(), name, words
        return photo, labeller, self._records(key, lambda: labeller.recognize([(name, photo)])[0])

    def describe(self, data: bytes, name: str, words: str) -> dict[str, Any]:
        """What the page shows of a photo.

        Args:
            data: bytes of the photo's file.
            name: of the file.
            words: lines as a .txt file of words has them.

        Returns:
            `words` in numbers; `wh`, the photo's size, and the `picture`; and for each of the `boxes`: `box` (x1, y1,
            x2, y2 in pixels of the upright photo), `box_score`, and the `outline` of its mask, if it has one; `labels`,
            the (class, score) that it gets, the first one whose score is at least the threshold; `best`, the name that
            scores highest; (name, probability) as `retrieved` and (name, score) as `ranked`, best first; and whether a
            ranker was `asked`.

        Raises:
            VocabularyError: the words are none.
            ImageReadError: the photo is none, or too large.
        """
        photo, labeller, records = self._find(data, name, words)
        height, width = photo.shape[:2]
        picture = self._pictures(
            hashlib.blake2b(data).digest(),
            lambda: crop_address(photo, (0, 0, width, height), side=PICTURE_SIDE, context=0),
        )
        told = zip(records, labeller.choices(records), strict=True)
        boxes = [_describe(labeller.words, record, choice) for record, choice in told]
        return {"words": labeller.words.describe(), "wh": [width, height], "picture": picture, "boxes": boxes}

    def write(
        self, data: bytes, name: str, words: str, form: str, min_score: float, min_box_score: float
    ) -> tuple[str, bytes]:
        """The labels of a photo as a file: its name and bytes; a zip where the format is a folder.

        Args:
            data, name, words: as in `describe`.
            form: a name of `FORMATS`.
            min_score: labels below are not written.
            min_box_score: nor are those of boxes below.

        Raises:
            ConfigError: there is no such format.
        """
        photo, labeller, records = self._find(data, name, words)
        height, width = photo.shape[:2]
        labels = []
        for record, decision in zip(records, labeller.decide(records, min_score), strict=True):
            if decision.class_id is not None and record.box_score >= min_box_score:
                labels.append(label_of(record, decision.class_id, decision.score, (width, height)))
        with tempfile.TemporaryDirectory() as folder:
            file, out = Path(folder, "photos", name), Path(folder, "labels")
            file.parent.mkdir()
            file.write_bytes(data)
            (writer,) = open_writers(out, [form], labeller.words.classes, any(label.outline for label in labels))
            writer.add(LabelledPhoto(1, name, file, width, height, tuple(labels)))
            place = writer.finish()
            if place.is_dir():
                place = Path(shutil.make_archive(str(place), "zip", out, place.name))
            return place.name, place.read_bytes()


def _describe(words: WordList, record: RegionRecord, choice: Choice) -> dict[str, Any]:
    columns = range(len(record.names))
    ranked = sorted(columns, key=lambda column: -record.fused[column])
    return {
        "box": record.box_xyxy,
        "outline": record.outline or (),
        "box_score": record.box_score,
        "labels": [(words.classes[row], score) for row, score in _labels(choice)],
        "best": record.names[ranked[0]],
        "retrieved": [(record.names[column], record.probs[column]) for column in columns[:LISTED]],
        "ranked": [(record.names[column], record.fused[column]) for column in ranked[:LISTED]],
        "asked": record.has_opinion,
    }


def _labels(choice: Choice) -> Iterator[tuple[int, float]]:
    """(class, score) of what a region is called as the threshold rises from 0 to 1, each until its own score."""
    threshold = 0.0
    while (decision := decide(choice, threshold)).class_id is not None:
        yield decision.class_id, decision.score
        threshold = math.nextafter(decision.score, math.inf)


def build_app(
    service: LabelService,
    limits: Limits,
    *,
    words: str = "",
    min_score: float = 0.5,
    min_box_score: float = 0.0,
    example: Path | None = None,
    hosts: Sequence[str] = ("*",),
) -> Starlette:
    """The web application: the page, `POST /labels` (what `describe` gives, and `seconds`), `POST /files` (`write`).

    Args:
        service: answers.
        limits: what is taken.
        words: that the page begins with.
        min_score, min_box_score: where its sliders begin; the second one's lowest place too.
        example: a photo that the page offers.
        hosts: names the server may be called by. A page of elsewhere whose name is made to point to this machine has
            another one, and reads nothing.
    """
    gate = asyncio.Semaphore(AT_ONCE)

    async def page(request: Request) -> Response:
        nonce = secrets.token_urlsafe()
        start = {"min_score": min_score, "min_box_score": min_box_score, "words": words}
        text = render_page(
            TEMPLATE, nonce=nonce, formats=FORMATS, limits=limits, example=example and example.name, **start
        )
        return HTMLResponse(text, headers=page_headers(nonce))

    @asynccontextmanager
    async def photo(request: Request) -> AsyncIterator[tuple[tuple[bytes, str, str], FormData]]:
        """Bytes, name and words of a request, and its further fields."""
        _check_length(request, limits)
        async with request.form(max_files=1, max_fields=8, max_part_size=WORD_BYTES) as form, gate:
            upload = form.get("photo")
            if not isinstance(upload, UploadFile):
                raise HTTPException(400, "there is no photo in the form; expected a file called photo")
            data = await upload.read()
            _check_bytes(len(data), limits)
            yield (data, _file_name(upload.filename or ""), _field(form, "words")), form

    async def labels(request: Request) -> Response:
        async with photo(request) as (given, _):
            start = time.perf_counter()
            found = await run_in_threadpool(service.describe, *given)
            return JSONResponse({**found, "seconds": time.perf_counter() - start})

    async def files(request: Request) -> Response:
        async with photo(request) as (given, form):
            scores = _share(form, "min_score", min_score), _share(form, "min_box_score", min_box_score)
            write = partial(service.write, *given, _field(form, "format"), *scores)
            name, content = await run_in_threadpool(write)
        return Response(
            content,
            media_type="application/octet-stream",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )

    async def show_example(request: Request) -> Response:
        assert example is not None
        return FileResponse(example)

    routes = [
        Route("/", page),
        Route("/labels", labels, methods=["POST"]),
        Route("/files", files, methods=["POST"]),
        *([] if example is None else [Route("/example", show_example)]),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
        exception_handlers={RarError: _explain, HTTPException: _explain},
    )


def page_headers(nonce: str) -> dict[str, str]:
    """What keeps the page from fetching or sending anything to elsewhere, whatever is written in it."""
    policy = f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data: blob:; "
    policy += "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    return {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


async def _explain(request: Request, error: Exception) -> Response:
    """An error that the user can mend, as text for the page."""
    status, text = (error.status_code, error.detail) if isinstance(error, HTTPException) else (422, str(error))
    return JSONResponse({"error": text}, status)


def _check_length(request: Request, limits: Limits) -> None:
    """Refuse what is too large before it is read."""
    length = request.headers.get("content-length")
    if length is None:
        raise HTTPException(411, "the request does not say how long it is; send Content-Length")
    _check_bytes(int(length) - 2 * WORD_BYTES, limits)


def _check_bytes(count: int, limits: Limits) -> None:
    if count > limits.megabytes * 1e6:
        raise HTTPException(
            413, f"the photo has {count / 1e6:.1f} MB; at most {limits.megabytes:g} MB are taken. Make it smaller"
        )


def _file_name(given: str) -> str:
    """A name that any disk takes, without folders."""
    name = "".join(c for c in Path(given.replace("\\", "/")).name if c.isprintable())
    stem, suffix = os.path.splitext(name)
    stem = stem.encode()[:LONGEST_NAME].decode(errors="ignore").strip(". ")
    return f"{stem or 'photo'}{suffix[:10]}"


def _field(form: FormData, name: str) -> str:
    value = form.get(name)
    if not isinstance(value, str):
        raise HTTPException(400, f"there is no field {name!r} in the form")
    return value


def _share(form: FormData, name: str, default: float) -> float:
    text = form.get(name, default)
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} must be in [0, 1], got {text!r}")
    return value
