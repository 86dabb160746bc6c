"""Transformers' detectors: boxes in pixels of the upright original, one photo or many, and every name's score."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_detectors import BY_TEXT, CLOSED, KINDS, SOFTMAX, write_detector
from torchvision.ops import box_iou
from transformers import AutoModelForObjectDetection, OmDetTurboProcessor, RTDetrImageProcessor
from transformers.utils import ModelOutput

from rar_mmdet.detectors import Detected, TransformersDetector, merge_boxes, transformers_detector
from rar_mmdet.detectors.base import class_scores
from rar_mmdet.detectors.families import FAMILIES
from rar_mmdet.errors import (
    ConfigError,
    DetectionError,
    DetectorLoadError,
    MissingAssetError,
    RarError,
    VocabularyError,
)

NAMES = ["cat", "dog", "red_star", "blue cup"]
ALL = {"score_threshold": 0.0, "merge_iou": 1.0, "min_size": 1e-6}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("detectors")
    return {kind: write_detector(root / kind, kind) for kind in KINDS}


def detector(folders, kind, **settings):
    words = {"names": NAMES, "chunk_size": 2} if kind in BY_TEXT else {}
    return TransformersDetector(model=str(folders[kind]), **{**ALL, **words, **settings})


def photos(*sizes_hw):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (h, w, 3), dtype=np.uint8) for h, w in sizes_hw]


def same(one, other):
    torch.testing.assert_close(one.boxes_xyxy, other.boxes_xyxy, atol=1e-4, rtol=0)
    torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.name_scores, other.name_scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_photo_alone_and_in_a_batch_of_other_sizes(folders, kind):
    found_by = detector(folders, kind)
    batch = photos((60, 90), (90, 60), (60, 90), (20, 40))
    together = found_by.detect(batch)
    assert all(len(found) for found in together)
    for photo, found in zip(batch, together, strict=True):
        same(found_by.detect([photo])[0], found)
        assert (found.boxes_xyxy >= 0).all()
        assert (found.boxes_xyxy <= torch.tensor([photo.shape[1], photo.shape[0]] * 2)).all()
        assert (found.scores[:-1] >= found.scores[1:]).all()


@pytest.mark.parametrize("kind", CLOSED)
def test_boxes_are_the_models_shares_of_the_photo(folders, kind):
    """Computed by hand from the raw output: cx, cy, w, h as shares, times width and height; and each class's score."""
    photo = photos((60, 90))[0]
    found = detector(folders, kind).detect([photo])[0]
    model = AutoModelForObjectDetection.from_pretrained(folders[kind]).eval()
    processor = detector(folders, kind)._ready()[0].processor
    output = model(**processor(images=photo, return_tensors="pt"))
    cx, cy, w, h = output.pred_boxes[0].detach().unbind(-1)
    expected = torch.stack([(cx - w / 2) * 90, (cy - h / 2) * 60, (cx + w / 2) * 90, (cy + h / 2) * 60], 1)
    expected = torch.minimum(expected.clamp_min(0), torch.tensor([90.0, 60, 90, 60]))
    logits = output.logits[0].detach()
    probs = logits.softmax(-1)[:, :-1] if kind in SOFTMAX else logits.sigmoid()
    order = probs.max(1).values.argsort(descending=True, stable=True)
    torch.testing.assert_close(found.boxes_xyxy, expected[order][: len(found)], atol=1e-4, rtol=0)
    dense = class_scores(found, ["cat", "dog", "red star"])
    torch.testing.assert_close(dense, probs[order][: len(found)], atol=1e-6, rtol=0)


def test_owlv2_boxes_are_shares_of_the_padded_square(folders):
    photo = photos((40, 80))[0]
    found_by = detector(folders, "owlv2", names=["cat"], min_size=1e-3)
    found = found_by.detect([photo])[0]
    parts = found_by._ready()[0]
    texts, _ = found_by._texts(parts.tokenizer, [0], 1)
    output = parts.model(**parts.processor(images=photo, return_tensors="pt"), **texts)
    theirs = parts.processor.post_process_object_detection(output, 0.0, [(40, 80)])[0]
    expected = theirs["boxes"][theirs["scores"].argsort(descending=True, stable=True)].clamp_min(0)
    inside = torch.minimum(expected, torch.tensor([80.0, 40, 80, 40]))
    large = (inside[:, 2:] - inside[:, :2] >= 1e-3).all(1)
    torch.testing.assert_close(found.boxes_xyxy, inside[large], atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ["grounding-dino", "mm-grounding-dino"])
