import pytest
import torch
from mmdet.registry import MODELS

from rar_mmdet.errors import VocabularyError
from rar_mmdet.models import collect_reports
from rar_mmdet.models.hooks import check_vocabulary, find_recognizers
from rar_mmdet.models.testing import fake_recognizer, make_batch, stock_model


def test_vocabulary_of_another_size():
    with pytest.raises(VocabularyError, match="has 3 names, the dataset 2 classes"):
        check_vocabulary(["a", "b", "c"], ("a", "b"))


def test_the_same_names_in_another_order():
    with pytest.raises(VocabularyError, match="label 0 is 'b' here and 'a' there"):
        check_vocabulary(["b", "a"], ("a", "b"))


def test_other_spellings_of_the_names_are_fine():
    check_vocabulary(["bell pepper", "cat"], ("bell_pepper", "cat"))
    check_vocabulary(["anything"], None)


def test_recognizers_are_found_and_their_counts_added():
    config = stock_model("faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py")
    config.roi_head.update(type="rar_mmdet.RARRoIHead", recognizer=fake_recognizer(["a", "b", "c"]))
    config.test_cfg.rpn.max_per_img = 5
    model = MODELS.build(config).eval()
    assert next(find_recognizers(model)).category_names == ("a", "b", "c")
    with torch.no_grad():
        samples = model.test_step(make_batch([(60, 80), (90, 70)]))
    report = collect_reports(model)
    assert report["images"] == 2
    assert report["regions"] == sum(len(s.recognition) for s in samples)
    assert report["ranker"]["asked"] == sum(int(s.recognition.asked.sum()) for s in samples)
