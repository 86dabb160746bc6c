"""`RARDetector` around an anchor-based, an anchor-free and a DETR-type detector of MMDetection."""

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict
from mmengine.structures import InstanceData
from torchvision.ops import box_iou
from transformers import BertConfig, BertModel, BertTokenizerFast

from rar_mmdet.errors import ConfigError, InferenceOnlyError
from rar_mmdet.models.frames import ImageFrame
from rar_mmdet.models.testing import fake_recognizer, make_batch, stock_model
from rar_mmdet.testing import make_boxes

NAMES = [f"thing {i}" for i in range(15)]
IMAGE_HWS = [(60, 80), (90, 70)]
INPUT_HWS = [(96, 128), (128, 96)]


def retinanet():
    return dense("retinanet/retinanet_r50_fpn_1x_coco.py")


def fcos():
    return dense("fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py")


def dense(config):
    model = stock_model(config)
    model.test_cfg.score_thr = 0.001  # such heads begin at scores of 0.01
    return model


def dino():
    model = stock_model("dino/dino-4scale_r50_8xb2-12e_coco.py")
    model.num_queries = 30
    model.encoder.num_layers, model.decoder.num_layers = 1, 2
    model.test_cfg.max_per_img = 20
    return model


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    """A folder that MMDetection's `BertModel` loads: a random model with a handful of words."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "object", "animal", "thing"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)  # a fixture of the module comes before the seed of each test
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return str(folder)


def grounding_dino(bert):
    model = stock_model("grounding_dino/grounding_dino_r50_scratch_8xb2_1x_coco.py")
    model.num_queries = 30
    model.language_model.name = bert
    model.encoder.num_layers, model.decoder.num_layers = 1, 2
    model.encoder.num_cp = 0
    model.test_cfg.max_per_img = 20
    return model


def rar(detector, **changes):
    config = {"type": "rar_mmdet.RARDetector", "detector": detector, "recognizer": fake_recognizer(NAMES)}
    model = MODELS.build(config | changes)
    model.init_weights()  # DETR-like models leave some parameters to it: whatever the memory held until then
    return model.eval()


def predict(model, batch):
    with torch.no_grad():
        return model.test_step(batch)


@pytest.mark.parametrize("detector", [retinanet, fcos, dino], ids=["anchor-based", "anchor-free", "detr"])
def test_two_images_of_different_size(detector):
    samples = predict(rar(detector()), make_batch(IMAGE_HWS, INPUT_HWS))
    for sample, (height, width) in zip(samples, IMAGE_HWS, strict=True):
        found = sample.pred_instances
        assert len(found) > 0
        assert (found.scores.diff() <= 0).all()
        assert found.labels.max() < len(NAMES)
        assert (found.bboxes >= 0).all()
        assert found.bboxes[:, 2].max() <= width
        assert found.bboxes[:, 3].max() <= height
        regions = sample.recognition.bboxes
        assert torch.equal(found.bboxes, regions[found.region_ids])
        assert box_iou(regions, regions).fill_diagonal_(0).max() <= 0.7


def test_a_detector_that_is_asked_by_text(tiny_bert):
    model = rar(grounding_dino(tiny_bert), text_prompt="object . animal . thing .")
    samples = predict(model, make_batch(IMAGE_HWS, INPUT_HWS))
    for sample in samples:
        assert len(sample.recognition.bboxes) > 0
        regions = sample.recognition.bboxes[sample.pred_instances.region_ids]
        assert torch.equal(sample.pred_instances.bboxes, regions)
    with pytest.raises(ConfigError, match="GroundingDINO, which finds what a text names: give model.text_prompt"):
        rar(grounding_dino(tiny_bert))


def test_regions_are_the_best_boxes_of_the_inner_detector():
    model = rar(retinanet(), selection={"nms_iou": None, "max_regions": 5})
    (found,) = predict(model, make_batch([(60, 80)], [(96, 128)]))
    (inner,) = predict(model.detector, make_batch([(60, 80)], [(96, 128)]))
    large = (inner.pred_instances.bboxes[:, 2:] - inner.pred_instances.bboxes[:, :2] >= 1).all(1)
    assert torch.equal(found.recognition.box_scores, inner.pred_instances.scores[large][:5])
    assert torch.allclose(found.recognition.bboxes, inner.pred_instances.bboxes[large][:5], atol=1e-4)


class Scripted(torch.nn.Module):
    """A detector that finds given boxes, with masks, in MMDetection's output frame."""

    def __init__(self, boxes):
        super().__init__()
        self.data_preprocessor = MODELS.build({"type": "DetDataPreprocessor"})
        self.boxes = boxes

    def predict(self, batch_inputs, batch_data_samples, rescale=True):
        for sample in batch_data_samples:
            boxes = ImageFrame.from_metainfo(sample.metainfo).to_input(self.boxes)
            if rescale:  # as MMDetection's heads do it
                boxes = boxes / boxes.new_tensor(sample.scale_factor).repeat(2)
            height, width = sample.ori_shape
            masks = torch.arange(len(boxes))[:, None, None].expand(-1, height, width)
            scores = torch.linspace(0.9, 0.5, len(boxes))
            sample.pred_instances = InstanceData(
                bboxes=boxes, scores=scores, labels=torch.zeros(len(boxes), dtype=torch.int64), masks=masks
            )
        return batch_data_samples


