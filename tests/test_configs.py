"""Every config parses, names only what exists, and predicts two images with its own parts on tiny models."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, METRICS, MODELS, VISUALIZERS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

from rar_mmdet.components import build_component
from rar_mmdet.engine.preflight import check_config, check_vocabulary
from rar_mmdet.models.testing import write_lvis_world

ROOT = Path(__file__).parents[1] / "configs"
# Those of whole photos, of labelling and of trainings have no model of MMDetection; tests of their rooms have them.
CONFIGS = sorted(
    p.relative_to(ROOT).as_posix()
    for p in ROOT.rglob("*.py")
    if not {"_base_", "classification", "finetune", "labelling"} & set(p.parts)
)
# The files whose names are promised elsewhere.
PROMISED = {
    *("clip_lvis.py", "clip_v3det.py", "rar_lvis_internlm.py", "demo/clip_demo.py", "demo/rar_demo.py"),
    *("rar_v3det_internlm.py", "rar_v3det_llava.py", "rar_v3det_qwen.py", "detectors/rar_faster-rcnn_demo.py"),
    *("rar_lvis_llava.py", "rar_lvis_qwen.py", "rar_lvis_internvl3.py", "rar_lvis_server.py", "clip_lvis_mask.py"),
    "rar_lvis_hosted.py",
    "regionclip_lvis.py",
    *(f"detectors/rar_{d}_{s}.py" for d in ("llmdet_t", "mm_gdino_t", "owlv2") for s in ("lvis", "v3det", "coco")),
    *(f"detectors/rar_{d}_{s}.py" for d in ("dfine", "rtdetr") for s in ("lvis", "v3det", "coco")),
    *(f"demo/rar_demo_{way}.py" for way in ("generate", "likelihood", "letter", "yesno")),
}


def _helper(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worlds = _helper(Path(__file__).with_name("config_worlds.py"))


@pytest.fixture(autouse=True)
def _scope(monkeypatch, tmp_path_factory):
    register_all_modules(init_default_scope=True)
    monkeypatch.setenv("RAR_MMDET_CACHE", str(tmp_path_factory.getbasetemp() / "rar_cache"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_lvis_world(tmp_path_factory.mktemp("world"), num_images=2, empty_image=None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def server():
    running = worlds.LetterServer()
    yield running
    running.close()


def test_no_link_leads_into_the_download_site_that_is_gone():
    """OpenMMLab's domain expired in June 2026: checkpoints are named by hub id, or by the config of the zoo."""
    root = ROOT.parent
    folders = ("benchmarks", "configs", "demo", "docs", "rar_mmdet", "scripts", "tools")
    files = [*root.glob("*.*"), root / "Makefile", *(f for folder in folders for f in (root / folder).rglob("*.*"))]
    texts = [
        f for f in files if f.suffix in ("", ".cfg", ".json", ".md", ".py", ".sh", ".toml", ".txt") and f.is_file()
    ]
    assert len(texts) > 400
    for file in texts:
        assert "openmmlab.com" not in file.read_text(encoding="utf-8"), file


def test_files_of_the_zoo_are_named_with_what_tells_a_copy():
    """The last eight digits of a name are the first of the file's SHA-256; configs and the page name the same files."""
    page = (ROOT.parent / "docs" / "detectors.md").read_text(encoding="utf-8")
    row = re.compile(r"^\| `(rar_\S+\.py)` \| `(\S+)`.*?\| (?:`(\w+)`|not known) \| `(rar_\S+\.py)`", re.MULTILINE)
    rows = row.findall(page)
    assert len(rows) == 6
    for config, file, digits, instead in rows:
        how_to_get = Config.fromfile(ROOT / "detectors" / config).how_to_get
        (line,) = [how for how in how_to_get if how.startswith("checkpoint")]
        assert f"checkpoint: {file}, " in line
        assert not digits or file.endswith(f"-{digits}.pth")
        assert (ROOT / "detectors" / instead).is_file()


def test_promised_configs_are_there():
    assert set(CONFIGS) >= PROMISED


def test_masks_are_used_where_they_are_promised(world):
    config = worlds.on_tiny_world(Config.fromfile(ROOT / "clip_lvis_mask.py"), world)
    crops = DATASETS.build(config.test_dataloader.dataset)[0]["data_samples"].region_crops
    own = build_component(config.model.recognizer.cropper, "cropper", default_type="RegionCropper")
    assert crops.encoder_cropper == own
    assert crops.encoder_cropper.background.uses_mask


@pytest.mark.parametrize("name", CONFIGS)
def test_parts_and_keys_exist(name):
    config = Config.fromfile(ROOT / name)
    check_config(config)
    recognizer = worlds.recognizer_of(config)
    for part in ("cropper", "ranker_cropper", "encoder", "memory", "ranker", "fusion", "emission"):
        if recognizer.get(part):
            build_component(recognizer[part], part, default_type={"emission": "TopPairs"}.get(part))


@pytest.mark.parametrize("name", CONFIGS)
def test_all_images_of_the_annotations_are_scored(name):
    """A subset is what `--num-images` says it is; a config that scored what it saw would hide a broken run."""
    evaluators = Config.fromfile(ROOT / name).test_evaluator
    assert all(metric.get("img_ids", "all") == "all" for metric in evaluators)


@pytest.mark.parametrize("name", CONFIGS)
def test_predicts_two_images(name, world, weights, server):
    torch.manual_seed(0)
    config = worlds.on_tiny_models(worlds.on_tiny_world(Config.fromfile(ROOT / name), world), weights, server)
    check_vocabulary(config)
    dataset = DATASETS.build(config.test_dataloader.dataset)
    model = MODELS.build(config.model).eval()
    for key, weight in model.named_parameters():
        if key.endswith(
            "level_embed"
        ):  # DINO leaves it to init_weights(), which fetches a backbone: any memory until then
            torch.nn.init.normal_(weight)
    with torch.no_grad():
        samples = model.test_step(pseudo_collate([dataset[0], dataset[1]]))
    assert len(samples) == 2
    for metric in [METRICS.build(metric) for metric in config.test_evaluator]:
        metric.dataset_meta = dataset.metainfo
        metric.process({}, [sample.to_dict() for sample in samples])
        numbers = metric.evaluate(2)
        assert numbers
        assert all(np.isfinite(value) for value in numbers.values()), numbers
    for sample in samples:
        assert 0 < len(sample.pred_instances.scores) <= 300
        assert sample.pred_instances.bboxes.shape == (len(sample.pred_instances.scores), 4)
        assert sample.recognition.ranked_ids.shape[1] == 5
        if "ranker" in worlds.recognizer_of(config):
            assert sample.recognition.asked.any()
    assert VISUALIZERS.get(config.visualizer.type) is not None
