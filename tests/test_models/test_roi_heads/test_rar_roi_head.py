"""`RARRoIHead` in stock Fast, Faster, Mask and Cascade R-CNN."""

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.runner.checkpoint import load_state_dict
from mmengine.structures import InstanceData

from rar_mmdet.errors import ConfigError, InferenceOnlyError
from rar_mmdet.models.frames import ImageFrame
from rar_mmdet.models.testing import fake_recognizer, make_batch, stock_model
from rar_mmdet.testing import make_boxes

NAMES = [f"thing {i}" for i in range(15)]
FASTER = "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
MASK = "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
CASCADE = "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py"
FAST = "fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py"


def rar(config, **changes):
    """A stock model with our head; the class-specific mask branch made class-agnostic."""
    model = stock_model(config)
    head = model.roi_head
    head.type = f"rar_mmdet.RAR{'Cascade' if 'Cascade' in head.type else ''}RoIHead".replace("Standard", "")
    head.recognizer = fake_recognizer(NAMES)
    if "mask_head" in head:
        head.mask_head.class_agnostic = True
    if "rpn" in model.test_cfg:
        model.test_cfg.rpn.max_per_img = 12
    for key, value in changes.items():  # `ConfigDict.update` would merge dicts
        head[key] = value
    return model


def predict(model, batch):
    with torch.no_grad():
        return MODELS.build(model).eval().test_step(batch) if isinstance(model, dict) else model.test_step(batch)


def without_rpn(model):
    """Turn a detector into Fast R-CNN, which takes the proposals of its data samples."""
    model.type = "FastRCNN"
    del model.rpn_head


def check_detections(sample, image_hw):
    found = sample.pred_instances
    height, width = image_hw
    assert 0 < len(found) <= 300
    assert (found.scores.diff() <= 0).all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert ((found.labels >= 0) & (found.labels < len(NAMES))).all()
    assert (found.bboxes[:, :2] >= -1e-3).all()
    assert (found.bboxes[:, 2] <= width + 1e-3).all()
    assert (found.bboxes[:, 3] <= height + 1e-3).all()
    assert torch.equal(found.bboxes, sample.recognition.bboxes[found.region_ids])


@pytest.mark.parametrize("config", [FASTER, MASK, CASCADE])
def test_two_images_of_different_size(config):
    image_hws = [(60, 80), (90, 70)]
    samples = predict(rar(config), make_batch(image_hws, [(96, 128), (128, 96)]))
    for sample, image_hw in zip(samples, image_hws, strict=True):
        check_detections(sample, image_hw)
        if config != FASTER:
            assert sample.pred_instances.masks.shape == (len(sample.pred_instances), *image_hw)
            assert sample.pred_instances.masks.dtype == torch.bool


def test_keys_of_the_stock_head_hold():
    (sample,) = predict(rar(FASTER), make_batch([(60, 80)]))
    assert {"bboxes", "scores", "labels"} <= set(sample.pred_instances.keys())
    assert sample.pred_instances.bboxes.dtype == torch.float32
    assert sample.pred_instances.labels.dtype == torch.int64


def given_proposals(batch, boxes_per_image):
    """Proposals in the input frame from boxes of the original image."""
    for sample, boxes in zip(batch["data_samples"], boxes_per_image, strict=True):
        frame = ImageFrame.from_metainfo(sample.metainfo)
        sample.proposals = InstanceData(bboxes=frame.to_input(boxes), scores=torch.linspace(0.9, 0.4, len(boxes)))
    return batch


@pytest.fixture(scope="module")
def proposals_stand():
    """Fast R-CNN whose proposals are recognised as they are."""
    register_all_modules(init_default_scope=True)
    return MODELS.build(rar(FAST, bbox_head=None)).eval()


@pytest.mark.parametrize("input_hw", [(60, 80), (96, 160), (75, 211), (40, 32)])
@pytest.mark.parametrize("flip", [None, "horizontal", "diagonal"])
def test_proposals_come_back_in_original_pixels(proposals_stand, input_hw, flip):
    """Whatever the resize and flip, the same regions are recognised in the same way."""
    boxes = make_boxes(6)
    model = proposals_stand
    (plain,) = predict(model, given_proposals(make_batch([(60, 80)]), [boxes]))
    (found,) = predict(model, given_proposals(make_batch([(60, 80)], [input_hw], [flip]), [boxes]))
    assert (found.recognition.bboxes - boxes).abs().max() < 1e-3
    assert torch.equal(found.recognition.ranked_ids, plain.recognition.ranked_ids)
    assert torch.allclose(found.pred_instances.scores, plain.pred_instances.scores, atol=2e-3)
    assert (found.pred_instances.bboxes - boxes[found.pred_instances.region_ids]).abs().max() < 1e-3
    assert not found.flip  # or MMDetection's test-time augmentation would flip the boxes


