import json
import os
import pickle

import numpy as np
import pytest
import torch
from mmdet.evaluation import DumpProposals
from mmengine.fileio import dump

from rar_mmdet.datasets.proposal_files import read_proposals
from rar_mmdet.errors import InvalidBoxError, MissingAssetError

BOXES = np.array([[1, 2, 9, 8], [0, 0, 5, 5.5]], np.float32)


def test_what_mmdetection_dumps(tmp_path):
    metric = DumpProposals(output_dir=str(tmp_path), proposals_file="p.pkl")
    found = {"bboxes": torch.from_numpy(BOXES), "scores": torch.tensor([0.25, 0.75])}
    metric.process({}, [{"img_path": "data/val2017/a.jpg", "pred_instances": found}])
    metric.evaluate(1)
    proposals = read_proposals(str(tmp_path / "p.pkl"))
    assert np.array_equal(proposals["val2017/a.jpg"]["bboxes"], BOXES[::-1])
    assert proposals["val2017/a.jpg"]["scores"].tolist() == [0.75, 0.25]


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol(tmp_path, protocol):
    content = {"v/a.jpg": {"bboxes": BOXES, "scores": np.ones(2)}, "v/b.jpg": {"bboxes": np.zeros((0, 4))}}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    proposals = read_proposals(str(tmp_path / "p.pkl"))
    assert np.array_equal(proposals["v/a.jpg"]["bboxes"], BOXES)
    assert proposals["v/b.jpg"]["bboxes"].shape == (0, 4)
    assert "scores" not in proposals["v/b.jpg"]


def test_json(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps({"v/a.jpg": {"bboxes": BOXES.tolist()}, "v/b.jpg": {"bboxes": []}}))
    proposals = read_proposals(str(tmp_path / "p.json"))
    assert np.array_equal(proposals["v/a.jpg"]["bboxes"], BOXES)
    assert proposals["v/b.jpg"]["bboxes"].shape == (0, 4)


class Evil:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_code_in_a_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dump({"v/a.jpg": Evil()}, "p.pkl")
    with pytest.raises(InvalidBoxError, match=r"p\.pkl is refused: it holds (posix|nt)\.system.* or as JSON"):
        read_proposals("p.pkl")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1], "holds a list; a proposal file is"),
        ({"v/a.jpg": {"boxes": []}}, "'v/a.jpg' has no `bboxes`"),
        ({"v/a.jpg": {"bboxes": [[1, 2, 3]]}}, r"has bboxes \(1, 3\) and scores None"),
        ({"v/a.jpg": {"bboxes": [[1, 2, 3, 4]], "scores": [1, 1]}}, r"has bboxes \(1, 4\) and scores \(2,\)"),
        ({"v/a.jpg": {"bboxes": [["x", 2, 3, 4]]}}, "holds what are no numbers"),
        ({"v/a.jpg": {"bboxes": [[0.1, 0.2, 0.3, 1.0]]}, "v/b.jpg": {"bboxes": []}}, "all 1 boxes lie within 0 and 1"),
        ({"v/a.jpg": {"bboxes": [[300, 200, 20, 30], [5, 5, 9, 9]]}}, "1 of 2 boxes end before .* Were x, y, wid"),
    ],
)
def test_files_that_hold_something_else(tmp_path, content, match):
    (tmp_path / "p.json").write_text(json.dumps(content))
    with pytest.raises(InvalidBoxError, match=match):
        read_proposals(str(tmp_path / "p.json"))


def test_no_file(tmp_path):
    with pytest.raises(MissingAssetError, match=r"proposal file .*p\.pkl does not exist"):
        read_proposals(str(tmp_path / "p.pkl"))


def test_half_a_file(tmp_path):
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"a": BOXES})[:-20])
    with pytest.raises(InvalidBoxError, match="is refused"):
        read_proposals(str(tmp_path / "p.pkl"))
