"""Every config parses, names only parts and keys that exist, builds, and predicts two images (fakes for weights)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, METRICS, MODELS, VISUALIZERS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate

from rar_mmdet.components import build_component
from rar_mmdet.models.testing import write_lvis_world

ROOT = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py") if "_base_" not in p.parts)
# The files whose names are promised elsewhere.
PROMISED = {
    *("clip_lvis.py", "clip_v3det.py", "rar_lvis_internlm.py", "demo/clip_demo.py", "demo/rar_demo.py"),
    *("rar_v3det_internlm.py", "rar_v3det_llava.py", "rar_v3det_qwen.py", "detectors/rar_faster-rcnn_demo.py"),
    *("rar_lvis_llava.py", "rar_lvis_qwen.py", "rar_lvis_internvl3.py", "rar_lvis_server.py", "clip_lvis_mask.py"),
    "regionclip_lvis.py",
    *(f"demo/rar_demo_{way}.py" for way in ("generate", "likelihood", "letter", "yesno")),
}
FAKE_ENCODER = {"type": "rar_mmdet.testing.FakeEncoder"}
FAKE_RANKER = {"type": "rar_mmdet.models.testing.FakeRanker"}


@pytest.fixture(autouse=True)
def _scope(monkeypatch, tmp_path_factory):
    register_all_modules(init_default_scope=True)
    monkeypatch.setenv("RAR_MMDET_CACHE", str(tmp_path_factory.getbasetemp() / "rar_cache"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_lvis_world(tmp_path_factory.mktemp("world"), num_images=2, empty_image=None)


def recognizer_of(config):
    model = config.model
    return model.recognizer if "recognizer" in model else model.roi_head.recognizer


def on_tiny_world(config, ann_file):
    """The config with data, vocabulary, weights and image sizes that a CPU can have in a second."""
    dataset = config.test_dataloader.dataset
    dataset.data_root, dataset.ann_file = str(ann_file.parents[1]), str(ann_file)
    side = 320 if "dino" in config.filename else 96  # DINO wants as many pixels as it has queries
    for transform in dataset.pipeline:
        if transform.type == "Resize":
            transform.scale = (side, side)
        if transform.type == "Pad":
            transform.size = (96, 96)
    for metric in config.test_evaluator:
        metric.ann_file = str(ann_file)
    recognizer = recognizer_of(config)
    recognizer.vocabulary = str(ann_file)
    recognizer.encoder = ConfigDict(FAKE_ENCODER, image_size=recognizer.cropper.get("size", 224))
    recognizer.emission = ConfigDict(max_per_image=10, box_score_weight=0.5, nms_iou=0.5)
    if recognizer.get("ranker"):
        recognizer.ranker = ConfigDict(FAKE_RANKER)
    for part in (config.model, config.model.get("roi_head", {})):
        if part.get("type") in ("rar_mmdet.RARRoIHead", "rar_mmdet.RARCascadeRoIHead", "rar_mmdet.RARDetector"):
            part.selection = ConfigDict(max_regions=12)
    if "mask_head" in config.model.get("roi_head", {}):
        config.model.roi_head.mask_head.num_classes = 12
    return config


def test_promised_configs_are_there():
    assert set(CONFIGS) >= PROMISED


def test_masks_are_used_where_they_are_promised(world):
    config = on_tiny_world(Config.fromfile(ROOT / "clip_lvis_mask.py"), world)
    crops = DATASETS.build(config.test_dataloader.dataset)[0]["data_samples"].region_crops
    own = build_component(config.model.recognizer.cropper, "cropper", default_type="RegionCropper")
    assert crops.encoder_cropper == own
    assert crops.encoder_cropper.background.uses_mask


@pytest.mark.parametrize("name", CONFIGS)
def test_parts_and_keys_exist(name):
    recognizer = recognizer_of(Config.fromfile(ROOT / name))
    for part in ("cropper", "ranker_cropper", "encoder", "memory", "ranker", "fusion", "emission"):
        if recognizer.get(part):
            build_component(recognizer[part], part, default_type={"emission": "TopPairs"}.get(part))


@pytest.mark.parametrize("name", CONFIGS)
def test_predicts_two_images(name, world):
    torch.manual_seed(0)
    config = on_tiny_world(Config.fromfile(ROOT / name), world)
    dataset = DATASETS.build(config.test_dataloader.dataset)
    model = MODELS.build(config.model).eval()
    with torch.no_grad():
        samples = model.test_step(pseudo_collate([dataset[0], dataset[1]]))
    assert len(samples) == 2
    metrics = [METRICS.build(metric) for metric in config.test_evaluator]
    for metric in metrics:
        metric.dataset_meta = dataset.metainfo
        metric.process({}, [sample.to_dict() for sample in samples])
        numbers = metric.evaluate(2)
        assert numbers
        assert all(np.isfinite(value) for value in numbers.values()), numbers
    for sample in samples:
        assert sample.pred_instances.bboxes.shape == (len(sample.pred_instances.scores), 4)
        assert sample.recognition.ranked_ids.shape[1] == min(5, 12)
    assert VISUALIZERS.get(config.visualizer.type) is not None
