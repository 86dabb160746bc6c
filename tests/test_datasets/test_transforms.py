import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.registry import DefaultScope

from rar_mmdet.datasets import CropRegions, KeepOriginalImage, PackRecognitionInputs, ProposalsFromAnnotations
from rar_mmdet.errors import ConfigError, ImageReadError
from rar_mmdet.regions import BlurOutsideMask, RegionCropper
from rar_mmdet.testing import make_boxes, make_image

CROPPER = {"type": "RegionCropper", "size": 32}
MASK_CROPPER = CROPPER | {"background": {"type": "BlurOutsideMask", "sigma": 3}}


def results(**changes):
    image = make_image(60, 80)[..., ::-1]  # BGR, as loaded
    boxes = make_boxes(3)
    return {
        "img": image.copy(),
        "img_id": 7,
        "img_path": None,
        "img_shape": (60, 80),
        "ori_shape": (60, 80),
        "gt_bboxes": HorizontalBoxes(boxes),
        "gt_ignore_flags": np.array([False, True, False]),
        "gt_bboxes_labels": np.array([0, 1, 2]),
    } | changes


def test_kept_pixels_survive_resize_and_flip():
    assert DefaultScope.get_current_instance() is not None
    pipeline = Compose(
        [
            {"type": "rar_mmdet.KeepOriginalImage"},
            {"type": "mmdet.Resize", "scale": (160, 160), "keep_ratio": False},
            {"type": "mmdet.RandomFlip", "prob": 1.0},
            {"type": "rar_mmdet.PackRecognitionInputs"},
        ]
    )
    packed = pipeline(results())
    sample = packed["data_samples"]
    assert packed["inputs"].shape == (3, 160, 160)
    assert np.array_equal(sample.ori_img.numpy(), make_image(60, 80))  # RGB, unflipped
    assert "ori_img" not in sample.metainfo
    assert sample.scale_factor == (2.0, 160 / 60)
    assert sample.flip


class TestChecks:
    @pytest.mark.parametrize("suffix", ["jpg", "png"])
    def test_truncated_file(self, tmp_path, suffix):
        path = tmp_path / f"photo.{suffix}"
        cv2.imwrite(str(path), make_image(60, 80))
        KeepOriginalImage()(results(img_path=str(path)))
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(ImageReadError, match=rf"image 7 \(.*photo\.{suffix}\) is truncated"):
            KeepOriginalImage()(results(img_path=str(path)))
        KeepOriginalImage(check=False)(results(img_path=str(path)))

    def test_bytes_after_the_end_mark_are_fine(self, tmp_path):
        path = tmp_path / "photo.jpg"
        cv2.imwrite(str(path), make_image(60, 80))
        path.write_bytes(path.read_bytes() + b"\0" * 200_000)
        assert KeepOriginalImage()(results(img_path=str(path)))["ori_img"].shape == (60, 80, 3)

    def test_size_other_than_the_annotations(self):
        with pytest.raises(ImageReadError, match="is 80x60 px but its annotation says 640x480"):
            KeepOriginalImage()(results(height=480, width=640))


@pytest.mark.parametrize(
    ("loaded", "expected"),
    [
        pytest.param(make_image(60, 80)[..., ::-1].astype(np.float32), make_image(60, 80), id="floats"),
        pytest.param(np.ones((60, 80, 3), np.float32), np.ones((60, 80, 3), np.uint8), id="dark-floats"),
        pytest.param(np.full((60, 80), 7, np.uint8), np.full((60, 80, 3), 7, np.uint8), id="grey"),
        pytest.param(np.full((60, 80, 1), 7, np.uint8), np.full((60, 80, 3), 7, np.uint8), id="grey-channel"),
        pytest.param(
            np.dstack([make_image(60, 80)[..., ::-1], np.ones((60, 80), np.uint8)]), make_image(60, 80), id="alpha"
        ),
    ],
)
def test_whatever_the_loader_gives_is_kept_as_rgb_bytes(loaded, expected):
    sample = PackRecognitionInputs()(KeepOriginalImage()(results(img=loaded)))["data_samples"]
    assert sample.ori_img.dtype == torch.uint8
    assert np.array_equal(sample.ori_img.numpy(), expected)
    plain = ProposalsFromAnnotations()(results(img=loaded))
    crops = CropRegions(cropper=CROPPER)(plain)["region_crops"].encoder
    assert torch.equal(crops, RegionCropper(size=32).crop(expected, make_boxes(3)[[0, 2]]))


def test_normalised_pixels_are_refused():
    with pytest.raises(ImageReadError, match=r"image 7 \(None\) holds float32 values in -1..1; .*normalised"):
        KeepOriginalImage()(results(img=np.linspace(-1, 1, 60 * 80 * 3, dtype=np.float32).reshape(60, 80, 3)))


