import numpy as np
import pytest
import torch

from rar_mmdet.emission import TopPairs
from rar_mmdet.errors import ConfigError, ImageReadError, InvalidBoxError
from rar_mmdet.files.vocabulary import vocabulary_hash
from rar_mmdet.models import RecognitionBranch
from rar_mmdet.models.frames import ImageFrame
from rar_mmdet.models.pixels import original_image
from rar_mmdet.models.testing import fake_recognizer, make_batch, write_lvis_world
from rar_mmdet.recognizer import RegionRecognizer
from rar_mmdet.testing import make_boxes, make_image

NAMES = [f"thing {i}" for i in range(12)]
CPU = torch.device("cpu")
FRAME = ImageFrame.from_metainfo({"ori_shape": (60, 80)})


def branch(**changes):
    return RecognitionBranch(fake_recognizer(NAMES, **changes), where="recognizer", default_emission=TopPairs())


class TestPixels:
    def test_packed_pixels_come_first(self):
        sample = make_batch([(60, 80)])["data_samples"][0]
        assert np.array_equal(original_image(sample, CPU), make_image(60, 80, seed=0))

    def test_the_file_gives_the_same_pixels(self, tmp_path):
        write_lvis_world(tmp_path, num_images=1)
        sample = make_batch([(60, 80)])["data_samples"][0]
        del sample.ori_img
        sample.set_metainfo({"img_path": str(tmp_path / "val2017" / "000000.png")})
        assert np.array_equal(original_image(sample, CPU), make_image(60, 80, seed=0))

    def test_neither_pixels_nor_file(self):
        sample = make_batch([(60, 80)])["data_samples"][0]
        del sample.ori_img
        with pytest.raises(ImageReadError, match="KeepOriginalImage"):
            original_image(sample, CPU)

    @pytest.mark.parametrize(("content", "match"), [(None, "cannot be read"), (b"no image", "not an image")])
    def test_bad_file(self, tmp_path, content, match):
        sample = make_batch([(60, 80)])["data_samples"][0]
        del sample.ori_img
        path = tmp_path / "photo.jpg"
        if content:
            path.write_bytes(content)
        sample.set_metainfo({"img_path": str(path)})
        with pytest.raises(ImageReadError, match=rf"image 0 \(.*photo\.jpg\) .*{match}"):
            original_image(sample, CPU)

    def test_pixels_kept_after_resize_are_refused(self):
        sample = make_batch([(60, 80)])["data_samples"][0]
        sample.ori_img = sample.ori_img[:30]
        with pytest.raises(ImageReadError, match="80x30 px, but ori_shape says 80x60"):
            original_image(sample, CPU)


def test_a_batch_equals_its_images_one_by_one():
    samples = make_batch([(60, 80), (90, 70), (64, 64)])["data_samples"]
    boxes = [make_boxes(4, 60, 80), torch.zeros(0, 4), make_boxes(3, 64, 64, seed=2)]
    together = branch().recognize(samples, boxes, None, CPU)
    for i, sample in enumerate(make_batch([(60, 80), (90, 70), (64, 64)])["data_samples"]):
        (alone,) = branch().recognize([sample], [boxes[i]], None, CPU)
        assert torch.allclose(together[i].scores, alone.scores, atol=1e-6)
        assert torch.equal(together[i].category_ids, alone.category_ids)


def test_recognition_is_written_and_pixels_are_dropped():
    (sample,) = make_batch([(60, 80)])["data_samples"]
    (recognition,) = branch().recognize([sample], [make_boxes(4)], None, CPU)
    found = sample.recognition
    assert set(found.keys()) == {
        *("bboxes", "box_scores", "shortlist_ids", "shortlist_probs", "ranked_ids", "status", "asked")
    }
    assert found.shortlist_ids.shape == (4, 12)
    assert found.ranked_ids.shape == (4, 3)
    assert torch.equal(found.ranked_ids, recognition.ranked_ids)
    assert "ori_img" not in sample