def test_a_names_score_is_the_mean_over_its_tokens(folders, kind):
    photo = photos((60, 90))[0]
    found_by = detector(folders, kind, chunk_size=4, max_boxes=1000)
    found = found_by.detect([photo])[0]
    parts = found_by._ready()[0]
    text = "cat. dog. red star. blue cup."
    tokens = parts.tokenizer(text, return_tensors="pt")
    output = parts.model(**parts.processor(images=photo, return_tensors="pt"), **tokens)
    # [CLS] cat . dog . red star . blue cup . [SEP]
    probs = output.logits[0].detach().sigmoid()
    expected = torch.stack([probs[:, own].mean(1) for own in ([1], [3], [5, 6], [8, 9])], 1)
    order = expected.max(1).values.argsort(descending=True, stable=True)
    torch.testing.assert_close(class_scores(found, NAMES), expected[order], atol=1e-5, rtol=0)


def test_chunks_hold_what_the_text_has_room_for(folders):
    found_by = detector(folders, "grounding-dino", names=[f"red star {i}" for i in range(200)], chunk_size=1000)
    chunks = found_by._chunks(found_by._ready()[0].tokenizer)
    assert [i for part in chunks for i in part] == list(range(200))
    assert 1 < len(chunks) < 10
    with pytest.raises(ConfigError, match="tokens, this detector reads 254 at a time"):
        detector(folders, "grounding-dino", names=["cat " * 300]).detect(photos((20, 20)))


def test_owl_in_chunks_equals_one_pass(folders):
    """Its boxes do not depend on texts, so duplicates of every chunk merge into one box with all names."""
    photo = photos((60, 60))
    whole, parts = (detector(folders, "owlv2", chunk_size=size, merge_iou=0.999999).detect(photo)[0] for size in (4, 1))
    same(whole, parts)
    assert class_scores(parts, NAMES).isnan().sum() == 0


def test_omdet_reads_what_its_own_processor_writes(folders):
    found_by = detector(folders, "omdet-turbo", chunk_size=4)
    parts = found_by._ready()[0]
    photo = photos((60, 90))[0]
    own = OmDetTurboProcessor(parts.processor, parts.tokenizer)(photo, text=["cat", "dog", "red star", "blue cup"])
    texts, _ = found_by._texts(parts.tokenizer, range(4), 1)
    for key, value in texts.items():
        assert torch.equal(torch.as_tensor(own[key]), value), key
    output = parts.model(**parts.processor(images=photo, return_tensors="pt"), **texts)
    probs = output.decoder_class_logits[0].detach().sigmoid()
    order = probs.max(1).values.argsort(descending=True, stable=True)
    found = found_by.detect([photo])[0]
    torch.testing.assert_close(class_scores(found, NAMES), probs[order][: len(found)], atol=1e-5, rtol=0)


def test_sam_3_gives_a_mask_of_the_photo_for_each_box(folders):
    found = detector(folders, "sam3", names=["cat", "dog"], chunk_size=None).detect(photos((60, 90)))[0]
    assert len(found)
    assert found.masks.shape == (len(found), 60, 90)
    assert found.masks.dtype == torch.bool
    # Two concepts, one pass each: no box has both names, and all names are scores of their own pass.
    assert len(found.name_ids) == len(found)


def test_masks_are_drawn_in_parts_as_at_once(folders, monkeypatch):
    found_by, photo = detector(folders, "sam3", names=["cat", "dog"], chunk_size=None), photos((60, 90))
    whole = found_by.detect(photo)[0]
    assert 2 < len(whole) < transformers_detector.MASKS_AT_ONCE
    assert 0 < whole.masks.float().mean() < 1
    monkeypatch.setattr(transformers_detector, "MASKS_AT_ONCE", 2)
    assert torch.equal(found_by.detect(photo)[0].masks, whole.masks)
    assert detector(folders, "sam3", chunk_size=None, score_threshold=1.0).detect(photo)[0].masks.shape == (0, 60, 90)


