"""MMDetection's own ways to predict: `inference_detector` and `DetInferencer`, from files and from arrays."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmdet.registry import MODELS
from mmengine.config import Config

from rar_mmdet.models.testing import fake_recognizer, stock_model
from rar_mmdet.testing import make_image

WORDS = ["fire hydrant", "crème brûlée", "bow", "bow", "zebra"]
PIPELINE = [
    {"type": "LoadImageFromFile"},
    {"type": "rar_mmdet.KeepOriginalImage"},
    {"type": "Resize", "scale": (128, 96), "keep_ratio": True},
    {"type": "rar_mmdet.PackRecognitionInputs"},
]


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), make_image(60, 80)[..., ::-1])
    return path


@pytest.fixture(params=["two-stage", "wrapped"])
def config(request, tmp_path):
    """A detector for one's own list of words: a names file."""
    names = tmp_path / "words.txt"
    names.write_text("\n".join(WORDS), encoding="utf-8")
    if request.param == "wrapped":
        detector = stock_model("retinanet/retinanet_r50_fpn_1x_coco.py")
        model = {"type": "rar_mmdet.RARDetector", "detector": detector, "recognizer": fake_recognizer(str(names))}
    else:
        model = stock_model("faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py")
        model.roi_head.update(type="rar_mmdet.RARRoIHead", recognizer=fake_recognizer(str(names)))
        model.test_cfg.rpn.max_per_img = 10
    dataset = {"type": "CocoDataset", "ann_file": "nowhere.json", "test_mode": True, "pipeline": PIPELINE}
    made = Config(
        {
            "default_scope": "mmdet",
            "model": model,
            "test_dataloader": {"dataset": dataset},
            "test_pipeline": PIPELINE,
            "visualizer": {"type": "rar_mmdet.RecognitionVisualizer", "vis_backends": [{"type": "LocalVisBackend"}]},
        }
    )
    path = tmp_path / "config.py"
    made.dump(str(path))
    return path


@pytest.fixture
def weights(config, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    state = MODELS.build(Config.fromfile(config).model).state_dict()
    torch.save({"state_dict": state, "meta": {"dataset_meta": {"classes": ("person",), "palette": [(1, 2, 3)]}}}, path)
    return path


def test_a_file_and_its_array_give_the_same(config, weights, photo):
    model = init_detector(str(config), str(weights), device="cpu", palette="random")
    from_file = inference_detector(model, str(photo)).pred_instances
    from_array = inference_detector(model, cv2.imread(str(photo))).pred_instances
    assert len(from_file) > 0
    assert torch.equal(from_file.scores, from_array.scores)
    assert torch.equal(from_file.labels, from_array.labels)
    assert torch.equal(from_file.bboxes, from_array.bboxes)


def test_det_inferencer_writes_json_and_drawings(config, weights, photo, tmp_path):
    inferencer = DetInferencer(str(config), str(weights), device="cpu", show_progress=False)
    out = inferencer(str(photo), out_dir=str(tmp_path / "out"), no_save_pred=False, return_datasamples=False)
    (prediction,) = out["predictions"]
    assert json.loads((tmp_path / "out" / "preds" / "photo.json").read_text()) == prediction
    assert set(prediction["labels"]) <= set(range(len(WORDS)))
    assert len(prediction["scores"]) == len(prediction["bboxes"]) > 0
    drawn = cv2.imread(str(tmp_path / "out" / "vis" / "photo.png"))
    assert drawn.shape == (60, 80, 3)
    assert not np.array_equal(drawn, cv2.imread(str(photo)))


def test_det_inferencer_takes_a_batch_of_arrays(config, weights):
    inferencer = DetInferencer(str(config), str(weights), device="cpu", show_progress=False)
    images = [make_image(60, 80), make_image(90, 70, seed=1)]
    out = inferencer(images, batch_size=2, return_datasamples=True, no_save_vis=True)
    assert [tuple(sample.ori_shape) for sample in out["predictions"]] == [(60, 80), (90, 70)]
    assert set(out["predictions"][0].pred_instances.label_names) <= {
        *WORDS,
        *(f"{a} → {b}" for a in WORDS for b in WORDS),
    }
