"""Boxes of a pipeline against MMDetection's own transforms: whatever moved the image, the photo's pixels are meant."""

import random

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmdet.registry import MODELS
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.dataset import pseudo_collate

from rar_mmdet.datasets import CropRegions, KeepOriginalImage, PackRecognitionInputs, ProposalsFromAnnotations
from rar_mmdet.errors import ConfigError
from rar_mmdet.models.frames import ImageFrame
from rar_mmdet.models.testing import fake_recognizer
from rar_mmdet.testing import make_boxes, make_image

NAMES = [f"thing {i}" for i in range(9)]
BOXES = make_boxes(4)
CROPPER = {"type": "RegionCropper", "size": 32}
CROPS = {"type": "rar_mmdet.CropRegions", "cropper": CROPPER, "ranker_cropper": {**CROPPER, "size": 24}}
KEEP, GIVE, PACK = (
    {"type": f"rar_mmdet.{name}"} for name in ("KeepOriginalImage", "ProposalsFromAnnotations", "PackRecognitionInputs")
)


def flip(direction):
    return {"type": "RandomFlip", "prob": 1.0, "direction": direction}


def resize(*wh, keep_ratio=False):
    return {"type": "Resize", "scale": wh, "keep_ratio": keep_ratio}


# 60 of 80 columns and 50 of 60 rows
CROP = {"type": "RandomCrop", "crop_size": (60, 50), "bbox_clip_border": False, "allow_negative_crop": True}
PAD = {"type": "Pad", "size": (200, 210)}
MOVES = {
    "nothing": [],
    "resize": [resize(123, 77)],
    "resize-keeping-the-ratio": [resize(150, 150, keep_ratio=True)],
    "horizontal": [flip("horizontal")],
    "vertical": [flip("vertical")],
    "diagonal": [resize(160, 60), flip("diagonal")],
    "pad": [resize(160, 120), PAD],
    "flip-then-pad": [resize(160, 120), flip("horizontal"), PAD],
    "pad-then-flip": [resize(160, 120), PAD, flip("diagonal")],
    "crop": [CROP],
    "crop-then-resize-then-flip": [CROP, resize(100, 120), flip("horizontal")],
}
moves = pytest.mark.parametrize("steps", MOVES.values(), ids=MOVES.keys())


@pytest.fixture(autouse=True)
def _seeds():
    """Crops and shears draw at random."""
    np.random.seed(0)
    random.seed(0)


def loaded(boxes=BOXES, **changes):
    """Results as they stand after `LoadImageFromFile` and `LoadAnnotations`."""
    annotations = [{"bbox": box, "bbox_label": i, "ignore_flag": int(i == 1)} for i, box in enumerate(boxes.tolist())]
    return {
        "img": make_image(60, 80)[..., ::-1].copy(),
        "img_id": 7,
        "img_path": "photo.png",
        "img_shape": (60, 80),
        "ori_shape": (60, 80),
        "instances": annotations,
        "gt_bboxes": HorizontalBoxes(boxes.clone()),
        "gt_bboxes_labels": np.arange(len(boxes)),
        "gt_ignore_flags": np.array([a["ignore_flag"] for a in annotations], dtype=bool),
    } | changes


def unannotated(**changes):
    """Results after `LoadImageFromFile` alone."""
    return {key: value for key, value in loaded(**changes).items() if not key.startswith("gt_")}


@moves
def test_the_frame_is_where_mmdetection_moved_its_own_boxes(steps):
    inside = torch.tensor([[30.0, 25, 45, 35]])  # seen by every crop's centre, so that no crop drops it
    results = Compose(steps)(loaded(inside))
    frame = ImageFrame.from_metainfo(results)
    if len(results["gt_bboxes"]):
        assert (frame.to_input(inside) - results["gt_bboxes"].tensor).abs().max() < 0.02
    assert (frame.to_original(frame.to_input(inside)) - inside).abs().max() < 1e-3


