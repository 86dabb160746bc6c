"""Fusion keeps mass, tail and identity; emission equals a plain loop."""

import pytest
import torch

from rar_mmdet.fusion import LogLikFusion, LogPool, PermuteFusion, RankFusion
from rar_mmdet.structures import Ranking, RankStatus, Shortlist
from rar_mmdet.testing import make_shortlist

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


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(lambda: LogLikFusion(alpha=1.5), r"alpha must be in \[0, 1\], got 1.5", id="alpha"),
        pytest.param(lambda: LogLikFusion(temperature=0), "temperature must be > 0, got 0", id="temperature"),
        pytest.param(lambda: RankFusion(beta=-1), "beta must be >= 0, got -1", id="beta"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def own_scores(num_regions: int, depth: int, seed: int = 0) -> torch.Tensor:
    """A detector's scores, some below the floor, of about half of the names."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(num_regions, depth, generator=generator) ** 4
    return torch.where(torch.rand(num_regions, depth, generator=generator) < 0.5, torch.nan, scores)


class TestLogPool:
    def test_equals_its_formula_and_keeps_the_mass(self):
        shortlist, own = make_shortlist(20, 12, num_categories=40), own_scores(20, 12)
        pooled = LogPool(weight=0.4, unknown=0.05, floor=0.02)(shortlist, own)
        d = own.double().nan_to_num(0.05)
        d = torch.where(own.isnan(), d, d.clamp_min(0.02))
        expected = shortlist.probs.double() ** 0.6 * d**0.4
        expected *= shortlist.probs.double().sum(1, keepdim=True) / expected.sum(1, keepdim=True)
        dense = torch.zeros(20, 40).scatter(1, pooled.category_ids, pooled.probs)
        torch.testing.assert_close(dense.gather(1, shortlist.category_ids), expected.float())
        assert (pooled.probs.diff(dim=1) <= 0).all()
        assert torch.equal(pooled.category_ids.sort(1).values, shortlist.category_ids.sort(1).values)

    def test_weight_zero_is_retrieval_and_one_is_the_detector(self):
        shortlist, own = make_shortlist(5, 8), own_scores(5, 8)
        assert LogPool(weight=0.0)(shortlist, own) is shortlist
        alone = LogPool(weight=1.0, unknown=0.5)(shortlist, own)
        d = torch.where(own.isnan(), torch.tensor(0.5), own.clamp_min(0.01))
        torch.testing.assert_close(alone.probs, (d / d.sum(1, keepdim=True)).sort(1, descending=True).values)

    def test_a_detector_that_knows_no_name_changes_nothing_at_any_size_of_unknown(self):
        shortlist, nothing = make_shortlist(5, 8), torch.full((5, 8), torch.nan)
        order = LogPool(weight=0.3, unknown=0.2)(shortlist, nothing).category_ids
        assert torch.equal(order, shortlist.category_ids)

    def test_names_that_retrieval_excludes_stay_excluded(self):
        shortlist = Shortlist(torch.arange(3)[None], torch.tensor([[0.9, 0.1, 0.0]]))
        pooled = LogPool(weight=0.9)(shortlist, torch.tensor([[0.0, 0.0, 1.0]]))
        assert pooled.probs[0, 2] == 0
        zeros = Shortlist(shortlist.category_ids, torch.zeros(1, 3))
        assert LogPool()(zeros, torch.zeros(1, 3)).probs.tolist() == [[0, 0, 0]]

    @pytest.mark.parametrize("key", ["weight", "unknown", "floor"])
    def test_bad_values(self, key):
        with pytest.raises(ValueError, match=rf"LogPool.{key} must be in"):
            LogPool(**{key: 1.5})