def test_an_orientation_is_applied_first(folders, tmp_path):
    photo = photos((60, 90))[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # turned: shown, its rows are columns
    Image.fromarray(photo).save(tmp_path / "turned.png", exif=exif)
    found_by = detector(folders, "rt_detr")
    same(found_by.detect([tmp_path / "turned.png"])[0], found_by.detect([np.rot90(photo, 3).copy()])[0])


def test_a_prompt_is_one_pass(folders):
    found_by = detector(folders, "mm-grounding-dino", names=None, chunk_size=None, prompt="object . animal. thing .")
    assert found_by.names == ("object", "animal", "thing")
    assert len(found_by.detect(photos((60, 90)))[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_photo_of_nothing_has_no_boxes(folders, kind):
    # Some random models are as sure as can be: their boxes are too small.
    few = detector(folders, kind, score_threshold=1.0, min_size=1000)
    nothing, other = few.detect(photos((60, 90), (90, 60)))
    assert len(nothing) == len(other) == len(nothing.name_ids) == 0
    assert nothing.labels == []


def test_no_photo_no_box_and_copies(folders):
    found_by = detector(folders, "rt_detr", score_threshold=1.0)
    assert found_by.detect([]) == []
    nothing = found_by.detect(photos((60, 90)))[0]
    assert len(nothing) == 0
    assert nothing.labels == []
    same(pickle.loads(pickle.dumps(found_by)).detect(photos((60, 90)))[0], nothing)


def test_a_label_is_the_first_of_the_names_with_the_highest_score():
    generator = torch.Generator().manual_seed(0)
    dense = (torch.rand(50, 20, generator=generator) * 4).round() / 4  # many equal scores
    dense[7] = 0
    region_ids, name_ids = dense.nonzero(as_tuple=True)
    names = tuple(map(str, range(20)))
    found = Detected(torch.zeros(50, 4), torch.ones(50), names, region_ids, name_ids, dense[region_ids, name_ids])
    expected = torch.where(dense.amax(dim=1) > 0, dense.argmax(dim=1), -1)
    assert torch.equal(found.label_ids, expected)
    assert found.labels[7] == ""


def test_class_scores_equal_a_slow_loop():
    """Names of one, several and no category; two names of one category."""
    generator = torch.Generator().manual_seed(0)
    names, rows = tuple("abcdef"), {0: [3], 2: [1, 4], 4: [4], 5: [0]}
    region_ids, name_ids = (torch.rand(30, 6, generator=generator) < 0.5).nonzero(as_tuple=True)
    values = torch.rand(len(name_ids), generator=generator)
    found = Detected(torch.zeros(30, 4), torch.ones(30), names, region_ids, name_ids, values)
    expected = torch.full((30, 7), torch.nan)
    for categories in rows.values():
        expected[:, categories] = 0
    for region, name, value in zip(region_ids.tolist(), name_ids.tolist(), values.tolist(), strict=True):
        for category in rows.get(name, []):
            expected[region, category] = max(expected[region, category].item(), value)
    assert torch.equal(class_scores(found, "0123456", rows).nan_to_num(-1), expected.nan_to_num(-1))
    assert class_scores(found, "01", {}).isnan().all()
    assert class_scores(Detected.nothing(names), "0123456", rows).shape == (0, 7)


def test_merging_keeps_the_best_box_and_every_name():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11], [50, 50, 60, 60], [-5, -5, 0.5, 20], [0, 0, 10, 10.5]])
    found = Detected(
        boxes,
        torch.tensor([0.5, 0.9, 0.4, 0.99, 0.3]),
        ("a", "b", "c"),
        region_ids=torch.tensor([0, 1, 2, 3, 4, 4]),
        name_ids=torch.tensor([0, 1, 2, 0, 1, 2]),
        name_scores=torch.tensor([0.5, 0.9, 0.4, 0.99, 0.95, 0.3]),
    )
    merged = merge_boxes(found, (55, 55), iou=0.7, limit=10, min_size=1.0)
    assert merged.boxes_xyxy.tolist() == [[0, 0, 10, 11], [50, 50, 55, 55]]
    assert merged.labels == ["b", "c"]
    dense = class_scores(merged, ["a", "B", "c", "d"])
    expected = torch.tensor([[0.5, 0.95, 0.3, torch.nan], [0, 0, 0.4, torch.nan]])
    torch.testing.assert_close(dense, expected, equal_nan=True)