class TestProposalsFromAnnotations:
    def test_ignored_boxes_stay_out(self):
        found = ProposalsFromAnnotations()(results())
        assert np.array_equal(found["proposals"], make_boxes(3).numpy()[[0, 2]])
        assert found["proposals_scores"].tolist() == [1.0, 1.0]
        assert len(ProposalsFromAnnotations(with_ignored=True)(results())["proposals"]) == 3

    def test_no_boxes(self):
        empty = results(gt_bboxes=np.zeros((0, 4), np.float32), gt_ignore_flags=np.zeros(0, bool))
        found = ProposalsFromAnnotations()(empty)
        assert found["proposals"].shape == (0, 4)
        assert found["proposals"].dtype == np.float32

    def test_without_annotations(self):
        without = results()
        del without["gt_bboxes"]
        with pytest.raises(ConfigError, match=r"LoadAnnotations\(with_bbox=True\)"):
            ProposalsFromAnnotations()(without)

    @pytest.mark.parametrize("kind", ["bitmap", "polygon"])
    def test_masks_are_filtered_as_boxes_are(self, kind):
        polygons = [[np.array([x1, y1, x2, y1, x1, y2], float)] for x1, y1, x2, y2 in make_boxes(3).tolist()]
        masks = PolygonMasks(polygons, 60, 80)
        expected = masks.to_ndarray()
        given = results(gt_masks=masks if kind == "polygon" else BitmapMasks(expected, 60, 80))
        found = ProposalsFromAnnotations(with_masks=True)(given)
        assert np.array_equal(found["proposal_masks"], expected[[0, 2]])
        assert "masks" not in PackRecognitionInputs()(found)["data_samples"].gt_instances

    @pytest.mark.parametrize("masks", [BitmapMasks([], 60, 80), PolygonMasks([], 60, 80)], ids=["bitmap", "polygon"])
    def test_no_masks_of_no_boxes(self, masks):
        empty = results(gt_bboxes=np.zeros((0, 4), np.float32), gt_ignore_flags=np.zeros(0, bool), gt_masks=masks)
        found = CropRegions(cropper=MASK_CROPPER)(ProposalsFromAnnotations(with_masks=True)(empty))
        assert found["region_crops"].encoder.shape == (0, 3, 32, 32)

    def test_without_annotated_masks(self):
        with pytest.raises(ConfigError, match=r"LoadAnnotations\(with_bbox=True, with_mask=True\)"):
            ProposalsFromAnnotations(with_masks=True)(results())


class TestCropRegions:
    def test_equals_the_cropper(self):
        found = CropRegions(cropper=CROPPER, ranker_cropper=CROPPER | {"size": 24})(
            ProposalsFromAnnotations()(results())
        )
        boxes = make_boxes(3)[[0, 2]]
        assert torch.equal(found["region_crops"].encoder, RegionCropper(size=32).crop(make_image(60, 80), boxes))
        assert torch.equal(found["region_crops"].ranker, RegionCropper(size=24).crop(make_image(60, 80), boxes))
        assert found["region_crops"].encoder_cropper == RegionCropper(size=32)
        assert found["region_crops"].ranker_cropper == RegionCropper(size=24)
        sample = PackRecognitionInputs()(found)["data_samples"]
        assert sample.region_crops is found["region_crops"]
        assert "ori_img" not in sample

    def test_masks_reach_both_croppers(self):
        masks = np.zeros((3, 60, 80), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, make_boxes(3).int().tolist(), strict=True):
            mask[y1 : (y1 + y2) // 2, x1:x2] = 1
        given = ProposalsFromAnnotations(with_masks=True)(results(gt_masks=BitmapMasks(masks, 60, 80)))
        crops = CropRegions(cropper=MASK_CROPPER, ranker_cropper=MASK_CROPPER | {"size": 24})(given)["region_crops"]
        for size, found in ((32, crops.encoder), (24, crops.ranker)):
            cropper = RegionCropper(size=size, background=BlurOutsideMask(3))
            expected = cropper.crop(make_image(60, 80), make_boxes(3)[[0, 2]], masks[[0, 2]])
            assert torch.equal(found, expected)
            assert not torch.equal(found, cropper.crop(make_image(60, 80), make_boxes(3)[[0, 2]]))

    def test_a_bad_box_is_left_to_the_model(self):
        given = KeepOriginalImage()(
            results(proposals=np.array([[5, 5, 1, 1]], np.float32), proposals_scores=np.ones(1))
        )
        sample = PackRecognitionInputs()(CropRegions(cropper=CROPPER)(given))["data_samples"]
        assert "region_crops" not in sample
        assert sample.ori_img.shape == (60, 80, 3)

    def test_without_proposals(self):
        with pytest.raises(ConfigError, match="ProposalsFromAnnotations or LoadProposals"):
            CropRegions(cropper=CROPPER)(results())

    def test_without_a_size(self):
        with pytest.raises(ConfigError, match=r"CropRegions\.ranker_cropper needs `size`"):
            CropRegions(cropper=CROPPER, ranker_cropper={"type": "RegionCropper"})

    def test_misspelt_key(self):
        with pytest.raises(ConfigError, match=r"CropRegions\.cropper: RegionCropper has no key 'sise'"):
            CropRegions(cropper={"sise": 32})
