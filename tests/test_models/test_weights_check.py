"""A detector without its checkpoint says so, once."""

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict

from rar_mmdet.models import weights_check
from rar_mmdet.models.testing import fake_recognizer, make_batch, stock_model


def two_stage():
    config = stock_model("faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py")
    config.roi_head.update(type="rar_mmdet.RARRoIHead", recognizer=fake_recognizer(["a", "b", "c"]))
    config.test_cfg.rpn.max_per_img = 5
    return config


def wrapped():
    detector = stock_model("retinanet/retinanet_r50_fpn_1x_coco.py")
    return {"type": "rar_mmdet.RARDetector", "detector": detector, "recognizer": fake_recognizer(["a", "b", "c"])}


@pytest.fixture
def said(monkeypatch):
    weights_check._warn.cache_clear()
    lines = []
    monkeypatch.setattr(weights_check, "print_log", lambda message, **_: lines.append(message))
    return lines


@pytest.mark.parametrize("config", [two_stage, wrapped])
def test_random_weights(config, said):
    model = MODELS.build(config()).eval()
    with torch.no_grad():
        for _ in range(2):
            model.test_step(make_batch([(60, 80)], [(96, 128)]))
    assert len(said) == 1
    assert "NO CHECKPOINT WAS LOADED" in said[0]
    assert "tools/test.py CONFIG CHECKPOINT" in said[0]


@pytest.mark.parametrize("config", [two_stage, wrapped])
def test_loaded_weights(config, said):
    model = MODELS.build(config()).eval()
    load_state_dict(model, model.state_dict())
    with torch.no_grad():
        model.test_step(make_batch([(60, 80)], [(96, 128)]))
    assert said == []