def test_merging_equals_a_slow_loop():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(60, 2, generator=generator) * 40
    boxes = torch.cat([corners, corners + 2 + torch.rand(60, 2, generator=generator) * 30], 1)
    scores = (torch.rand(60, generator=generator) * 10).round() / 10
    found = Detected(boxes, scores, ("x",), torch.arange(60), torch.zeros(60, dtype=torch.int64), scores)
    merged = merge_boxes(found, (100, 100), iou=0.5, limit=100, min_size=1.0)
    kept: list[int] = []
    for row in scores.argsort(descending=True, stable=True).tolist():
        if all(box_iou(boxes[row][None], boxes[other][None]) <= 0.5 for other in kept):
            kept.append(row)
    torch.testing.assert_close(merged.boxes_xyxy, boxes[kept])
    again = merge_boxes(merged, (100, 100), iou=0.5, limit=100, min_size=1.0)
    torch.testing.assert_close(again.boxes_xyxy, merged.boxes_xyxy)


def test_what_is_not_on_the_machine_says_how_to_get_it():
    missing = TransformersDetector(model="iSEE-Laboratory/llmdet_tiny", prompt="object")
    with pytest.raises(MissingAssetError, match="run `hf download iSEE-Laboratory/llmdet_tiny`"):
        missing.detect(photos((20, 20)))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("rt_detr", {"prompt": "object"}, "finds its own fixed classes"),
        ("owlv2", {"names": None}, r"finds what a text names: give prompt='object \. animal"),
        ("owlv2", {"names": None, "prompt": " . "}, "names nothing"),
    ],
)
def test_what_to_find_must_fit_the_detector(folders, kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        detector(folders, kind, **settings).detect(photos((20, 20)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "a", "names": ["b"]}, "a prompt or names, not both"),
        ({"template": "photo"}, "needs one place for the name"),
        ({"merge_iou": 0.0}, r"merge_iou must be in"),
        ({"max_boxes": 0}, r"max_boxes must be in"),
    ],
)
def test_values_of_no_use(settings, message):
    with pytest.raises(ConfigError, match=message):
        TransformersDetector(model="x/y", **settings)


def test_models_that_are_no_detectors(folders, tmp_path):
    write_detector(tmp_path, "rt_detr")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    with pytest.raises(DetectorLoadError, match="type 'vit', which gives no boxes"):
        TransformersDetector(model=str(tmp_path)).detect(photos((20, 20)))
    (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": {"0": "a", "1": "b"}}))
    with pytest.raises(DetectorLoadError, match="could not be loaded as a detector|another shape"):
        TransformersDetector(model=str(tmp_path)).detect(photos((20, 20)))
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(DetectorLoadError):
        TransformersDetector(model=str(tmp_path)).detect(photos((20, 20)))


def test_numbers_that_are_none_are_refused(folders):
    with pytest.raises(DetectionError, match="both must be finite"):
        Detected(torch.tensor([[0.0, 0, torch.nan, 1]]), torch.ones(1))
    found_by = detector(folders, "rt_detr")
    parts, _ = found_by.load()._ready()
    parts.model.model.decoder.class_embed[-1].weight.data.fill_(torch.nan)
    with pytest.raises(DetectionError, match="scores that are not finite"):
        found_by.detect(photos((20, 20)))
    assert isinstance(parts.processor, RTDetrImageProcessor)


def test_outputs_and_masks_that_do_not_fit():
    """A model whose class is right and whose output is not; masks of other boxes."""
    family = FAMILIES["rt_detr"]
    with pytest.raises(DetectorLoadError, match=r"output has no pred_boxes \(it has logits\); is this a detector"):
        family.boxes(ModelOutput(logits=torch.zeros(1, 2, 3)))
    with pytest.raises(DetectorLoadError, match="gives 5 class scores and its config names 3 classes"):
        family.scores(ModelOutput(logits=torch.zeros(1, 2, 5)), 3)
    with pytest.raises(DetectionError, match="gave 1 masks for 2 boxes"):
        Detected(torch.zeros(2, 4), torch.zeros(2), masks=torch.zeros(1, 8, 8, dtype=torch.bool))
    with pytest.raises(DetectionError, match=r"gave boxes \(2, 5\) for 2 scores"):
        Detected(torch.zeros(2, 5), torch.zeros(2))


def test_a_names_file_that_does_not_fit(folders, tmp_path):
    with pytest.raises(RarError, match="none.txt"):
        detector(folders, "owlv2", names=str(tmp_path / "none.txt")).detect(photos((20, 20)))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(VocabularyError, match="empty.txt"):
        detector(folders, "owlv2", names=str(tmp_path / "empty.txt")).detect(photos((20, 20)))