def test_without_rescale_boxes_stay_in_the_input_frame():
    boxes = make_boxes(4)
    model = MODELS.build(rar(FAST, bbox_head=None)).eval()
    batch = model.data_preprocessor(given_proposals(make_batch([(60, 80)], [(120, 160)]), [boxes]))
    with torch.no_grad():
        (found,) = model.predict(batch["inputs"], batch["data_samples"], rescale=False)
    assert (found.pred_instances.bboxes - 2 * boxes[found.pred_instances.region_ids]).abs().max() < 1e-3


def test_scores_are_fused_with_objectness():
    """Without ranker and NMS, score = sqrt(probability * objectness)."""
    recognizer = fake_recognizer(NAMES, ranker=False, emission={"box_score_weight": 0.5})
    (found,) = predict(
        rar(FAST, bbox_head=None, recognizer=recognizer), given_proposals(make_batch([(60, 80)]), [make_boxes(3)])
    )
    kept = found.recognition
    expected = (kept.shortlist_probs * kept.box_scores[:, None]).sqrt().flatten().sort(descending=True).values
    assert torch.allclose(found.pred_instances.scores, expected, atol=1e-6)


def test_default_emission_suppresses_within_categories():
    (found,) = predict(rar(FASTER), make_batch([(60, 80)]))
    found = found.pred_instances
    from torchvision.ops import box_iou

    same = (found.labels[:, None] == found.labels[None]) & ~torch.eye(len(found), dtype=torch.bool)
    assert box_iou(found.bboxes, found.bboxes)[same].max() <= 0.5 + 1e-6


@pytest.mark.parametrize("config", [FAST, CASCADE])
def test_one_image_of_the_batch_without_proposals(config):
    model = rar(config)
    if config == CASCADE:
        without_rpn(model)
    batch = given_proposals(make_batch([(60, 80), (90, 70)]), [torch.zeros(0, 4), make_boxes(3, 90, 70)])
    empty, full = predict(model, batch)
    assert len(empty.pred_instances) == 0
    assert empty.pred_instances.bboxes.shape == (0, 4)
    assert empty.recognition.bboxes.shape == (0, 4)
    check_detections(full, (90, 70))
    if config == CASCADE:
        assert empty.pred_instances.masks.shape == (0, 60, 80)


def test_no_proposals_at_all():
    samples = predict(rar(FAST), given_proposals(make_batch([(60, 80)] * 2), [torch.zeros(0, 4)] * 2))
    assert [len(s.pred_instances) for s in samples] == [0, 0]


def test_selection_keeps_the_best_regions():
    batch = given_proposals(make_batch([(60, 80)]), [make_boxes(9)])
    (found,) = predict(rar(FAST, bbox_head=None, selection={"max_regions": 4}), batch)
    assert torch.equal(found.recognition.bboxes, make_boxes(9)[:4])


class TestBoxRefinement:
    def test_off_and_without_a_bbox_head_agree(self):
        def boxes(**changes):
            (found,) = predict(rar(FAST, **changes), given_proposals(make_batch([(60, 80)]), [make_boxes(4)]))
            return found.recognition.bboxes

        assert torch.equal(boxes(box_refinement=False), boxes(bbox_head=None))
        assert torch.equal(boxes(bbox_head=None), make_boxes(4))

    @pytest.mark.parametrize("agnostic", [False, True], ids=["class-specific", "class-agnostic"])
    def test_equals_the_stock_head(self, agnostic):
        """Our boxes are the stock bbox head's for its own best class."""
        config = rar(FAST)
        config.roi_head.bbox_head.reg_class_agnostic = agnostic
        model = MODELS.build(config).eval()
        torch.nn.init.normal_(model.roi_head.bbox_head.fc_reg.weight, std=0.05)
        boxes = make_boxes(5)
        (found,) = predict(model, given_proposals(make_batch([(60, 80)]), [boxes]))
        batch = model.data_preprocessor(given_proposals(make_batch([(60, 80)]), [boxes]))
        with torch.no_grad():
            rois = torch.cat([torch.zeros(5, 1), batch["data_samples"][0].proposals.bboxes], dim=1)
            results = model.roi_head._bbox_forward(model.extract_feat(batch["inputs"]), rois)
        deltas = results["bbox_pred"]
        if not agnostic:
            best = results["cls_score"][:, :-1].argmax(1)
            deltas = deltas.view(5, -1, 4)[torch.arange(5), best]
        expected = model.roi_head.bbox_head.bbox_coder.decode(rois[:, 1:], deltas, max_shape=(60, 80))
        order = [(expected - b).abs().sum(1).argmin().item() for b in found.recognition.bboxes]
        assert (expected[order] - found.recognition.bboxes).abs().max() < 1e-3
        assert (expected - boxes).abs().max() > 0.1


