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
    visualizer.add_datasample("x", make_image(480, 640), data_sample, draw_gt=False)
    return drawn


def test_one_label_of_each_box_however_low_its_score(monkeypatch, visualizer):
    assert texts(monkeypatch, visualizer, sample()) == ["a → b0: 20.0", "a → b1: 18.2", "a → b2: 16.4"]


def test_more_labels_and_a_threshold():
    visualizer = RecognitionVisualizer(name="more", labels_per_box=2)
    assert visualizer.best_of_each_box(sample()).pred_instances.region_ids.tolist() == [0, 1, 2, 0, 1, 2]
    visualizer = RecognitionVisualizer(name="least", min_score=0.17)
    assert visualizer.best_of_each_box(sample()).pred_instances.region_ids.tolist() == [0, 1]


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, 3), (0.17, 2), (0.95, 0)])
def test_the_callers_threshold_is_obeyed(monkeypatch, visualizer, threshold, expected):
    drawn = []
    monkeypatch.setattr(DetLocalVisualizer, "draw_texts", lambda self, text, *a, **k: drawn.append(text))
    visualizer.add_datasample("x", make_image(480, 640), sample(), draw_gt=False, pred_score_thr=threshold)
    assert len(drawn) == expected


@pytest.mark.parametrize("image_hw", [(480, 640), (1200, 900), (60, 80), (12, 10)])
def test_labels_stay_inside_the_image_and_grow_with_it(monkeypatch, visualizer, image_hw):
    height, width = image_hw
    texts = []

    def note(self, text, positions, font_sizes, **kwargs):
        label_wh = self._measure(text, font_sizes)
        texts.append((text, font_sizes, *positions, positions[0] + label_wh[0], positions[1] + label_wh[1]))

    monkeypatch.setattr(DetLocalVisualizer, "draw_texts", note)
    data_sample = sample()
    corners = torch.tensor([[width - 4.0, 0, width - 1, 3], [0, height - 4.0, 3, height - 1], [1, 1, 5, 5.0]])
    data_sample.pred_instances.bboxes = corners[data_sample.pred_instances.region_ids]
    data_sample.pred_instances.label_names = ["red_panda → fire_hydrant"] * 12
    visualizer.add_datasample("x", make_image(height, width), data_sample, draw_gt=False)
    assert len(texts) == 3
    for text, _, left, top, right, bottom in texts:
        assert "_" not in text
        assert left >= 0
        assert top >= 0
        assert right <= max(width, right - left)
        assert bottom <= max(height, bottom - top)
    assert texts[0][1] >= 6
    if min(image_hw) > 480:
        assert texts[0][1] > 10


def test_annotations_are_drawn_with_spaces_too(monkeypatch, visualizer):
    drawn = []
    monkeypatch.setattr(DetLocalVisualizer, "draw_texts", lambda self, text, *a, **k: drawn.append(text))
    visualizer.dataset_meta = {"classes": ("fire_hydrant",)}
    data_sample = DetDataSample()
    data_sample.gt_instances = InstanceData(bboxes=make_boxes(1), labels=torch.zeros(1, dtype=torch.int64))
    visualizer.add_datasample("x", make_image(480, 640), data_sample)
    assert drawn == ["fire hydrant"]


def test_arguments_by_place_as_in_mmdetection(visualizer, tmp_path):
    out = tmp_path / "drawn.png"
    visualizer.add_datasample("x", make_image(60, 80), sample(), False, True, False, 0, str(out), 0.3, 1)
    assert out.exists()


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
