"""How each family of transformers' detectors takes names, and where its boxes and scores stand in the output.

All give Q boxes per photo, as shares of a frame; what differs is how many texts one pass takes, and how a name's score
is read. Scores are those of each family's own post-processing, kept for every name instead of the best one alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert

from rar_mmdet.errors import ConfigError, DetectorLoadError

__all__ = ["FAMILIES", "ClosedSet", "Family", "Grounding", "OmDet", "Owl", "Sam3", "family_of"]

_STOP, _STOPS = ".", r"[.?]"  # what separates names in a grounding text; the models take both for it


@dataclass(frozen=True)
class Family:
    """What all families share.

    Args:
        auto: the Auto class of transformers that loads it.
        template: what a name is put into.
        chunk: names in one pass by default.
        fills_square: boxes are shares of the square on the photo's longer side, to which the processor pads (OWLv2).
        by_text: it finds what texts name.
    """

    auto: str
    template: str = "{}"
    chunk: int = 0
    fills_square: bool = False
    by_text: bool = True

    def chunks(self, tokenizer: Any, names: Sequence[str], size: int) -> list[list[int]]:
        """Names (by their places) of each pass."""
        places = list(range(len(names)))
        return [places[start : start + size] for start in range(0, len(places), size)]

    def inputs(self, tokenizer: Any, texts: Sequence[str], batch: int) -> tuple[dict[str, Any], Any]:
        """Inputs of the model for `batch` photos that are asked for the same texts, and what `scores` needs of them."""
        raise NotImplementedError

    def scores(self, output: Any, note: Any) -> Tensor:
        """(B, Q, n) float32 in [0, 1], the score of each of the n names."""
        raise NotImplementedError

    def boxes(self, output: Any) -> Tensor:
        """(B, Q, 4) float32 xyxy as shares of the frame."""
        return _xyxy(_field(output, "pred_boxes").float())

    def masks(self, output: Any) -> Tensor | None:
        """(B, Q, h, w) mask logits over the frame, where it gives any."""
        return None

    def vision(self, model: Any, pixels: dict[str, Tensor]) -> dict[str, Any]:
        """What is computed of a photo once for all texts; by default nothing: the pixels go in every time."""
        return pixels


class ClosedSet(Family):
    """Detectors of fixed classes: DETR, RT-DETR, D-FINE, DEIMv2, RF-DETR, LW-DETR, YOLOS, ..."""

    def scores(self, output: Any, note: Any) -> Tensor:
        """Sigmoid of each class; a softmax without its last column where the model has one more, "no object"."""
        logits = _field(output, "logits").float()
        num_names: int = note
        if logits.shape[-1] == num_names + 1:
            return logits.softmax(dim=-1)[..., :-1]
        if logits.shape[-1] != num_names:
            raise DetectorLoadError(
                f"the model gives {logits.shape[-1]} class scores and its config names {num_names} classes (id2label)"
            )
        return logits.sigmoid()


class Grounding(Family):
    """Grounding DINO, MM-Grounding-DINO and LLMDet: names stand in one text, and each of its tokens gets a score.

    A name's score is the mean over its tokens, as in MMDetection's evaluation (mmdet 3.3,
    `atss_vlfusion_head.convert_grounding_to_cls_scores`).
    """

    def chunks(self, tokenizer: Any, names: Sequence[str], size: int) -> list[list[int]]:
        """At most `size` names, and no more than their text has room for: 256 tokens."""
        lengths = [len(tokenizer(f"{text}{_STOP}", add_special_tokens=False)["input_ids"]) for text in names]
        room = min(int(getattr(tokenizer, "model_max_length", 256)), 256) - 2
        parts: list[list[int]] = [[]]
        used = 0
        for place, length in enumerate(lengths):
            if length > room:
                raise ConfigError(
                    f"the name {names[place]!r} has {length} tokens, this detector reads {room} at a time"
                )
            if parts[-1] and (len(parts[-1]) >= size or used + length > room):
                parts.append([])
                used = 0
            parts[-1].append(place)
            used += length
        return parts

    def inputs(self, tokenizer: Any, texts: Sequence[str], batch: int) -> tuple[dict[str, Any], Any]:
        """ "cat. dog." for every photo, and which tokens are of which name."""
        texts = [" ".join(re.sub(_STOPS, " ", text.lower()).split()) for text in texts]
        whole, starts = "", []
        for text in texts:
            starts.append(len(whole))
            whole += f"{text}{_STOP} "
        found = tokenizer(whole.rstrip(), return_tensors="pt", return_offsets_mapping=True)
        offsets = found.pop("offset_mapping")[0].tolist()
        tokens = [
            [t for t, (a, b) in enumerate(offsets) if a >= start and b <= start + len(text) and b > a]
            for text, start in zip(texts, starts, strict=True)
        ]
        empty = next((text for text, own in zip(texts, tokens, strict=True) if not own), None)
        if empty is not None:
            raise ConfigError(
                f"the name {empty!r} has no token for this detector's tokenizer; give another word for it"
            )
        return {key: value.expand(batch, -1) for key, value in found.items()}, tokens

    def scores(self, output: Any, note: Any) -> Tensor:
        """Mean sigmoid over the tokens of each name."""
        probs = _field(output, "logits").float().sigmoid()
        return torch.stack([probs[..., own].mean(dim=-1) for own in note], dim=-1)


class Owl(Family):
    """OWL-ViT and OWLv2: texts are vectors that each box is compared with; boxes do not depend on them."""

    def inputs(self, tokenizer: Any, texts: Sequence[str], batch: int) -> tuple[dict[str, Any], Any]:
        """16 tokens for each text, all texts for every photo."""
        found = tokenizer(list(texts), padding="max_length", max_length=16, truncation=True, return_tensors="pt")
        return {key: found[key].repeat(batch, 1) for key in ("input_ids", "attention_mask")}, None

    def scores(self, output: Any, note: Any) -> Tensor:
        """Sigmoid of each text."""
        return _field(output, "logits").float().sigmoid()


class OmDet(Family):
    """OmDet-Turbo: names and a sentence that says the task."""

    def inputs(self, tokenizer: Any, texts: Sequence[str], batch: int) -> tuple[dict[str, Any], Any]:
        """As its processor writes them: "Detect cat, dog." and each name by itself."""
        settings = {"padding": "max_length", "truncation": True, "max_length": 77, "return_tensors": "pt"}
        task = tokenizer([f"Detect {', '.join(texts)}."] * batch, **settings)
        names = tokenizer(list(texts) * batch, **settings)
        return {
            "tasks_input_ids": task["input_ids"],
            "tasks_attention_mask": task["attention_mask"],
            "classes_input_ids": names["input_ids"],
            "classes_attention_mask": names["attention_mask"],
            "classes_structure": torch.full((batch,), len(texts), dtype=torch.int64),
        }, len(texts)

    def scores(self, output: Any, note: Any) -> Tensor:
        """Sigmoid of each name."""
        return _field(output, "decoder_class_logits").float()[..., :note].sigmoid()

    def boxes(self, output: Any) -> Tensor:
        """Its decoder's boxes."""
        return _xyxy(_field(output, "decoder_coord_logits").float())


