"""The dataclasses between the stages check themselves."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from rar_mmdet.emission import BestPerRegion, TopPairs
from rar_mmdet.errors import HostError, InvalidBoxError
from rar_mmdet.fusion import PermuteFusion
from rar_mmdet.structures import ImageRegions, Ranking, RankStatus, Recognition, RegionCrops, Shortlist
from rar_mmdet.testing import make_boxes, make_image, make_shortlist


def test_shortlist_head_and_rows():
    shortlist = make_shortlist(4, 6, num_categories=9)
    assert shortlist.head(2).category_ids.tolist() == shortlist.category_ids[:, :2].tolist()
    assert shortlist.head(99).depth == 6
    assert shortlist[torch.tensor([True, False, False, True])].probs.tolist() == shortlist.probs[[0, 3]].tolist()
    assert len(shortlist[0:0]) == 0


def test_shortlist_refuses_unequal_shapes():
    with pytest.raises(ValueError, match=r"two equal \(R, N\) shapes, got category_ids \(2, 3\) and probs \(2, 2\)"):
        Shortlist(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 2))


def test_shortlist_refuses_float_ids():
    with pytest.raises(ValueError, match="must be int64"):
        Shortlist(torch.zeros(2, 3), torch.zeros(2, 3))


@pytest.mark.parametrize("row", [[0, 0, 2], [1, 2, 3], [-1, 0, 1]], ids=["repeat", "out-of-range", "negative"])
def test_ranking_refuses_what_is_no_permutation(row):
    with pytest.raises(ValueError, match="permutation"):
        Ranking(torch.tensor([row]), None, torch.zeros(1, dtype=torch.int64))


def test_ranking_refuses_wrong_shapes():
    order = torch.tensor([[1, 0]])
    with pytest.raises(ValueError, match="log_probs"):
        Ranking(order, torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="status"):
        Ranking(order, None, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="int64"):
        Ranking(order.float(), None, torch.zeros(1, dtype=torch.int64))


def test_identity_ranking_has_no_opinion_and_takes_zero_regions():
    assert not Ranking.identity(3, 5).has_opinion.any()
    assert Ranking.identity(0, 5).order.shape == (0, 5)
    assert Ranking.identity(2, 0).order.shape == (2, 0)
    status = torch.tensor([RankStatus.OK, RankStatus.PARTIAL, RankStatus.FALLBACK, RankStatus.SKIPPED])
    ranking = Ranking(torch.arange(2).repeat(4, 1), None, status)
    assert ranking.has_opinion.tolist() == [True, True, False, False]


def test_ranking_refuses_replies_and_masses_of_another_number():
    order, status = torch.tensor([[1, 0]]), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="replies must have 1 entries, got 2"):
        Ranking(order, None, status, replies=("a", "b"))
    with pytest.raises(ValueError, match=r"label_mass must be \(1,\)"):
        Ranking(order, None, status, label_mass=torch.zeros(2))
    with pytest.raises(ValueError, match=r"presence must be \(1,\)"):
        Ranking(order, None, status, presence=torch.zeros(2))
    with pytest.raises(ValueError, match=r"preferred must be \(1, S\)"):
        Ranking(order, None, status, preferred=torch.zeros(2, 3))


@pytest.mark.parametrize("asked", [[], [False], [True, False, True], [False, False, True, True]], ids=str)
def test_spread_is_the_inverse_of_taking_rows(asked):
    asked = torch.tensor(asked, dtype=torch.bool)
    n = int(asked.sum())
    log_probs = torch.log_softmax(torch.randn(n, 3), dim=1)
    ranking = Ranking(
        log_probs.argsort(dim=1, descending=True),
        log_probs,
        torch.zeros(n, dtype=torch.int64),
        tuple(f"reply {i}" for i in range(n)),
        torch.rand(n),
        torch.rand(n),
        torch.randint(0, 3, (n, 2)),
    )
    whole = ranking.spread(asked)
    assert len(whole) == len(asked)
    again = whole[asked]
    assert torch.equal(again.order, ranking.order)
    assert torch.equal(again.log_probs, ranking.log_probs)
    assert again.replies == ranking.replies
    assert torch.equal(again.label_mass, ranking.label_mass)
    assert torch.equal(again.presence, ranking.presence)
    assert torch.equal(again.preferred, ranking.preferred)
    assert (whole[~asked].preferred == -1).all()
    assert not whole[~asked].has_opinion.any()
    assert whole[~asked].label_mass.isnan().all()
    assert whole[~asked].replies == (None,) * (len(asked) - n)


class TestImageRegions:
    def test_lists_arrays_and_tensors_are_taken(self):
        for boxes in ([[1, 2, 3, 4]], np.array([[1, 2, 3, 4]]), torch.tensor([[1, 2, 3, 4]], dtype=torch.float16)):
            regions = ImageRegions(None, boxes, [0.5])
            assert regions.boxes_xyxy.dtype == torch.float32
            assert regions.boxes_xyxy.tolist() == [[1, 2, 3, 4]]
            assert regions.box_scores.tolist() == [0.5]

    @pytest.mark.parametrize("none", [[], (), np.zeros((0, 4)), torch.zeros(0)], ids=repr)
    def test_no_boxes(self, none):
        assert len(ImageRegions(None, none)) == 0

    def test_boxes_of_another_shape_are_refused_with_the_name_of_the_image(self):
        with pytest.raises(
            InvalidBoxError, match=r"^a.jpg: boxes_xyxy must have shape .* got \(1, 5\); the fifth column"
        ):
            ImageRegions(None, [[1, 2, 3, 4, 0.9]], name="a.jpg")

    def test_counts_must_agree_and_scores_be_numbers(self):
        boxes = [[0, 0, 5, 5]] * 2
        with pytest.raises(InvalidBoxError, match="2 boxes but 1 box_scores"):
            ImageRegions(None, boxes, [0.5])
        with pytest.raises(InvalidBoxError, match="2 boxes but 3 masks"):
            ImageRegions(None, boxes, masks=torch.zeros(3, 9, 9))
        with pytest.raises(InvalidBoxError, match="2 boxes but 1 crops"):
            ImageRegions(None, boxes, crops=RegionCrops(torch.zeros(1, 3, 8, 8)))
        for odd in (float("nan"), 7.0, -1.0):
            with pytest.raises(InvalidBoxError, match=rf"box_scores\[1\] is {odd}; expected confidences in \[0, 1\]"):
                ImageRegions(None, boxes, [0.5, odd])
        with pytest.raises(InvalidBoxError, match=r"box_scores must be \(R,\) numbers, got \['a', 'b'\]"):
            ImageRegions(None, boxes, ["a", "b"])

    def test_rows_go_together(self):
        crops = RegionCrops(torch.arange(3)[:, None, None, None].expand(3, 3, 2, 2))
        masks = torch.arange(3)[:, None, None].expand(3, 4, 4)
        regions = ImageRegions(None, torch.arange(12.0).reshape(3, 4), [0.1, 0.2, 0.3], masks, crops)
        some = regions[torch.tensor([True, False, True])]
        assert some.boxes_xyxy.tolist() == regions.boxes_xyxy[[0, 2]].tolist()
        assert some.crops.encoder[:, 0, 0, 0].tolist() == some.masks[:, 0, 0].tolist() == [0, 2]
        torch.testing.assert_close(some.box_scores, torch.tensor([0.1, 0.3]))
        assert some.crops.to(torch.float32).encoder.dtype == torch.float32

    def test_crops_for_encoder_and_ranker_are_as_many(self):
        with pytest.raises(ValueError, match="2 crops for the encoder, 1 for the ranker"):
            RegionCrops(torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def make_recognition(num_regions=4, depth=6, k=3, emission=None, seed=0):
    """Random shortlists, a ranker that turns the candidates round for all regions but the first."""
    shortlist = make_shortlist(num_regions, depth, num_categories=9, seed=seed)
    asked = torch.arange(num_regions) > 0
    reversed_order = torch.arange(k - 1, -1, -1).repeat(int(asked.sum()), 1)
    ranking = Ranking(reversed_order, None, torch.zeros(len(reversed_order), dtype=torch.int64)).spread(asked)
    boxes, ones = make_boxes(num_regions, seed=seed), torch.ones(num_regions)
    fused = PermuteFusion()(shortlist, ranking)
    emitted = (emission or TopPairs(max_per_image=5)).select(fused, shortlist.category_ids, boxes, ones)
    return Recognition(
        boxes,
        ones,
        shortlist,
        ranking,
        fused,
        emitted.scores,
        shortlist.category_ids[emitted.region_ids, emitted.columns],
        emitted.region_ids,
        tuple(f"thing_{i}" for i in range(9)),
    )


class TestRecognition:
    def test_every_region_has_a_name_also_beyond_what_is_emitted(self):
        recognition = make_recognition(num_regions=40)
        assert len(recognition.scores) == 5
        expected = [(f"thing_{int(recognition.shortlist.category_ids[0, 0])}", float(recognition.fused[0, 0]))]
        expected += [
            (f"thing_{int(recognition.shortlist.category_ids[r, 2])}", float(recognition.fused[r, 2]))
            for r in range(1, 40)
        ]
        assert recognition.top() == expected
        assert recognition.best_names == [name for name, _ in expected]
        assert recognition.best_scores.tolist() == [score for _, score in expected]

    def test_top_k_is_sorted_by_the_fused_score_and_starts_with_top(self):
        recognition = make_recognition()
        for row, first in zip(recognition.top(4), recognition.top(), strict=True):
            assert row[0] == first
            assert [score for _, score in row] == sorted((score for _, score in row), reverse=True)
        assert all(len(row) == 6 for row in recognition.top(100))
        with pytest.raises(ValueError, match="k must be a whole number of at least 1, got 0"):
            recognition.top(0)

    def test_scores_never_pass_one(self):
        recognition = make_recognition()
        above = replace(recognition, fused=recognition.fused * 0 + 1.0000001)
        assert max(score for _, score in above.top()) == 1.0

    def test_rows_keep_their_detections(self):
        recognition = make_recognition(num_regions=6, emission=TopPairs())
        for rows in (torch.tensor([4, 1]), [4, 1], slice(1, 5), torch.arange(6) % 2 == 0):
            some = recognition[rows]
            picked = torch.arange(6)[rows].tolist()
            assert some.top() == [recognition.top()[r] for r in picked]
            for region, row in enumerate(picked):
                mine, theirs = some.region_ids == region, recognition.region_ids == row
                assert some.scores[mine].tolist() == recognition.scores[theirs].tolist()
        assert recognition[slice(0)].top() == []

    def test_filter(self):
        recognition = make_recognition(num_regions=12)
        middle = float(recognition.best_scores.median())
        kept = recognition.filter(middle)
        assert kept.top() == [pair for pair in recognition.top() if pair[1] >= middle]

    def test_to_coco_is_the_emitted_detections(self):
        recognition = make_recognition(emission=BestPerRegion())
        ids = [100 + i for i in range(9)]
        for record, region in zip(recognition.to_coco(7, ids), recognition.region_ids.tolist(), strict=True):
            x, y, width, height = record["bbox"]
            torch.testing.assert_close(torch.tensor([x, y, x + width, y + height]), recognition.boxes_xyxy[region])
            assert record["image_id"] == 7
            assert record["category_id"] == 100 + int(recognition.best_ids[region])
        assert recognition.to_coco(7)[0]["category_id"] == int(recognition.category_ids[0]) + 1
        with pytest.raises(ValueError, match="2 category ids for 9 names"):
            recognition.to_coco(7, [1, 2])

    def test_to_supervision_is_the_emitted_detections(self):
        pytest.importorskip("supervision", reason="supervision is not installed: pip install supervision")
        recognition = make_recognition(emission=BestPerRegion())
        found = recognition.to_supervision()
        records = recognition.to_coco(1)
        assert len(found) == len(records) > 0
        for row, record in enumerate(records):
            x, y, width, height = record["bbox"]
            assert found.xyxy[row].tolist() == pytest.approx([x, y, x + width, y + height], abs=1e-4)
            assert found.confidence[row] == pytest.approx(record["score"])
            assert found.class_id[row] == record["category_id"] - 1
            assert found.data["class_name"][row] == recognition.category_names[found.class_id[row]]

    def test_without_supervision_it_says_what_to_type(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "supervision", None)
        with pytest.raises(HostError, match="needs the package supervision, .*: pip install supervision"):
            make_recognition(emission=BestPerRegion()).to_supervision()

    def test_it_prints_in_a_few_lines(self):
        lines = str(make_recognition(num_regions=40)).splitlines()
        assert lines[0] == "Recognition of 40 regions"
        assert len(lines) == 12
        assert lines[-1] == "  ... and 30 more"
        assert "thing_" in lines[1]

    def test_parts_of_another_size_are_refused(self):
        recognition = make_recognition()
        with pytest.raises(ValueError, match="4 boxes but 3 rows of shortlist"):
            replace(recognition, shortlist=recognition.shortlist[:3])
        with pytest.raises(ValueError, match="must have the same length"):
            replace(recognition, region_ids=recognition.region_ids[:-1])

    def test_draw_marks_the_boxes_and_nothing_below_the_threshold(self):
        recognition, image = make_recognition(), make_image()
        drawn = recognition.draw(image)
        assert drawn.size == (80, 60)
        assert (np.asarray(drawn) != image).any()
        assert (np.asarray(recognition.draw(image, min_score=1.0)) == image).all()
