"""Crops and boxes mixed: cosines are the mean of both, and either end is one of them alone."""

from __future__ import annotations

import copy

import pytest
import torch
from fgclip2_world import write_folder

from rar_mmdet import RegionRecognizer
from rar_mmdet.components import build_component
from rar_mmdet.encoders import FGCLIP2Encoder, FGCLIP2RegionEncoder, MixedEncoder
from rar_mmdet.errors import ConfigError, InvalidBoxError, MemoryMismatchError
from rar_mmdet.memory import Exemplar, TextMemory, encode_exemplars
from rar_mmdet.regions import RegionCropper
from rar_mmdet.structures import ImageRegions
from rar_mmdet.testing import FakeEncoder, make_boxes, make_image

NAMES = ["red cup", "blue star", "drink", "bow"]
CROPPER = RegionCropper(size=32)


@pytest.fixture(scope="module")
def regions(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("model"))
    return FGCLIP2RegionEncoder(model=str(folder), device="cpu", max_patches=40)


def mixed(regions, weight):
    return MixedEncoder(crops=FakeEncoder(), regions=regions, weight=weight)  # 16 and 32 wide


def recognizer(encoder, memory=None):
    memory = memory or TextMemory(cache_dir=None)
    return RegionRecognizer(cropper=RegionCropper(), encoder=encoder, memory=memory, category_names=NAMES).to("cpu")


def test_cosines_are_the_mean_of_both_by_weight(regions):
    encoder, image, boxes = mixed(regions, 0.3), make_image(), make_boxes(5)
    of_crops = FakeEncoder().encode_images(CROPPER.crop(image, boxes))
    of_boxes = regions.encode_regions(image, boxes)
    vectors = encoder.mix(lambda: of_crops, lambda: of_boxes)
    assert vectors.shape == (5, encoder.dim) == (5, 16 + 32)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))
    cosines = vectors @ encoder.encode_texts(NAMES).T
    expected = 0.3 * of_crops @ FakeEncoder().encode_texts(NAMES).T + 0.7 * of_boxes @ regions.encode_texts(NAMES).T
    torch.testing.assert_close(cosines, expected)
    assert encoder.logit_scale == pytest.approx(0.3 * 20 + 0.7 * 100)


def test_the_recogniser_gives_it_crops_and_photos(regions):
    own = recognizer(mixed(regions, 0.3))
    images = [make_image(60, 80, 1), make_image(90, 50, 2), make_image(60, 80, 3)]
    boxes = [make_boxes(4, 60, 80), make_boxes(0), make_boxes(2, 60, 80, seed=1)]
    found = own.recognize([ImageRegions(i, b) for i, b in zip(images, boxes, strict=True)])
    assert [len(result) for result in found] == [4, 0, 2]
    for image, own_boxes, result in zip(images, boxes, found, strict=True):
        crops = FakeEncoder().encode_images(CROPPER.crop(image, own_boxes))
        vectors = torch.cat([0.3**0.5 * crops, 0.7**0.5 * regions.encode_regions(image, own_boxes)], dim=1)
        expected = own.memory.search(vectors, own.shortlist_depth)
        assert result.shortlist.category_ids.equal(expected.category_ids)
        torch.testing.assert_close(result.shortlist.probs, expected.probs)
    assert own.recognize([]) == []


@pytest.mark.parametrize("weight", [0, 1])
def test_either_end_is_one_of_them_alone(regions, weight):
    encoder, alone = mixed(regions, weight), FakeEncoder() if weight else regions
    for name in ("dim", "logit_scale", "fingerprint"):
        assert getattr(encoder, name) == getattr(alone, name)
    assert encoder.encode_texts(NAMES).equal(alone.encode_texts(NAMES))
    image, boxes = make_image(), make_boxes(6)
    crops = CROPPER.crop(image, boxes)
    assert encoder.encode_images(crops).equal(alone.encode_images(crops))
    memory = TextMemory(cache_dir=None).prepare(alone, NAMES)  # a memory of the one serves the other
    found, expected = (
        recognizer(encoder, memory)(image, boxes),
        RegionRecognizer(cropper=CROPPER, encoder=alone, memory=memory, category_names=NAMES).to("cpu")
        if weight
        else recognizer(alone, memory),
    )
    expected = expected(image, boxes)
    assert found.fused.equal(expected.fused)
    assert found.category_ids.equal(expected.category_ids)


