import pytest
import torch
from mmdet.registry import MODELS
from mmengine.structures import InstanceData

from rar_mmdet.errors import ConfigError, InferenceOnlyError
from rar_mmdet.models import build_component
from rar_mmdet.models.testing import fake_recognizer, make_batch
from rar_mmdet.regions import RegionCropper
from rar_mmdet.structures import RegionCrops
from rar_mmdet.testing import make_boxes, make_image

NAMES = [f"thing {i}" for i in range(15)]


def model(**changes):
    config = {"type": "rar_mmdet.ProposalRecognizer", "recognizer": fake_recognizer(NAMES, **changes)}
    return MODELS.build(config).eval()


def batch(boxes_per_image, image_hws):
    made = make_batch(image_hws)
    for sample, boxes in zip(made["data_samples"], boxes_per_image, strict=True):
        sample.proposals = InstanceData(bboxes=boxes, scores=torch.ones(len(boxes)))
    return made


def predict(recognizer, made):
    with torch.no_grad():
        return recognizer.test_step(made)


def test_equals_the_recognizer_on_each_image():
    boxes = [make_boxes(4), torch.zeros(0, 4), make_boxes(6, 90, 70, seed=2)]
    image_hws = [(60, 80), (64, 64), (90, 70)]
    recognizer = model()
    for i, sample in enumerate(predict(recognizer, batch(boxes, image_hws))):
        expected = recognizer.branch.recognizer(make_image(*image_hws[i], seed=i), boxes[i])
        assert torch.allclose(sample.pred_instances.scores, expected.scores, atol=1e-6)
        assert torch.equal(sample.pred_instances.labels, expected.category_ids)
        assert torch.equal(sample.pred_instances.bboxes, boxes[i][expected.region_ids])


def test_every_box_gives_every_name_within_the_limit():
    (few, many) = predict(model(), batch([make_boxes(3), make_boxes(40)], [(60, 80)] * 2))
    assert len(few.pred_instances) == 3 * len(NAMES)
    assert len(many.pred_instances) == 300


def test_crops_made_ahead_give_the_same_and_need_no_pixels():
    boxes = make_boxes(5)
    (plain,) = predict(model(), batch([boxes], [(60, 80)]))
    made = batch([boxes], [(60, 80)])
    image = made["data_samples"][0].ori_img.numpy()
    crops = RegionCrops(RegionCropper(size=32).crop(image, boxes), RegionCropper(size=24).crop(image, boxes))
    del made["data_samples"][0].ori_img
    made["data_samples"][0].set_field(crops, "region_crops")
    (found,) = predict(model(), made)
    assert torch.equal(found.pred_instances.scores, plain.pred_instances.scores)
    assert torch.equal(found.recognition.ranked_ids, plain.recognition.ranked_ids)
    assert "region_crops" not in found


def test_the_inputs_are_not_touched():
    made = batch([make_boxes(2)], [(60, 80)])
    before = made["inputs"][0].clone()
    predict(model(), made)
    assert torch.equal(made["inputs"][0], before)


def test_without_proposals_it_says_what_to_add():
    with pytest.raises(ConfigError, match=r"image 0 .* has no proposals; .*ProposalsFromAnnotations"):
        predict(model(), make_batch([(60, 80)]))


def test_training_is_refused():
    with pytest.raises(InferenceOnlyError, match="inference only"):
        model().loss(torch.zeros(1), [])


def test_nothing_to_train_but_something_for_ddp():
    recognizer = model()
    assert [tuple(p.shape) for p in recognizer.parameters()] == [()]
    assert all(p.requires_grad for p in recognizer.parameters())
    assert not list(recognizer.state_dict())


def test_a_built_component_passes_through():
    cropper = RegionCropper(size=32)
    assert build_component(cropper, "cropper") is cropper