def scripted(boxes):
    model = rar(retinanet(), selection={"nms_iou": None})
    model.detector = Scripted(boxes)
    return model


@pytest.mark.parametrize("flip", [None, "horizontal", "vertical"])
@pytest.mark.parametrize("input_hw", [(60, 80), (96, 160), (75, 211)])
def test_resize_and_flip_do_not_matter(flip, input_hw):
    boxes = make_boxes(5)
    (plain,) = predict(scripted(boxes), make_batch([(60, 80)]))
    (found,) = predict(scripted(boxes), make_batch([(60, 80)], [input_hw], [flip]))
    assert (found.recognition.bboxes - boxes).abs().max() < 1e-3
    assert torch.equal(found.recognition.ranked_ids, plain.recognition.ranked_ids)
    assert (found.pred_instances.bboxes - boxes[found.pred_instances.region_ids]).abs().max() < 1e-3
    assert not found.flip  # or MMDetection's test-time augmentation would flip the boxes


def test_masks_follow_their_boxes():
    (found,) = predict(scripted(make_boxes(5)), make_batch([(60, 80)]))
    assert torch.equal(found.pred_instances.masks[:, 0, 0], found.pred_instances.region_ids)


def test_no_boxes():
    (found,) = predict(scripted(torch.zeros(0, 4)), make_batch([(60, 80)]))
    assert len(found.pred_instances) == 0
    assert found.pred_instances.masks.shape == (0, 60, 80)
    assert found.recognition.bboxes.shape == (0, 4)


@pytest.mark.parametrize("prefixed", [False, True])
def test_checkpoint_of_the_inner_detector_loads(prefixed, capsys):
    state = MODELS.build(retinanet()).state_dict()
    model = rar(retinanet())
    load_state_dict(model, {f"detector.{k}": v for k, v in state.items()} if prefixed else state)
    said = capsys.readouterr().out
    assert "missing keys" not in said
    assert "unexpected key" not in said
    assert all(torch.equal(v, state[k]) for k, v in model.detector.state_dict().items())
    assert all(key.startswith("detector.") for key in model.state_dict())


def test_classes_are_the_vocabulary_whatever_the_checkpoint_says():
    model = rar(retinanet())
    palette = [(i, 2, 3) for i in range(80)]
    model.dataset_meta = {"classes": ("person", "bicycle"), "palette": palette}
    assert model.dataset_meta == {"classes": tuple(NAMES), "palette": palette}
    model.dataset_meta = {"classes": ("person", "bicycle"), "palette": palette[:2]}
    assert model.dataset_meta == {"classes": tuple(NAMES), "palette": "random"}


def test_training_is_refused():
    with pytest.raises(InferenceOnlyError, match="RARDetector is inference only"):
        rar(retinanet()).loss(torch.zeros(1, 3, 32, 32), [])


def test_misspelt_selection():
    with pytest.raises(ConfigError, match=r"model\.selection: .*nms_io"):
        rar(retinanet(), selection={"nms_io": 0.5})


def test_parts_of_the_inner_detector_are_the_wrappers():
    model = rar(retinanet())
    inner = model.detector
    assert (model.backbone, model.neck, model.bbox_head) == (inner.backbone, inner.neck, inner.bbox_head)
    assert model.with_neck
    assert model.with_bbox
    assert not model.with_mask
    with pytest.raises(AttributeError, match="rpn_head"):
        model.rpn_head  # noqa: B018
    assert not any(key.startswith("backbone") for key in model.state_dict())
    two_stage = stock_model("faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py")
    model = MODELS.build({"type": "rar_mmdet.RARDetector", "detector": two_stage, "recognizer": fake_recognizer(NAMES)})
    assert model.rpn_head is model.detector.rpn_head
    assert model.roi_head is model.detector.roi_head
    assert model.with_rpn
    assert model.with_roi_head
