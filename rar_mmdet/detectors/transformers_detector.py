"""Detectors of transformers as a source of boxes: class-agnostic boxes with every name's score, without remote code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rar_mmdet.detectors.base import Detected, merge_boxes
from rar_mmdet.detectors.families import Family, family_of
from rar_mmdet.encoders.lazy import LazyEncoder
from rar_mmdet.errors import ConfigError, DetectionError, DetectorLoadError
from rar_mmdet.files.checkpoints import Checkpoint
from rar_mmdet.files.images import ImageSource, read_image
from rar_mmdet.files.names import clean_name
from rar_mmdet.files.vocabulary import read_vocabulary

__all__ = ["TransformersDetector"]

MASKS_AT_ONCE = 16  # drawn at the photo's size together


class _Parts(NamedTuple):
    model: Any
    processor: Any  # of images
    tokenizer: Any  # None: the detector's classes are fixed


class TransformersDetector(LazyEncoder[_Parts]):
    """Boxes by a detector of transformers, in pixels of the upright original, whatever its classes.

    Fixed classes (`AutoModelForObjectDetection`): DETR, Conditional, Deformable and DAB-DETR, RT-DETR, D-FINE, DEIMv2,
    RF-DETR, LW-DETR, YOLOS, Table Transformer. By text (`AutoModelForZeroShotObjectDetection`): Grounding DINO,
    MM-Grounding-DINO and LLMDet, OWL-ViT, OWLv2, OmDet-Turbo; and SAM 3, with masks. Photos go through the model's own
    image processor one by one and are batched where their inputs have one size, so that no photo is padded for the sake
    of another and a batch gives what each photo gives alone. Nothing is downloaded and nothing is unpickled.

    Args:
        model: folder of a checkpoint, or a hub id such as 'iSEE-Laboratory/llmdet_tiny' whose files lie in the local
            hub cache.
        revision: branch, tag or commit of the hub id.
        prompt: what a detector by text is to find, phrases separated by ' . ', such as "object . animal . thing"; one
            pass a photo.
        names: or a vocabulary: names, a names file or an annotation file. It is asked for in chunks, and each name's
            score is kept.
        chunk_size: names in a pass; `None`: the family's usual number (Grounding DINO 40, OWL 1,024, SAM 3 one).
        template: what a name is put into; `None`: the family's own (OWL: "a photo of a {}").
        score_threshold: boxes whose best name scores lower are left out (ours: low, for a recogniser scores them anew).
        merge_iou: overlap from which on boxes of different names are one; 1 merges none (ours: 0.7, as `RARDetector`).
        max_boxes: boxes of a photo, the best ones.
        min_size: boxes with a shorter side than this, in pixels, are left out.
        device, precision, batch_size: as `LazyEncoder`; photos in a pass.

    Raises:
        ConfigError: values do not fit together.
    """

    gpu_precision = "fp32"  # half precision moves boxes by pixels in some of these models; ask for it where it is known

    def __init__(
        self,
        *,
        model: str,
        revision: str | None = None,
        prompt: str | None = None,
        names: str | Path | Sequence[str] | None = None,
        chunk_size: int | None = None,
        template: str | None = None,
        score_threshold: float = 0.01,
        merge_iou: float = 0.7,
        max_boxes: int = 300,
        min_size: float = 1.0,
        device: str | torch.device | None = None,
        precision: str | None = None,
        batch_size: int = 8,
    ) -> None:
        super().__init__(device, precision, batch_size)
        if prompt is not None and names is not None:
            raise ConfigError("give the detector a prompt or names, not both: a prompt is one pass, names are chunked")
        if template is not None and template.count("{}") != 1:
            raise ConfigError(f"template={template!r} needs one place for the name: {{}}, as in 'a photo of a {{}}'")
        for name, value, low, high in (
            ("score_threshold", score_threshold, 0.0, 1.0),
            ("merge_iou", merge_iou, 1e-9, 1.0),
            ("max_boxes", max_boxes, 1, float("inf")),
            ("min_size", min_size, 1e-9, float("inf")),
            ("chunk_size", 1 if chunk_size is None else chunk_size, 1, float("inf")),
        ):
            if not low <= value <= high:
                raise ConfigError(f"TransformersDetector.{name} must be in [{low:g}, {high:g}], got {value}")
        self.checkpoint = Checkpoint(str(model), revision, what="detector", error=DetectorLoadError)
        self.prompt, self._given_names, self.chunk_size, self.template = prompt, names, chunk_size, template
        self.score_threshold, self.merge_iou = score_threshold, merge_iou
        self.max_boxes, self.min_size = max_boxes, min_size
        self._names: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        return f"TransformersDetector(model={self.checkpoint.model!r}, precision={self.precision!r})"

    def missing_assets(self) -> list[str]:
        """What must be fetched before this detector can load: what, where it is looked for, how to get it. Cheap."""
        missing, folder = self.checkpoint.missing(), self.checkpoint.folder
        if folder.is_dir() and not any(
            (folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")
        ):
            missing.append(
                f"detector {self.checkpoint.model!r}: no preprocessor_config.json in {folder}; get the whole folder"
            )
        return missing

    @property
    def family(self) -> Family:
        """How its names and scores are read.

        Raises:
            MissingAssetError: files are not on this machine.
            DetectorLoadError: it is no detector that is known here.
        """
        self._expect_assets()
        return family_of(self.checkpoint.config.get("model_type"), str(self.checkpoint.folder))

    @property
    def names(self) -> tuple[str, ...]:
        """What it tells apart: its own classes, the phrases of the prompt, or the names given.

        Raises:
            ConfigError: a detector by text was not told what to find, or one of fixed classes was.
        """
        if self._names is None:
            self._names = self._read_names()
        return self._names

    def _read_names(self) -> tuple[str, ...]:
        if not self.family.by_text:
            if self.prompt is not None or self._given_names is not None:
                raise ConfigError(
                    f"{self.checkpoint.model} finds its own fixed classes and cannot be told others: leave out prompt "
                    "and names; the recogniser names what it finds"
                )
            labels: Mapping[str, str] = self.checkpoint.config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
            return tuple(labels[key] for key in sorted(labels, key=int))
        if self.prompt is not None:
            phrases = tuple(phrase.strip() for phrase in self.prompt.split(".") if phrase.strip())
            if not phrases:
                raise ConfigError(f"prompt={self.prompt!r} names nothing; write 'object . animal . thing'")
            return phrases
        if self._given_names is None:
            raise ConfigError(
                f"{self.checkpoint.model} finds what a text names: give prompt='object . animal . thing' (one pass a "
                "photo), or names=VOCABULARY (in chunks)"
            )
        return tuple(read_vocabulary(self._given_names))

    @torch.inference_mode()
    def detect(self, images: Sequence[ImageSource], paths: Sequence[str | None] | None = None) -> list[Detected]:
        """The boxes of some photos, best first, with the scores of their names.

        Args:
            images: what `read_image` takes; an EXIF orientation is applied first.
            paths: not needed here.

        Raises:
            ImageReadError: a photo cannot be read.
            MissingAssetError: the model's files are not on this machine.
            DetectorLoadError: they are damaged, or the model gives no boxes.
            DetectionError: it gives boxes or scores that are not finite.
        """
        parts, device = self._ready()
        inputs: list[Mapping[str, Tensor]] = []
        sizes: list[tuple[int, int]] = []
        for image in images:
            photo = read_image(image)
            sizes.append((photo.shape[0], photo.shape[1]))
            # One photo at a time: what is padded to the size of another gets other boxes. The format is said, for a
            # photo of three pixels in width or height looks like one with its channels first.
            made = parts.processor(images=photo, return_tensors="pt", input_data_format="channels_last")
            inputs.append({key: value for key, value in made.items() if isinstance(value, Tensor)})
        found: list[Detected | None] = [None] * len(inputs)
        for rows in self._batches(inputs):
            pixels = {key: torch.cat([inputs[row][key] for row in rows]).to(device) for key in inputs[rows[0]]}
            pixels["pixel_values"] = pixels["pixel_values"].to(parts.model.dtype)
            with torch.autocast(device.type, enabled=False):
                collected = self._run(parts, pixels, [sizes[row] for row in rows])
            for row, one in zip(rows, collected, strict=True):
                found[row] = one
        return [one for one in found if one is not None]

    def _batches(self, inputs: Sequence[Mapping[str, Tensor]]) -> Iterator[list[int]]:
        """Rows of photos whose inputs have one shape, `batch_size` at a time."""
        groups: dict[tuple, list[int]] = {}
        for row, one in enumerate(inputs):
            groups.setdefault(tuple((key, tuple(value.shape)) for key, value in one.items()), []).append(row)
        for rows in groups.values():
            for start in range(0, len(rows), self.batch_size):
                yield rows[start : start + self.batch_size]

    def _run(self, parts: _Parts, pixels: dict[str, Tensor], sizes: list[tuple[int, int]]) -> list[Detected]:
        """All passes over a batch of photos, merged per photo."""
        family, names, batch = self.family, self.names, len(sizes)
        device = pixels["pixel_values"].device
        passes: list[list[Detected]] = [[] for _ in sizes]
        seen: dict[str, Any] | None = None
        for places in self._chunks(parts.tokenizer):
            texts, note = ({}, len(names)) if not family.by_text else self._texts(parts.tokenizer, places, batch)
            seen = family.vision(parts.model, pixels) if seen is None else seen
            output = parts.model(**seen, **{key: value.to(device) for key, value in texts.items()})
            scores, boxes, masks = family.scores(output, note).cpu(), family.boxes(output).cpu(), family.masks(output)
            for row, image_hw in enumerate(sizes):
                own_masks = None if masks is None else masks[row].cpu()
                passes[row].append(self._collect(scores[row], boxes[row], own_masks, places, image_hw))
        return [self._merged(own, image_hw) for own, image_hw in zip(passes, sizes, strict=True)]

    def _chunks(self, tokenizer: Any) -> list[list[int]]:
        """Places of the names of each pass."""
        if not self.family.by_text:
            return [list(range(len(self.names)))]
        with self._lock:  # tokenizers hold state
            return self.family.chunks(tokenizer, self._as_texts(self.names), self.chunk_size or self.family.chunk)

    def _as_texts(self, names: Sequence[str]) -> list[str]:
        template = self.template or self.family.template
        return [template.format(clean_name(name)) for name in names]

    def _texts(self, tokenizer: Any, places: Sequence[int], batch: int) -> tuple[dict[str, Any], Any]:
        with self._lock:
            return self.family.inputs(tokenizer, self._as_texts([self.names[i] for i in places]), batch)

    def _collect(
        self, scores: Tensor, boxes: Tensor, masks: Tensor | None, places: Sequence[int], image_hw: tuple[int, int]
    ) -> Detected:
        """What one pass found in one photo: boxes (Q, 4) as shares of the frame, scores (Q, n)."""
        height, width = image_hw
        frame = (max(image_hw),) * 2 if self.family.fills_square else (height, width)
        if not torch.isfinite(scores).all():  # a comparison with NaN would drop these boxes without a word
            raise DetectionError(
                f"{self.checkpoint.model} gave scores that are not finite; use precision='fp32', and check its weights"
            )
        best = scores.max(dim=1).values
        kept = (best >= self.score_threshold).nonzero()[:, 0]
        region_ids, columns = (scores[kept] >= self.score_threshold).nonzero(as_tuple=True)
        return Detected(
            boxes_xyxy=boxes[kept] * boxes.new_tensor([frame[1], frame[0], frame[1], frame[0]]),
            scores=best[kept],
            names=self.names,
            region_ids=region_ids,
            name_ids=torch.tensor(places, dtype=torch.int64)[columns],
            name_scores=scores[kept][region_ids, columns],
            masks=None if masks is None else masks[kept],
        )

    def _merged(self, passes: Sequence[Detected], image_hw: tuple[int, int]) -> Detected:
        """One set of boxes from those of all passes over a photo."""
        counts = [0, *(len(one) for one in passes)]
        starts = torch.tensor(counts).cumsum(0).tolist()
        whole = Detected(
            torch.cat([one.boxes_xyxy for one in passes]),
            torch.cat([one.scores for one in passes]),
            self.names,
            torch.cat([one.region_ids + start for one, start in zip(passes, starts, strict=False)]),
            torch.cat([one.name_ids for one in passes]),
            torch.cat([one.name_scores for one in passes]),
            None if passes[0].masks is None else torch.cat([one.masks for one in passes]),  # type: ignore[misc]
        )
        merged = merge_boxes(whole, image_hw, iou=self.merge_iou, limit=self.max_boxes, min_size=self.min_size)
        return merged if merged.masks is None else _with_whole_masks(merged, image_hw)

    def _read(self, device: torch.device, dtype: torch.dtype) -> _Parts:
        import transformers
        from safetensors import SafetensorError

        family, folder = self.family, self.checkpoint.folder
        try:
            model, loaded = getattr(transformers, family.auto).from_pretrained(
                folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
            processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
            tokenizer = None
            if family.by_text:
                tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except SafetensorError as error:
            raise DetectorLoadError(f"a weight file in {folder} is damaged: {error}. Download it again") from error
        except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError, RuntimeError) as error:
            raise DetectorLoadError(f"{folder} could not be loaded as a detector: {error}") from error
        # Transformers fills what the file lacks with random numbers and only warns.
        absent = sorted(map(str, loaded["missing_keys"])) + sorted(map(str, loaded["mismatched_keys"]))
        if absent:
            raise DetectorLoadError(
                f"{folder}: the weights lack, or have in another shape: {', '.join(absent[:3])} ({len(absent)} "
                "tensors). They are of another model; get the complete folder anew"
            )
        self.names  # noqa: B018 - what it cannot find is said before the first photo
        return _Parts(model.to(device).eval().requires_grad_(False), processor, tokenizer)


def _with_whole_masks(found: Detected, image_hw: tuple[int, int]) -> Detected:
    """The masks of the boxes that were kept, (R, H, W) bool, from logits over the frame."""
    assert found.masks is not None
    masks = torch.zeros(len(found), *image_hw, dtype=torch.bool)
    for start in range(0, len(found), MASKS_AT_ONCE):  # as floats they take four times the memory
        part = found.masks[None, start : start + MASKS_AT_ONCE].float()
        whole = torch.nn.functional.interpolate(part, size=image_hw, mode="bilinear", align_corners=False)[0]
        masks[start : start + MASKS_AT_ONCE] = whole > 0
    return replace(found, masks=masks)
