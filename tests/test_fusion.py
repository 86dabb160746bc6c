"""Fusion keeps mass, tail and identity; emission equals a plain loop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rar_mmdet.emission import Emission, can_reach, emit
from rar_mmdet.fusion import LogLikFusion, PermuteFusion, RankFusion
from rar_mmdet.structures import Ranking, RankStatus, Shortlist
from rar_mmdet.testing import make_boxes, make_shortlist

FUSIONS = [LogLikFusion(), LogLikFusion(alpha=1.0), LogLikFusion(temperature=3.0), RankFusion(), PermuteFusion()]


def random_ranking(num_regions: int, k: int, seed: int = 0, with_log_probs: bool = True) -> Ranking:
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.log_softmax(3 * torch.randn(num_regions, k, generator=generator), dim=1)
    order = log_probs.argsort(dim=1, descending=True)
    status = torch.zeros(num_regions, dtype=torch.int64)
    return Ranking(order, log_probs if with_log_probs else None, status)


@pytest.mark.parametrize("fusion", FUSIONS, ids=str)
def test_mass_and_tail_stay(fusion):
    shortlist, ranking = make_shortlist(20, 12, num_categories=40), random_ranking(20, 5)
    fused = fusion(shortlist, ranking)
    assert fused.dtype == torch.float32
    assert torch.equal(fused[:, 5:], shortlist.probs[:, 5:])
    torch.testing.assert_close(fused[:, :5].sum(1), shortlist.probs[:, :5].sum(1), rtol=1e-5, atol=0)
    assert (fused >= 0).all()


@pytest.mark.parametrize("fusion", FUSIONS, ids=str)
@pytest.mark.parametrize("status", [RankStatus.FALLBACK, RankStatus.SKIPPED])
def test_rows_without_opinion_are_untouched(fusion, status):
    shortlist, ranking = make_shortlist(6, 8), random_ranking(6, 5)
    silent = Ranking(ranking.order, ranking.log_probs, torch.full((6,), int(status)))
    assert torch.equal(fusion(shortlist, silent), shortlist.probs)


@pytest.mark.parametrize("fusion", [LogLikFusion(alpha=0.0), RankFusion(beta=0.0)], ids=str)
def test_zero_weight_is_retrieval_bit_for_bit(fusion):
    shortlist = make_shortlist(20, 12)
    assert torch.equal(fusion(shortlist, random_ranking(20, 5)), shortlist.probs)


def test_identity_order_permuted_is_retrieval_bit_for_bit():
    shortlist = make_shortlist(20, 12)
    identity = Ranking(torch.arange(5).repeat(20, 1), None, torch.zeros(20, dtype=torch.int64))
    assert torch.equal(PermuteFusion()(shortlist, identity), shortlist.probs)


def test_permute_hands_out_the_sorted_scores_in_the_new_order():
    shortlist, ranking = make_shortlist(9, 7), random_ranking(9, 5)
    fused = PermuteFusion()(shortlist, ranking)
    for row in range(9):
        assert fused[row, ranking.order[row]].tolist() == shortlist.probs[row, :5].tolist()


def test_loglik_equals_its_formula():
    shortlist, ranking = make_shortlist(9, 7), random_ranking(9, 5)
    q, p = shortlist.probs[:, :5].double(), ranking.log_probs.double().exp()
    expected = q**0.6 * p**0.4
    expected *= q.sum(1, keepdim=True) / expected.sum(1, keepdim=True)
    torch.testing.assert_close(LogLikFusion(alpha=0.4)(shortlist, ranking)[:, :5].double(), expected, rtol=1e-5, atol=0)


def test_temperature_one_over_alpha_moves_with_alpha():
    shortlist, ranking = make_shortlist(9, 7), random_ranking(9, 5)
    hot = LogLikFusion(alpha=1.0, temperature=1e6)(shortlist, ranking)[:, :5]
    mass = shortlist.probs[:, :5].sum(1, keepdim=True)
    torch.testing.assert_close(hot, (mass / 5).expand(9, 5), rtol=1e-4, atol=0)


def test_loglik_without_log_probs_is_rank_fusion():
    shortlist, ranking = make_shortlist(9, 7), random_ranking(9, 5, with_log_probs=False)
    assert torch.equal(LogLikFusion(beta=0.9)(shortlist, ranking), RankFusion(0.9)(shortlist, ranking))


def test_minus_infinity_and_zero_probability_do_not_make_nan():
    shortlist = Shortlist(torch.tensor([[3, 1, 2]]), torch.tensor([[1.0, 0.0, 0.0]]))
    ranking = Ranking(
        torch.tensor([[1, 0, 2]]), torch.tensor([[-torch.inf, 0.0, -torch.inf]]), torch.zeros(1, dtype=torch.int64)
    )
    for fusion in (LogLikFusion(), LogLikFusion(alpha=1.0), RankFusion()):
        fused = fusion(shortlist, ranking)
        assert fused.isfinite().all()
        torch.testing.assert_close(fused.sum(), torch.tensor(1.0))


@pytest.mark.parametrize("fusion", FUSIONS, ids=str)
@pytest.mark.parametrize(("regions", "depth", "k"), [(0, 5, 5), (3, 1, 1), (3, 5, 5)])
def test_small_shapes(fusion, regions, depth, k):
    shortlist = make_shortlist(regions, depth)
    assert fusion(shortlist, random_ranking(regions, k)).shape == (regions, depth)


def plain_emit(scores, category_ids, boxes, emission):
    """The rule as a loop over all pairs."""
    n = scores.shape[1]
    pairs = sorted(range(scores.size), key=lambda i: (-scores.flat[i], i))
    kept: list[int] = []
    for i in pairs:
        same = [j for j in kept if category_ids.flat[j] == category_ids.flat[i]]
        if emission.nms_iou is None or all(iou(boxes[i // n], boxes[j // n]) <= emission.nms_iou for j in same):
            kept.append(i)
    return kept[: emission.max_per_image]


def iou(a, b):
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    return w * h / union


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 12), st.integers(1, 6), st.integers(1, 40), st.sampled_from([None, 0.3, 0.5]), st.integers(0, 99))
def test_emission_equals_a_plain_loop(regions, depth, keep, nms_iou, seed):
    shortlist, boxes = make_shortlist(regions, depth, num_categories=8, seed=seed), make_boxes(regions, seed=seed)
    emission = Emission(max_per_image=keep, nms_iou=nms_iou)
    flat, scores = emit(shortlist.probs, shortlist.category_ids, boxes, torch.ones(regions), emission)
    expected = plain_emit(shortlist.probs.numpy(), shortlist.category_ids.numpy(), boxes.double().numpy(), emission)
    assert flat.tolist() == expected
    assert scores.tolist() == shortlist.probs.flatten()[flat].tolist()


def test_nms_with_thousands_of_categories_keeps_pixel_precision():
    # Offsets of 13,204 categories times 1,000 px exceed what float32 resolves to a pixel.
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 19.0]])  # IoU 0.526
    ids = torch.tensor([[13203], [13203]])
    flat, _ = emit(torch.tensor([[0.9], [0.8]]), ids, boxes + 990, torch.ones(2), Emission(nms_iou=0.53))
    assert flat.tolist() == [0, 1]
    flat, _ = emit(torch.tensor([[0.9], [0.8]]), ids, boxes + 990, torch.ones(2), Emission(nms_iou=0.52))
    assert flat.tolist() == [0]


def test_nms_looks_deeper_until_enough_survive():
    # 2,000 copies of one box and one weak box far away: the second survivor lies below the first 1,024 pairs.
    boxes = torch.cat(
        [torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(2000, 1), torch.tensor([[50.0, 50.0, 60.0, 60.0]])]
    )
    scores = torch.linspace(0.9, 0.1, 2001)[:, None]
    flat, _ = emit(scores, torch.zeros(2001, 1, dtype=torch.int64), boxes, torch.ones(2001), Emission(nms_iou=0.5))
    assert flat.tolist() == [0, 2000]


def test_box_scores_enter_as_a_geometric_mean():
    emission = Emission(box_score_weight=0.5)
    combined = emission.combine(torch.tensor([[0.25, 0.04]]), torch.tensor([0.36]))
    torch.testing.assert_close(combined, torch.tensor([[0.3, 0.12]]))
    scores = torch.rand(3, 4)
    assert torch.equal(Emission().combine(scores, torch.rand(3)), scores)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(2, 9), st.integers(1, 40), st.integers(0, 999))
def test_unreachable_regions_never_emit_a_candidate_whatever_the_ranker_says(regions, depth, keep, seed):
    k = min(3, depth)
    rng = np.random.default_rng(seed)
    shortlist = make_shortlist(regions, depth, num_categories=12, seed=seed)
    box_scores = torch.tensor(rng.uniform(0, 1, regions) ** 3, dtype=torch.float32)
    emission = Emission(max_per_image=keep, box_score_weight=0.5)
    wanted = can_reach(shortlist, k, box_scores, emission)
    boxes = make_boxes(regions, seed=seed)
    log_probs = torch.log_softmax(torch.tensor(rng.normal(0, 8, (regions, k)), dtype=torch.float32), dim=1)
    ranking = Ranking(log_probs.argsort(1, descending=True), log_probs, torch.zeros(regions, dtype=torch.int64))
    asked = Ranking(ranking.order, log_probs, torch.where(wanted, RankStatus.OK, RankStatus.SKIPPED))
    emitted = []
    for opinion in (ranking, asked):
        fused = LogLikFusion(alpha=1.0)(shortlist, opinion)
        flat, scores = emit(fused, shortlist.category_ids, boxes, box_scores, emission)
        emitted.append((flat.tolist(), scores.tolist()))
    assert emitted[0] == emitted[1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(lambda: LogLikFusion(alpha=1.5), r"alpha must be in \[0, 1\], got 1.5", id="alpha"),
        pytest.param(lambda: LogLikFusion(temperature=0), "temperature must be > 0, got 0", id="temperature"),
        pytest.param(lambda: RankFusion(beta=-1), "beta must be >= 0, got -1", id="beta"),
        pytest.param(lambda: Emission(max_per_image=0), "max_per_image must be >= 1, got 0", id="max"),
        pytest.param(lambda: Emission(box_score_weight=2), r"box_score_weight must be in \[0, 1\], got 2", id="weight"),
        pytest.param(lambda: Emission(nms_iou=0), r"nms_iou must be in \(0, 1\] or None, got 0", id="nms"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