def test_label_names_show_what_the_ranker_changed():
    (sample,) = make_batch([(60, 80)])["data_samples"]
    head = branch()
    (recognition,) = head.recognize([sample], [make_boxes(8)], None, CPU)
    found = head.to_instances(recognition, FRAME, True, CPU)
    retrieved = recognition.shortlist.category_ids[:, 0]
    arrows = {
        region: name for region, name in zip(found.region_ids.tolist(), found.label_names, strict=True) if "→" in name
    }
    changed = (retrieved != recognition.ranked_ids[:, 0]).nonzero()[:, 0].tolist()
    assert changed
    assert arrows == {r: f"{NAMES[retrieved[r]]} → {NAMES[recognition.ranked_ids[r, 0]]}" for r in changed}


def test_an_image_without_boxes_is_not_read():
    (sample,) = make_batch([(60, 80)])["data_samples"]
    del sample.ori_img
    (recognition,) = branch().recognize([sample], [torch.zeros(0, 4)], None, CPU)
    assert recognition.scores.shape == (0,)
    assert sample.recognition.ranked_ids.shape[0] == 0


def test_a_bad_box_is_named_with_its_image():
    (sample,) = make_batch([(60, 80)])["data_samples"]
    boxes = torch.tensor([[0.0, 0, 10, 10], [9, 9, 3, 3]])
    with pytest.raises(InvalidBoxError, match=r"\(image 0 \(None\), 80x60 px\).*box 1 = \[9.0, 9.0, 3.0, 3.0\]"):
        branch().recognize([sample], [boxes], None, CPU)
    skipping = branch(on_bad_box="skip")
    (sample,) = make_batch([(60, 80)])["data_samples"]
    (recognition,) = skipping.recognize([sample], [boxes], None, CPU)
    assert len(recognition.boxes_xyxy) == 1
    assert sum(v for k, v in skipping.recognizer.report().items() if k.startswith("skipped")) == 1


def test_the_face_adds_nothing_to_the_recognizer():
    (sample,) = make_batch([(60, 80)])["data_samples"]
    head = branch()
    (ours,) = head.recognize([sample], [make_boxes(5)], None, CPU)
    plain: RegionRecognizer = head.recognizer
    theirs = plain(make_image(60, 80, seed=0), make_boxes(5))
    assert torch.equal(ours.scores, theirs.scores)
    assert torch.equal(ours.category_ids, theirs.category_ids)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_scores_that_are_all_zero(weight):
    """MMDetection's `LoadProposals` fills zeros in where a proposal file has no scores."""
    (sample,) = make_batch([(60, 80)])["data_samples"]
    head = branch(emission={"box_score_weight": weight})
    if weight:
        with pytest.raises(ConfigError, match=r"image 0 \(None\): all 4 boxes have score 0, and box_score_weight=0.5"):
            head.recognize([sample], [make_boxes(4)], [torch.zeros(4)], CPU)
    else:
        (recognition,) = head.recognize([sample], [make_boxes(4)], [torch.zeros(4)], CPU)
        assert recognition.scores.max() > 0


def test_a_score_that_is_no_number():
    (sample,) = make_batch([(60, 80)])["data_samples"]
    with pytest.raises(InvalidBoxError, match=r"image 0 \(None\): box_scores\[1\] is nan; expected confidences"):
        branch().recognize([sample], [make_boxes(2)], [torch.tensor([0.5, float("nan")])], CPU)


def test_the_vocabulary_goes_with_the_recognition():
    (sample,) = make_batch([(60, 80)])["data_samples"]
    branch().recognize([sample], [make_boxes(2)], None, CPU)
    assert sample.recognition.vocabulary == vocabulary_hash(NAMES)
    assert sample.to_dict()["recognition"]["vocabulary"] == vocabulary_hash(NAMES)
