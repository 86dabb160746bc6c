"""What a test run writes of its regions: through MMEngine's loop, with detections, given boxes and augmentation."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, HOOKS, MODELS
from mmengine.dataset import pseudo_collate

from rar_mmdet.engine.record_hook import _merge
from rar_mmdet.models.testing import fake_recognizer, stock_model, write_lvis_world
from rar_mmdet.records import read_records

LOAD = [{"type": "LoadImageFromFile"}, {"type": "rar_mmdet.KeepOriginalImage"}]
GIVE = [{"type": "LoadAnnotations", "with_bbox": True}, {"type": "rar_mmdet.ProposalsFromAnnotations"}]
PACK = {"type": "rar_mmdet.PackRecognitionInputs"}
RESIZE = {"type": "Resize", "scale": (96, 96), "keep_ratio": True}
FLIPS = [{"type": "RandomFlip", "prob": 1.0}, {"type": "RandomFlip", "prob": 0.0}]
TTA = {"type": "TestTimeAug", "transforms": [FLIPS, [PACK]]}


class FakeRunner:
    """As much of a runner as hooks see."""

    def __init__(self, model, dataset):
        self.model = model
        self.test_dataloader = SimpleNamespace(dataset=dataset)
        self.logger = logging.getLogger("a run")


@pytest.fixture
def world(tmp_path):
    return write_lvis_world(tmp_path / "world")


def dataset_of(world, pipeline):
    config = {"type": "rar_mmdet.LVISVocabularyDataset", "ann_file": str(world), "test_mode": True}
    return DATASETS.build(config | {"data_prefix": {"img": str(world.parents[1])}, "pipeline": pipeline})


def recogniser(world):
    return {"type": "rar_mmdet.ProposalRecognizer", "recognizer": fake_recognizer(str(world))}


def records_of(model, dataset, path, batch_size=2):
    runner, hook = FakeRunner(model, dataset), HOOKS.build({"type": "rar_mmdet.RegionRecordHook", "path": str(path)})
    hook.before_test_epoch(runner)
    outputs = []
    for start in range(0, len(dataset), batch_size):
        batch = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
        with torch.no_grad():
            outputs += model.test_step(pseudo_collate(batch))
        hook.after_test_iter(runner, start, None, outputs)
    hook.after_test_epoch(runner)
    return list(read_records(path)), outputs


def test_given_boxes_with_their_truth(world, tmp_path):
    dataset = dataset_of(world, [*LOAD, *GIVE, PACK])
    model = MODELS.build(recogniser(world)).eval()
    records, samples = records_of(model, dataset, tmp_path / "out" / "regions.jsonl")
    assert [r.image for r in records] == [i + 1 for i in (0, 0, 0, 2, 2, 2, 3, 3, 3, 4, 4, 4)]  # image 2 has no boxes
    assert [r.region for r in records] == [0, 1, 2] * 4
    labels = [i["bbox_label"] for n in range(5) for i in dataset.get_data_info(n)["instances"]]
    assert [r.truth for r in records] == labels
    assert [r.truth_name for r in records] == [dataset.metainfo["classes"][label] for label in labels]
    found = samples[0].recognition
    assert np.allclose([r.box_xyxy for r in records[:3]], found.bboxes.numpy(), atol=1e-3)
    assert [list(r.category_ids) for r in records[:3]] == found.shortlist_ids.tolist()
    assert [[r.category_ids[c] for c in r.order] for r in records[:3]] == found.ranked_ids.tolist()
    assert {r.status for r in records} == {"ok"}
    assert records[0].file.endswith("val2017/000000.png")
    assert not any("annotated" in sample for sample in samples)


def detector(world):
    torch.manual_seed(0)
    inner = stock_model("retinanet/retinanet_r50_fpn_1x_coco.py")
    inner.test_cfg.score_thr = 0.001
    config = {"type": "rar_mmdet.RARDetector", "detector": inner, "recognizer": fake_recognizer(str(world))}
    return config | {"selection": {"max_regions": 5}}


def test_detections_have_the_truth_without_loaded_annotations(world, tmp_path):
    model = MODELS.build(detector(world)).eval()
    records, samples = records_of(model, dataset_of(world, [*LOAD, RESIZE, PACK]), tmp_path / "regions.jsonl")
    assert len(records) == sum(len(sample.recognition) for sample in samples)
    assert {r.truth for r in records} >= {None}  # random boxes seldom meet an object
    assert all(0 <= r.box_score <= 1 for r in records)


def test_views_of_given_boxes_are_one_and_those_of_a_detector_are_all_kept(world, tmp_path):
    def augmented(module):
        tta = {"nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 300}
        return MODELS.build({"type": "rar_mmdet.RecognitionTTAModel", "module": module, "tta_cfg": tta}).eval()

    plain, _ = records_of(
        MODELS.build(recogniser(world)).eval(), dataset_of(world, [*LOAD, *GIVE, PACK]), tmp_path / "plain.jsonl"
    )
    given, _ = records_of(
        augmented(recogniser(world)), dataset_of(world, [*LOAD, *GIVE, TTA]), tmp_path / "given.jsonl"
    )
    assert given == plain
    found, samples = records_of(
        augmented(detector(world)), dataset_of(world, [*LOAD, RESIZE, TTA]), tmp_path / "found.jsonl"
    )
    assert [r.region for r in found if r.image == 1] == list(range(10))
    boxes = samples[0].recognition.bboxes.numpy()
    assert np.allclose([r.box_xyxy for r in found if r.image == 1], boxes, atol=1e-3)


@pytest.mark.parametrize("kind", ["CocoDataset", "rar_mmdet.CocoVocabularyDataset"])
@pytest.mark.parametrize("turned", [False, True])
def test_truth_is_left_out_where_labels_do_not_follow_the_classes(kind, turned, world, tmp_path, caplog):
    names = [f"thing_{i + 1}" for i in range(12)][:: -1 if turned else 1]
    config = {"type": kind, "ann_file": str(world), "test_mode": True, "metainfo": {"classes": names}}
    config |= {"data_prefix": {"img": str(world.parents[1])}, "pipeline": [*LOAD, *GIVE, PACK]}
    model = {"type": "rar_mmdet.ProposalRecognizer", "recognizer": fake_recognizer(names)}
    with caplog.at_level("WARNING"):
        records, _ = records_of(MODELS.build(model).eval(), DATASETS.build(config), tmp_path / "regions.jsonl")
    annotated = [f"thing_{i + 1}" for i in range(12)]
    expected = [None] * 12 if turned and kind == "CocoDataset" else annotated
    assert [record.truth_name for record in records] == expected
    assert ("written without truth" in caplog.text) == (expected[0] is None)


def test_parts_of_processes_are_merged_in_the_order_of_the_images(tmp_path):
    parts = [tmp_path / "regions.rank0.jsonl", tmp_path / "regions.rank1.jsonl"]
    parts[0].write_text("0a\n0b\n\n\n4a\n\n")  # images 0, 2 (no regions) and 4
    parts[1].write_text("1a\n\n3a\n3b\n\n")
    _merge(parts, tmp_path / "regions.jsonl")
    assert (tmp_path / "regions.jsonl").read_text().split() == ["0a", "0b", "1a", "3a", "3b", "4a"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["regions.jsonl"]
