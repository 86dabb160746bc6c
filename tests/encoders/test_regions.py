"""Encoders of boxes in the recogniser."""

from __future__ import annotations

import pytest
import torch
from fgclip2_world import write_folder

from rar_mmdet import RegionRecognizer
from rar_mmdet.encoders import FGCLIP2RegionEncoder
from rar_mmdet.errors import ConfigError, InvalidBoxError, MemoryMismatchError
from rar_mmdet.memory import TextMemory
from rar_mmdet.regions import RegionCropper
from rar_mmdet.structures import ImageRegions, RegionCrops
from rar_mmdet.testing import FakeRanker, make_boxes, make_image

NAMES = ["red cup", "blue star", "drink", "bow"]


class Counting(FGCLIP2RegionEncoder):
    """Counts photos."""

    calls = 0

    def encode_regions(self, image, boxes_xyxy):
        self.calls += 1
        return super().encode_regions(image, boxes_xyxy)


@pytest.fixture
def encoder(tmp_path):
    return Counting(model=str(write_folder(tmp_path / "model")), device="cpu", max_patches=40)


def recognizer(encoder, tmp_path, **kwargs):
    memory = kwargs.pop("memory", None) or TextMemory(cache_dir=tmp_path / "cache")
    return RegionRecognizer(cropper=RegionCropper(), encoder=encoder, memory=memory, category_names=NAMES, **kwargs).to(
        "cpu"
    )


def test_one_pass_per_photo_and_the_vectors_of_its_boxes(encoder, tmp_path):
    own = recognizer(encoder, tmp_path)
    images = [make_image(60, 80, 1), make_image(90, 50, 2), make_image(60, 80, 3)]
    boxes = [make_boxes(300, 60, 80), make_boxes(0), make_boxes(2, 60, 80)]
    found = own.recognize([ImageRegions(i, b) for i, b in zip(images, boxes, strict=True)])
    assert encoder.calls == 2  # none for the photo without boxes
    assert [len(result) for result in found] == [300, 0, 2]
    for image, own_boxes, result in zip(images, boxes, found, strict=True):
        expected = own.memory.search(encoder.encode_regions(image, own_boxes), own.shortlist_depth)
        assert result.shortlist.category_ids.equal(expected.category_ids)
        torch.testing.assert_close(result.shortlist.probs, expected.probs)
        alone = own(image, own_boxes)
        torch.testing.assert_close(alone.fused, result.fused, atol=1e-5, rtol=0)


def test_no_photos(encoder, tmp_path):
    assert recognizer(encoder, tmp_path).recognize([]) == []


def test_the_ranker_still_sees_crops(encoder, tmp_path):
    ranker = FakeRanker()
    recognizer(encoder, tmp_path, ranker=ranker, num_candidates=2)(make_image(), make_boxes(4))
    assert ranker.num_asked == 4


def test_photos_as_tensors_give_the_same(encoder, tmp_path):
    own, image, boxes = recognizer(encoder, tmp_path), make_image(), make_boxes(5)
    as_tensor = own(torch.from_numpy(image).permute(2, 0, 1), boxes)
    assert as_tensor.fused.equal(own(image, boxes).fused)


def test_crops_made_ahead_are_of_no_use(encoder, tmp_path):
    crops = RegionCrops(torch.zeros((1, 3, 64, 64), dtype=torch.uint8))
    with pytest.raises(ConfigError, match="a.jpg came without pixels, but Counting encodes whole photos"):
        recognizer(encoder, tmp_path).recognize([ImageRegions(None, [[0, 0, 9, 9]], crops=crops, name="a.jpg")])


def test_bad_boxes_are_refused_or_skipped_as_ever(encoder, tmp_path):
    boxes = [[0, 0, 20, 20], [10, 10, 10, 30], [500, 0, 600, 20]]
    with pytest.raises(InvalidBoxError, match="2 of 3 boxes cannot be cropped"):
        recognizer(encoder, tmp_path)(make_image(), boxes)
    assert len(recognizer(encoder, tmp_path, on_bad_box="skip")(make_image(), boxes)) == 1


def test_a_memory_of_crops_is_refused_for_boxes(encoder, tmp_path):
    from rar_mmdet.encoders import FGCLIP2Encoder

    of_crops = FGCLIP2Encoder(model=encoder.checkpoint.model, device="cpu", walk="box")
    memory = TextMemory(cache_dir=tmp_path / "cache").prepare(of_crops, NAMES)
    with pytest.raises(MemoryMismatchError, match="encoder"):
        recognizer(encoder, tmp_path, memory=memory)(make_image(), make_boxes(1))
