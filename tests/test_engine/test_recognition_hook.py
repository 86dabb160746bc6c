import torch
from mmdet.registry import MODELS

from rar_mmdet.engine import recognition_hook
from rar_mmdet.engine.recognition_hook import collect_reports, find_branches
from rar_mmdet.models.testing import fake_recognizer, make_batch, stock_model


def test_recognizers_are_found_and_their_counts_added():
    config = stock_model("faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py")
    config.roi_head.update(type="rar_mmdet.RARRoIHead", recognizer=fake_recognizer(["a", "b", "c"]))
    config.test_cfg.rpn.max_per_img = 5
    model = MODELS.build(config).eval()
    assert next(find_branches(model)).recognizer.category_names == ("a", "b", "c")
    with torch.no_grad():
        samples = model.test_step(make_batch([(60, 80), (90, 70)]))
    report = collect_reports(model)
    assert report["images"] == 2
    assert report["regions"] == sum(len(s.recognition) for s in samples)
    assert report["ranker"]["asked"] == sum(int(s.recognition.asked.sum()) for s in samples)


def test_money_of_all_processes_is_added_up(monkeypatch):
    costs = [{"spent": n / 4, "requests": n} for n in (2, 3)]
    reports = [{"ranker": {"ask": "decide", "max_candidates": 5, "asked": c["requests"], "cost": c}} for c in costs]
    monkeypatch.setattr(recognition_hook, "all_gather_object", lambda own: [[report] for report in reports])
    ranker = collect_reports(torch.nn.Identity())["ranker"]
    assert ranker == {"ask": "decide", "max_candidates": 5, "asked": 5, "cost": {"spent": 1.25, "requests": 5}}