@moves
@pytest.mark.parametrize("give_first", [True, False], ids=["given-first", "given-last"])
def test_given_boxes_stay_where_the_photo_has_them(steps, give_first):
    if CROP in steps and not give_first:
        with pytest.raises(ConfigError, match="put LoadAnnotations and ProposalsFromAnnotations before"):
            Compose([KEEP, *steps, GIVE])(loaded(torch.tensor([[1.0, 1, 5, 5], [75, 55, 79, 59]])))
        return
    pipeline = Compose([KEEP, *([GIVE, *steps] if give_first else [*steps, GIVE]), PACK])
    sample = pipeline(loaded())["data_samples"]
    assert torch.equal(sample.given_boxes.bboxes, BOXES[[0, 2, 3]])
    back = ImageFrame.from_metainfo(sample.metainfo).to_original(sample.proposals.bboxes)
    assert (back - BOXES[[0, 2, 3]]).abs().max() < 1e-3
    assert sample.gt_instances.bboxes.tensor.tolist() == BOXES[[0, 2, 3]].tolist()
    assert sample.gt_instances.labels.tolist() == [0, 2, 3]


def test_annotations_loaded_after_the_image_was_moved_are_the_photos():
    before = Compose([KEEP, resize(160, 120), flip("horizontal")])(loaded())
    after = before | {"gt_bboxes": HorizontalBoxes(BOXES.clone())}  # `LoadAnnotations` in MMDetection's usual place
    sample = Compose([GIVE, PACK])(after)["data_samples"]
    assert torch.equal(sample.given_boxes.bboxes, BOXES[[0, 2, 3]])
    assert torch.equal(sample.gt_instances.bboxes.tensor, BOXES[[0, 2, 3]])


@pytest.fixture(scope="module")
def model():
    config = {"type": "rar_mmdet.ProposalRecognizer", "recognizer": fake_recognizer(NAMES)}
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    return MODELS.build(config).eval()


def recognised(model, *pipeline):
    with torch.no_grad():
        (sample,) = model.test_step(pseudo_collate([Compose(list(pipeline))(loaded())]))
    return sample


@moves
@pytest.mark.parametrize("crops", [[], [CROPS]], ids=["", "crops"])
def test_recognition_does_not_depend_on_what_moved_the_image(model, steps, crops):
    plain = recognised(model, KEEP, GIVE, PACK)
    found = recognised(model, KEEP, GIVE, *steps, *crops, PACK)
    for field in ("bboxes", "shortlist_ids", "shortlist_probs", "ranked_ids"):
        assert torch.equal(found.recognition[field], plain.recognition[field]), field
    for field in ("bboxes", "scores", "labels", "region_ids"):
        assert torch.equal(found.pred_instances[field], plain.pred_instances[field]), field
    assert "given_boxes" not in found


@pytest.mark.parametrize("keep", [True, False], ids=["kept-pixels", "file"])
@moves
def test_boxes_of_a_proposal_file(steps, keep, tmp_path):
    """`LoadProposals` leaves an array that nothing moves; `ProposalBroadcaster` moves it with the image."""
    scores = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    for wrapped in (False, True):
        if wrapped and (not steps or CROP in steps):
            continue  # a crop in `ProposalBroadcaster` drops boxes and not their scores
        middle = [{"type": "ProposalBroadcaster", "transforms": steps}] if wrapped else steps
        pipeline = Compose([*([KEEP] if keep else []), {"type": "LoadProposals"}, *middle, PACK])
        sample = pipeline(unannotated(proposals={"bboxes": BOXES.numpy(), "scores": scores}))["data_samples"]
        if keep:
            assert torch.equal(sample.given_boxes.bboxes, BOXES)
            assert sample.given_boxes.scores.tolist() == scores.tolist()
            back = ImageFrame.from_metainfo(sample.metainfo).to_original(sample.proposals.bboxes)
            assert (back - BOXES).abs().max() < 1e-3
        else:
            assert ("given_boxes" in sample) == (not steps)  # otherwise the model has to refuse


