"""Records: what is written is read back, and a damaged file is named with its line."""

import json
from dataclasses import replace

import pytest
import torch

from rar_mmdet.errors import RecordFileError
from rar_mmdet.recognizer import RegionRecognizer
from rar_mmdet.records import RegionRecord, describe_regions, read_records, write_records
from rar_mmdet.regions import RegionCropper
from rar_mmdet.structures import Ranking, RankStatus
from rar_mmdet.testing import FakeEncoder, FakeMemory, FakeRanker, make_boxes, make_image

NAMES = [f"thing {i}" for i in range(40)]


@pytest.fixture
def recognition():
    encoder = FakeEncoder()
    recognizer = RegionRecognizer(
        cropper=RegionCropper(size=32),
        encoder=encoder,
        memory=FakeMemory(vectors=encoder.encode_texts(NAMES)),
        category_names=NAMES,
        ranker=FakeRanker(),
    )
    return recognizer(make_image(), make_boxes(5))


def test_a_record_holds_what_the_recognition_knows(recognition):
    records = describe_regions(recognition, "a.jpg", truth=[3, -1, 0, 1, 2], file="photos/a.jpg")
    assert len(records) == 5
    for region, record in enumerate(records):
        assert record.region == region
        assert record.names == tuple(NAMES[i] for i in record.category_ids)
        torch.testing.assert_close(torch.tensor(record.probs), recognition.shortlist.probs[region, :20])
        torch.testing.assert_close(torch.tensor(record.fused), recognition.fused[region, :20])
        torch.testing.assert_close(torch.tensor(record.log_probs), recognition.ranking.log_probs[region])
        torch.testing.assert_close(torch.tensor(record.box_xyxy), recognition.boxes_xyxy[region], atol=1e-3, rtol=0)
        assert [record.category_ids[c] for c in record.order] == recognition.ranked_ids[region].tolist()
        assert record.status == "ok"
    assert [r.truth for r in records] == [3, None, 0, 1, 2]
    assert [r.truth_name for r in records][:2] == ["thing 3", None]


def test_round_trip_and_one_line_for_each_region(recognition, tmp_path):
    path = tmp_path / "regions.jsonl"
    records = describe_regions(recognition, 12)
    assert write_records(path, records) == 5
    assert write_records(path, records, append=True) == 5
    assert list(read_records(path)) == records * 2
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 10
    assert "truth" not in json.loads(lines[0])


def test_a_text_beside_scores_has_an_order_and_no_log_probabilities(recognition, tmp_path):
    ranking = recognition.ranking
    log_probs = ranking.log_probs.clone()
    log_probs[1] = torch.nan
    status = ranking.status.clone()
    status[1] = int(RankStatus.PARTIAL)
    mixed = replace(recognition, ranking=replace(ranking, log_probs=log_probs, status=status))
    write_records(tmp_path / "r.jsonl", describe_regions(mixed, 1))
    first, second, *_ = read_records(tmp_path / "r.jsonl")
    assert first.log_probs is not None
    assert second.log_probs is None
    assert len(second.order) == ranking.order.shape[1]


def test_replies_masses_and_unasked_regions(recognition):
    two = Ranking(
        recognition.ranking.order[:2], None, torch.tensor([0, 2]), ("a, b", None), torch.tensor([0.9, 0.1]),
        torch.tensor([0.5, torch.nan]), torch.tensor([[1, 0, -1], [-1, -1, -1]]),
    )  # fmt: skip
    asked = torch.tensor([True, False, True, False, False])
    records = describe_regions(replace(recognition, ranking=two.spread(asked)), "a.jpg")
    assert [r.reply for r in records] == ["a, b", None, None, None, None]
    assert [r.status for r in records] == ["ok", "skipped", "fallback", "skipped", "skipped"]
    assert [len(r.order) for r in records] == [5, 0, 5, 0, 0]
    assert records[0].label_mass == pytest.approx(0.9)
    assert records[1].label_mass is None
    assert [r.presence for r in records[:3]] == [0.5, None, None]
    assert [r.preferred for r in records[:3]] == [(1, 0, -1), None, None]
    assert RankStatus.FALLBACK.name.lower() == records[2].status


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b'{"image": 1, "reg', r"line 1: not a region record: .*Run it again", id="cut-off"),
        pytest.param(b'{"image": 1}\n', "line 1: not a region record", id="fields-missing"),
        pytest.param(b"[1, 2]\n", "line 1: not a region record", id="list"),
        pytest.param("ü".encode("latin-1"), "is not UTF-8 text", id="encoding"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, message):
    path = tmp_path / "regions.jsonl"
    path.write_bytes(content)
    with pytest.raises(RecordFileError, match=f"regions.jsonl.*{message}"):
        list(read_records(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecordFileError, match=r"none\.jsonl cannot be read"):
        list(read_records(tmp_path / "none.jsonl"))


def test_a_record_is_plain_json():
    record = RegionRecord("a", 0, (0.0, 0.0, 1.0, 1.0), 1.0, (1,), ("café",), (0.5,), (0.5,), "skipped")
    assert "café" in record.to_json()
    assert RegionRecord.from_json(record.to_json()) == record