def test_exemplars_are_mixed_as_regions_are(regions, tmp_path):
    encoder, photos = mixed(regions, 0.3), [make_image(60, 80, 1), make_image(50, 40, 2)]
    exemplars = [
        Exemplar(photos[0], 2, (5.0, 6.0, 30.0, 40.0)),
        Exemplar(photos[1], 0),
        Exemplar(photos[0], 1, (8.0, 9.0, 50.0, 59.0)),
    ]
    entries = encode_exemplars(encoder, CROPPER.crop, exemplars, parts_dir=tmp_path, key="a")
    whole = [[0.0, 0.0, 40.0, 50.0]]
    of = [(photos[1], whole), (photos[0], [exemplars[2].box_xyxy]), (photos[0], [exemplars[0].box_xyxy])]
    for row, (photo, boxes) in enumerate(of):
        crops = FakeEncoder().encode_images(CROPPER.crop(photo, boxes))
        expected = torch.cat([0.3**0.5 * crops, 0.7**0.5 * regions.encode_regions(photo, boxes)], dim=1)
        torch.testing.assert_close(entries.vectors[row : row + 1], expected)
    # Parts of another weight are not taken for these.
    other = encode_exemplars(mixed(regions, 0.4), CROPPER.crop, exemplars, parts_dir=tmp_path, key="a")
    assert not other.vectors.equal(entries.vectors)


def test_the_fingerprint_names_both_kinds_and_memories_of_either_are_refused(regions):
    encoder = mixed(regions, 0.3)
    assert encoder.fingerprint == f"mix-0.3:{FakeEncoder().fingerprint}+{regions.fingerprint}"
    assert ":regions:" in encoder.fingerprint
    prints = {mixed(regions, weight).fingerprint for weight in (0, 0.25, 0.3, 1)}
    assert len(prints) == 4
    for other in (FakeEncoder(), regions, mixed(regions, 0.25)):
        memory = TextMemory(cache_dir=None).prepare(other, NAMES)
        with pytest.raises(MemoryMismatchError, match="encoder"):
            recognizer(encoder, memory)(make_image(), make_boxes(1))


def test_the_one_that_has_no_weight_is_not_needed(regions):
    absent = FGCLIP2RegionEncoder(model="/not/there", device="cpu")
    crops = MixedEncoder(crops=FakeEncoder(), regions=absent, weight=1)
    assert crops.missing_assets() == []
    assert len(recognizer(crops)(make_image(), make_boxes(3))) == 3
    assert any(
        "/not/there" in text for text in MixedEncoder(crops=FakeEncoder(), regions=absent, weight=0.9).missing_assets()
    )


def test_from_a_config_and_copies(regions):
    folder = regions.checkpoint.model
    encoder = build_component(
        {
            "type": "MixedEncoder",
            "crops": {"type": "FGCLIP2Encoder", "model": folder, "device": "cpu"},
            "regions": {"type": "FGCLIP2RegionEncoder", "model": folder, "device": "cpu"},
            "weight": 0.5,
        },
        "encoder",
    )
    assert isinstance(encoder.crops, FGCLIP2Encoder)
    assert encoder.image_size == encoder.crops.image_size
    assert copy.deepcopy(encoder.load()).fingerprint == encoder.fingerprint


def test_values_of_no_use_and_bad_boxes_are_refused(regions):
    with pytest.raises(ConfigError, match=r"weight must be in \[0, 1\], 1 for the crop alone, got 1.5"):
        mixed(regions, 1.5)
    with pytest.raises(ConfigError, match="is no encoder of crops; OpenClipEncoder is one"):
        MixedEncoder(crops=regions, regions=regions, weight=0.5)
    with pytest.raises(ConfigError, match="does not encode boxes of photos; FGCLIP2RegionEncoder"):
        MixedEncoder(crops=FakeEncoder(), regions=FakeEncoder(), weight=0.5)
    with pytest.raises(InvalidBoxError, match="1 of 1 boxes cannot be cropped"):
        recognizer(mixed(regions, 0.5))(make_image(), [[9, 9, 9, 20]])
