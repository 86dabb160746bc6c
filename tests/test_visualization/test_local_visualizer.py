import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData

from rar_mmdet.testing import make_boxes, make_image
from rar_mmdet.visualization import RecognitionVisualizer


def sample(num_regions=3, labels_each=4):
    regions = torch.arange(num_regions).repeat(labels_each)
    scores = torch.linspace(0.2, 0.001, len(regions))
    found = InstanceData(
        bboxes=make_boxes(max(num_regions, 1))[regions],
        scores=scores,
        labels=torch.arange(len(regions)) % 90,
        region_ids=regions,
        label_names=[f"a → b{i}" for i in range(len(regions))],
    )
    data_sample = DetDataSample()
    data_sample.pred_instances = found
    return data_sample


@pytest.fixture
def visualizer():
    made = RecognitionVisualizer(name="test")
    made.dataset_meta = {"classes": tuple(f"c{i}" for i in range(90)), "palette": [(9, 9, 9)] * 3}
    return made


def texts(monkeypatch, visualizer, data_sample):
    drawn = []
    monkeypatch.setattr(DetLocalVisualizer, "draw_texts", lambda self, text, *a, **k: drawn.append(text))
    visualizer.add_datasample("x", make_image(60, 80), data_sample, draw_gt=False)
    return drawn


def test_one_label_of_each_box_however_low_its_score(monkeypatch, visualizer):
    assert texts(monkeypatch, visualizer, sample()) == ["a → b0: 20.0", "a → b1: 18.2", "a → b2: 16.4"]


def test_more_labels_and_a_threshold():
    visualizer = RecognitionVisualizer(name="more", labels_per_box=2)
    assert visualizer.best_of_each_box(sample()).pred_instances.region_ids.tolist() == [0, 1, 2, 0, 1, 2]
    visualizer = RecognitionVisualizer(name="least", min_score=0.17)
    assert visualizer.best_of_each_box(sample()).pred_instances.region_ids.tolist() == [0, 1]


def test_the_sample_itself_keeps_all_detections(visualizer):
    data_sample = sample()
    visualizer.best_of_each_box(data_sample)
    assert len(data_sample.pred_instances) == 12


def test_samples_of_other_models_are_left_alone(visualizer):
    data_sample = sample()
    del data_sample.pred_instances.region_ids
    assert visualizer.best_of_each_box(data_sample) is data_sample


def test_a_palette_of_fewer_classes_does_not_matter(visualizer):
    visualizer.add_datasample("x", make_image(60, 80), sample(), draw_gt=False)
    assert not np.array_equal(visualizer.get_image(), make_image(60, 80))


def test_nothing_to_draw(visualizer):
    visualizer.add_datasample("x", make_image(60, 80), sample(0), draw_gt=False)
    assert np.array_equal(visualizer.get_image(), make_image(60, 80))