class TestCheckpoints:
    @pytest.mark.parametrize("config", [FASTER, MASK, CASCADE])
    @pytest.mark.parametrize("with_head", [True, False], ids=["refining", "no-bbox-head"])
    def test_a_stock_checkpoint_loads_but_for_its_classifier(self, config, with_head, capsys):
        if config == CASCADE and not with_head:
            pytest.skip("MMDetection's CascadeRoIHead always has bbox heads")
        stock = stock_model(config)
        if "mask_head" in stock.roi_head:
            stock.roi_head.mask_head.class_agnostic = True
        state = MODELS.build(stock).state_dict()
        model = MODELS.build(rar(config) if with_head else rar(config, bbox_head=None))
        load_state_dict(model, state)
        said = capsys.readouterr().out
        assert "missing keys" not in said
        assert "unexpected key" not in said
        assert "size mismatch" not in said
        own = model.state_dict()
        assert all(torch.equal(own[key], state[key]) for key in own)
        assert not any("placeholder" in key for key in own)
        left_out = {key for key in state if key not in own}
        assert all(key.startswith("roi_head.bbox_head.") for key in left_out)

    def test_a_class_agnostic_head_loses_only_its_classifier(self):
        config = stock_model(FASTER)
        config.roi_head.bbox_head.reg_class_agnostic = True
        state = MODELS.build(config).state_dict()
        ours = rar(FASTER)
        ours.roi_head.bbox_head.reg_class_agnostic = True
        own = MODELS.build(ours).state_dict()
        assert {key for key in state if key not in own} == {
            "roi_head.bbox_head.fc_cls.weight",
            "roi_head.bbox_head.fc_cls.bias",
        }


class TestMasks:
    def test_masks_sit_where_their_boxes_are(self):
        """A mask branch that says yes everywhere paints each box, in original pixels, whatever the resize."""
        config = rar(MASK, bbox_head=None)
        without_rpn(config)
        model = MODELS.build(config).eval()
        torch.nn.init.constant_(model.roi_head.mask_head.conv_logits.weight, 0)
        torch.nn.init.constant_(model.roi_head.mask_head.conv_logits.bias, 9)
        boxes = torch.tensor([[10.0, 12, 50, 40], [30, 5, 75, 55]])
        (found,) = predict(model, given_proposals(make_batch([(60, 80)], [(90, 200)]), [boxes]))
        for mask, box in zip(found.pred_instances.masks, found.pred_instances.bboxes, strict=True):
            rows, cols = np.nonzero(mask.numpy())
            painted = np.array([cols.min(), rows.min(), cols.max() + 1, rows.max() + 1])
            assert np.abs(painted - box.numpy()).max() <= 1
        assert (found.recognition.bboxes - boxes).abs().max() < 1e-3

    def test_labels_of_one_region_share_its_mask(self):
        (found,) = predict(rar(MASK), make_batch([(60, 80)]))
        found = found.pred_instances
        for region in found.region_ids.unique():
            masks = found.masks[found.region_ids == region]
            assert torch.equal(masks, masks[:1].expand_as(masks))

    def test_a_class_specific_branch_needs_the_vocabulary(self):
        config = rar(MASK)
        config.roi_head.mask_head.class_agnostic = False
        with pytest.raises(ConfigError, match="each of its 80 classes, but the vocabulary has 15"):
            MODELS.build(config)
        config.roi_head.mask_head.num_classes = len(NAMES)
        (found,) = predict(config, make_batch([(60, 80)]))
        assert found.pred_instances.masks.shape == (len(found.pred_instances), 60, 80)


def test_training_is_refused():
    model = MODELS.build(rar(FASTER))
    with pytest.raises(InferenceOnlyError, match="RARRoIHead is inference only"):
        model.roi_head.loss((), [], [])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"selection": {"max_region": 3}}, "max_region"),
        ({"recogniser": {}}, "recogniser"),
        ({"recognizer": fake_recognizer(NAMES) | {"croper": {}}}, r"model\.roi_head\.recognizer.*'croper'"),
    ],
)
def test_misspelt_keys_fail_at_build(changes, match):
    with pytest.raises((ConfigError, TypeError), match=match):
        MODELS.build(rar(FASTER, **changes))


def test_clip_and_ranker_are_no_part_of_the_module():
    model = MODELS.build(rar(FASTER, bbox_head=None))
    assert {name for name, _ in model.roi_head.named_children()} == {"placeholder"}
    assert [name for name, p in model.roi_head.named_parameters() if p.requires_grad] == ["placeholder.scalar"]
    assert not list(model.roi_head.state_dict())