class Sam3(Family):
    """SAM 3: one concept a pass, with a mask for each box; the image tower runs once."""

    def chunks(self, tokenizer: Any, names: Sequence[str], size: int) -> list[list[int]]:
        """One name each, whatever is asked for: it takes no more."""
        return super().chunks(tokenizer, names, 1)

    def inputs(self, tokenizer: Any, texts: Sequence[str], batch: int) -> tuple[dict[str, Any], Any]:
        """The concept for every photo."""
        found = tokenizer(list(texts) * batch, padding="max_length", max_length=32, return_tensors="pt")
        return {key: found[key] for key in ("input_ids", "attention_mask")}, None

    def scores(self, output: Any, note: Any) -> Tensor:
        """That the box shows the concept, times that the photo does (its own post-processing)."""
        scores = _field(output, "pred_logits").float().sigmoid()
        if output.presence_logits is not None:
            scores = scores * output.presence_logits.float().sigmoid()
        return scores[..., None]

    def boxes(self, output: Any) -> Tensor:
        """Corners already."""
        boxes: Tensor = _field(output, "pred_boxes").float()
        return boxes

    def masks(self, output: Any) -> Tensor | None:
        """Logits of each box's mask."""
        masks: Tensor | None = output.pred_masks
        return masks

    def vision(self, model: Any, pixels: dict[str, Tensor]) -> dict[str, Any]:
        """The image tower's features."""
        return {"vision_embeds": model.get_vision_features(pixel_values=pixels["pixel_values"])}


_CLOSED = ClosedSet("AutoModelForObjectDetection", by_text=False)
_BY_TEXT = "AutoModelForZeroShotObjectDetection"
FAMILIES: dict[str, Family] = {
    "conditional_detr": _CLOSED,
    "d_fine": _CLOSED,
    "dab-detr": _CLOSED,
    "deformable_detr": _CLOSED,
    "deimv2": _CLOSED,
    "detr": _CLOSED,
    "lw_detr": _CLOSED,
    "rf_detr": _CLOSED,
    "rt_detr": _CLOSED,
    "rt_detr_v2": _CLOSED,
    "table-transformer": _CLOSED,
    "yolos": _CLOSED,
    # 40 names a pass is what MMDetection and the models' authors evaluate LVIS with (`chunked_size=40`).
    "grounding-dino": Grounding(_BY_TEXT, chunk=40),
    "mm-grounding-dino": Grounding(_BY_TEXT, chunk=40),
    "omdet-turbo": OmDet(_BY_TEXT, chunk=80),
    "owlvit": Owl(_BY_TEXT, template="a photo of a {}", chunk=1024),
    "owlv2": Owl(_BY_TEXT, template="a photo of a {}", chunk=1024, fills_square=True),
    "sam3": Sam3("AutoModel", chunk=1),
}


def family_of(model_type: Any, where: str) -> Family:
    """The family of a `config.json`.

    Raises:
        DetectorLoadError: it is none of them.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    raise DetectorLoadError(
        f"{where} holds a model of type {model_type!r}, which gives no boxes that are known here. TransformersDetector "
        f"knows {', '.join(FAMILIES)}; LLMDet is published as mm-grounding-dino"
    )


def _field(output: Any, name: str) -> Any:
    value = getattr(output, name, None)
    if value is None:
        raise DetectorLoadError(
            f"the detector's output has no {name} (it has {', '.join(output.keys())}); is this a detector of boxes?"
        )
    return value


def _xyxy(boxes_cxcywh: Tensor) -> Tensor:
    return box_convert(boxes_cxcywh, "cxcywh", "xyxy")