def test_fewer_proposals_on_demand():
    pipeline = Compose([KEEP, {"type": "LoadProposals", "num_max_proposals": 2}, flip("horizontal"), PACK])
    sample = pipeline(loaded(proposals={"bboxes": BOXES.numpy(), "scores": np.ones(4)}))["data_samples"]
    assert torch.equal(sample.given_boxes.bboxes, BOXES[:2])


class TestRefused:
    @pytest.mark.parametrize(
        "step",
        [{"type": "Rotate", "prob": 1.0, "level": 10}, {"type": "ShearX", "prob": 1.0, "level": 10}],
        ids=lambda step: step["type"],
    )
    def test_rotations_and_shears(self, step):
        with pytest.raises(ConfigError, match=r"image 7 \(photo.png\) was rotated or sheared"):
            Compose([KEEP, GIVE, step, PACK])(loaded())

    def test_two_resizes(self):
        with pytest.raises(ConfigError, match=r"was resized by \[0.5, 1.0\] in all, but its scale_factor is"):
            Compose([KEEP, GIVE, resize(160, 120), resize(40, 60), PACK])(loaded())

    def test_a_cut_without_a_record(self):
        results = Compose([KEEP, GIVE, {"type": "RandomCrop", "crop_size": (40, 50), "allow_negative_crop": True}])(
            loaded()
        )
        del results["homography_matrix"]
        with pytest.raises(ConfigError, match="the network input is 40x50 px and the photo 80x60 px"):
            PackRecognitionInputs()(results)

    def test_the_original_image_kept_too_late(self):
        with pytest.raises(ConfigError, match="before KeepOriginalImage; put it right after the loading transform"):
            Compose([flip("horizontal"), KEEP])(loaded())

    def test_crops_of_an_image_that_was_moved(self):
        results = ProposalsFromAnnotations()(loaded())
        moved = Compose([flip("horizontal")])(results)
        with pytest.raises(ConfigError, match="flipped or cut before CropRegions"):
            CropRegions(cropper=CROPPER)(moved)

    def test_masks_of_an_image_that_was_moved(self):
        masks = BitmapMasks(np.zeros((4, 60, 80), np.uint8), 60, 80)
        moved = Compose([flip("horizontal")])(loaded(gt_masks=masks))
        with pytest.raises(ConfigError, match=r"ProposalsFromAnnotations\(with_masks=True\), which cannot take"):
            ProposalsFromAnnotations(with_masks=True)(moved)

    def test_proposals_nobody_loaded(self):
        results = KeepOriginalImage()(loaded(proposals={"bboxes": BOXES.numpy()}))
        with pytest.raises(ConfigError, match=r"put dict\(type='LoadProposals'\) into the pipeline"):
            PackRecognitionInputs()(results)

    def test_proposals_a_crop_has_dropped(self):
        crop = {"type": "RandomCrop", "crop_size": (10, 10), "allow_negative_crop": True}
        file = {"bboxes": np.array([[0, 0, 9, 9], [60, 40, 70, 50.0]]), "scores": np.ones(2)}
        pipeline = Compose(
            [KEEP, {"type": "LoadProposals"}, {"type": "ProposalBroadcaster", "transforms": [crop]}, PACK]
        )
        with pytest.raises(ConfigError, match="2 boxes were given and [01] are left"):
            pipeline(unannotated(proposals=file))

    def test_stock_packing_of_proposals_in_a_moved_image(self, model, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        cv2.imwrite("photo.png", make_image(60, 80)[..., ::-1])
        stock = {"type": "PackDetInputs"}
        assert len(recognised(model, KEEP, GIVE, stock).recognition) == 3
        with pytest.raises(ConfigError, match="whether its proposals were moved with it cannot be told"):
            recognised(model, KEEP, GIVE, flip("horizontal"), stock)
