"""Emission: equal to plain loops, and no opinion that could matter is left out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rar_mmdet.emission import BestPerRegion, TopPairs
from rar_mmdet.fusion import LogLikFusion
from rar_mmdet.structures import Ranking, RankStatus
from rar_mmdet.testing import make_boxes, make_shortlist


def chosen(emission, scores, category_ids, boxes, box_scores):
    """Indices into the flattened pairs, and their scores."""
    emitted = emission.select(scores, category_ids, boxes, box_scores)
    return emitted.region_ids * scores.shape[1] + emitted.columns, emitted.scores


def plain_emit(scores, category_ids, boxes, emission):
    """The rule as a loop over all pairs."""
    n = scores.shape[1]
    pairs = sorted(range(scores.size), key=lambda i: (-scores.flat[i], i))
    kept: list[int] = []
    for i in pairs:
        same = [j for j in kept if category_ids.flat[j] == category_ids.flat[i]]
        if emission.nms_iou is None or all(iou(boxes[i // n], boxes[j // n]) <= emission.nms_iou for j in same):
            kept.append(i)
    return [i for i in kept if scores.flat[i] >= emission.min_score][: emission.max_per_image]


def iou(a, b):
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    return w * h / union


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 12),
    st.integers(1, 6),
    st.integers(1, 40),
    st.sampled_from([None, 0.3, 0.5]),
    st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    st.integers(0, 99),
)
def test_emission_equals_a_plain_loop(regions, depth, keep, nms_iou, min_score, seed):
    shortlist, boxes = make_shortlist(regions, depth, num_categories=8, seed=seed), make_boxes(regions, seed=seed)
    emission = TopPairs(max_per_image=keep, nms_iou=nms_iou, min_score=min_score)
    flat, scores = chosen(emission, shortlist.probs, shortlist.category_ids, boxes, torch.ones(regions))
    expected = plain_emit(shortlist.probs.numpy(), shortlist.category_ids.numpy(), boxes.double().numpy(), emission)
    assert flat.tolist() == expected
    assert scores.tolist() == shortlist.probs.flatten()[flat].tolist()


def test_nms_with_thousands_of_categories_keeps_pixel_precision():
    # Offsets of 13,204 categories times 1,000 px exceed what float32 resolves to a pixel.
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 19.0]])  # IoU 0.526
    ids = torch.tensor([[13203], [13203]])
    flat, _ = chosen(TopPairs(nms_iou=0.53), torch.tensor([[0.9], [0.8]]), ids, boxes + 990, torch.ones(2))
    assert flat.tolist() == [0, 1]
    flat, _ = chosen(TopPairs(nms_iou=0.52), torch.tensor([[0.9], [0.8]]), ids, boxes + 990, torch.ones(2))
    assert flat.tolist() == [0]


def test_nms_looks_deeper_until_enough_survive():
    # 2,000 copies of one box and one weak box far away: the second survivor lies below the first 1,024 pairs.
    boxes = torch.cat(
        [torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(2000, 1), torch.tensor([[50.0, 50.0, 60.0, 60.0]])]
    )
    scores = torch.linspace(0.9, 0.1, 2001)[:, None]
    flat, _ = chosen(TopPairs(nms_iou=0.5), scores, torch.zeros(2001, 1, dtype=torch.int64), boxes, torch.ones(2001))
    assert flat.tolist() == [0, 2000]


def test_box_scores_enter_as_a_geometric_mean():
    scores, ids, boxes = torch.tensor([[0.25, 0.04]]), torch.tensor([[0, 1]]), make_boxes(1)
    for emission in (TopPairs(box_score_weight=0.5), BestPerRegion(box_score_weight=0.5)):
        found = emission.select(scores, ids, boxes, torch.tensor([0.36])).scores
        torch.testing.assert_close(found, torch.tensor([0.3, 0.12])[: len(found)])
    assert torch.equal(TopPairs().select(scores, ids, boxes, torch.tensor([0.36])).scores, scores[0])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(2, 9), st.integers(1, 40), st.sampled_from([0.0, 0.1, 0.4]), st.integers(0, 999))
def test_unreachable_regions_never_emit_a_candidate_whatever_the_ranker_says(regions, depth, keep, min_score, seed):
    k = min(3, depth)
    rng = np.random.default_rng(seed)
    shortlist = make_shortlist(regions, depth, num_categories=12, seed=seed)
    box_scores = torch.tensor(rng.uniform(0, 1, regions) ** 3, dtype=torch.float32)
    emission = TopPairs(max_per_image=keep, box_score_weight=0.5, min_score=min_score)
    wanted = emission.can_reach(shortlist, k, box_scores)
    boxes = make_boxes(regions, seed=seed)
    log_probs = torch.log_softmax(torch.tensor(rng.normal(0, 8, (regions, k)), dtype=torch.float32), dim=1)
    ranking = Ranking(log_probs.argsort(1, descending=True), log_probs, torch.zeros(regions, dtype=torch.int64))
    asked = Ranking(ranking.order, log_probs, torch.where(wanted, RankStatus.OK, RankStatus.SKIPPED))
    emitted = []
    for opinion in (ranking, asked):
        fused = LogLikFusion(alpha=1.0)(shortlist, opinion)
        flat, scores = chosen(emission, fused, shortlist.category_ids, boxes, box_scores)
        emitted.append((flat.tolist(), scores.tolist()))
    assert emitted[0] == emitted[1]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 12), st.integers(1, 6), st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.integers(0, 99))
def test_best_per_region_equals_a_plain_loop(regions, depth, min_score, seed):
    shortlist = make_shortlist(regions, depth, num_categories=8, seed=seed)
    scores = shortlist.probs.flip(1)  # the best is the last column
    emitted = BestPerRegion(min_score=min_score).select(
        scores, shortlist.category_ids, make_boxes(regions), torch.ones(regions)
    )
    best = sorted(((-max(row), region) for region, row in enumerate(scores.tolist())))
    expected = [(region, -score) for score, region in best if -score >= min_score]
    assert list(zip(emitted.region_ids.tolist(), emitted.scores.tolist(), strict=True)) == expected
    assert (scores[emitted.region_ids, emitted.columns] == emitted.scores).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(2, 6), st.floats(0, 1), st.integers(0, 999))
def test_a_region_left_unasked_is_never_labelled(regions, depth, min_score, seed):
    k = min(3, depth)
    rng = np.random.default_rng(seed)
    shortlist = make_shortlist(regions, depth, num_categories=12, seed=seed)
    emission = BestPerRegion(min_score=min_score)
    wanted = emission.can_reach(shortlist, k, torch.ones(regions))
    log_probs = torch.log_softmax(torch.tensor(rng.normal(0, 8, (regions, k)), dtype=torch.float32), dim=1)
    ranking = Ranking(log_probs.argsort(1, descending=True), log_probs, torch.zeros(regions, dtype=torch.int64))
    fused = LogLikFusion(alpha=1.0)(shortlist, ranking)
    emitted = emission.select(fused, shortlist.category_ids, make_boxes(regions), torch.ones(regions))
    by_tail = shortlist.probs[:, k:].amax(1) if depth > k else torch.zeros(regions)
    for region in emitted.region_ids.tolist():
        assert wanted[region] or by_tail[region] >= min_score


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(lambda: TopPairs(max_per_image=0), "max_per_image must be >= 1, got 0", id="max"),
        pytest.param(lambda: TopPairs(box_score_weight=2), r"must be in \[0, 1\), got 2", id="weight"),
        pytest.param(lambda: TopPairs(box_score_weight=1), "got 1; at 1 the names of a box tie", id="all-weight"),
        pytest.param(lambda: TopPairs(nms_iou=0), r"nms_iou must be in \(0, 1\] or None, got 0", id="nms"),
        pytest.param(lambda: TopPairs(min_score=-1), r"min_score must be in \[0, 1\], got -1", id="pairs-min-score"),
        pytest.param(lambda: BestPerRegion(min_score=2), r"min_score must be in \[0, 1\], got 2", id="min-score"),
        pytest.param(lambda: BestPerRegion(box_score_weight=-1), r"must be in \[0, 1\], got -1", id="best-weight"),
        pytest.param(lambda: BestPerRegion(depth=0), "depth must be >= 1, got 0", id="depth"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
