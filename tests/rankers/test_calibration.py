import math

import pytest
import torch

from rar_mmdet.fusion import LogLikFusion
from rar_mmdet.rankers.calibration import (
    auroc,
    decisive_margin,
    fit_temperature,
    fit_weight,
    fused_log_probs,
    negative_log_likelihood,
    precision_over_coverage,
    threshold_for,
)
from rar_mmdet.structures import Ranking, Shortlist


def draw(logits, seed=0):
    return torch.multinomial(logits.softmax(1), 1, generator=torch.Generator().manual_seed(seed)).flatten()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_temperature_is_recovered(temperature):
    logits = torch.randn(4_000, 5, generator=torch.Generator().manual_seed(1)) * 2
    assert fit_temperature(logits * temperature, draw(logits)) == pytest.approx(temperature, rel=0.1)


@pytest.mark.parametrize("weight", [0.2, 0.5, 0.8])
def test_weight_is_recovered(weight):
    generator = torch.Generator().manual_seed(2)
    log_q, log_p = (torch.randn(4_000, 5, generator=generator) * 3 for _ in range(2))
    target = draw((1 - weight) * log_q + weight * log_p)
    assert fit_weight(log_q, log_p, target) == pytest.approx(weight, abs=0.05)


def test_a_useless_ranker_gets_no_weight_and_a_perfect_one_all():
    generator = torch.Generator().manual_seed(3)
    log_q = torch.randn(1_000, 4, generator=generator)
    target = draw(log_q)
    assert fit_weight(log_q, -50 * torch.nn.functional.one_hot(target, 4).float(), target) == pytest.approx(0, abs=1e-6)
    assert fit_weight(log_q, 50 * torch.nn.functional.one_hot(target, 4).float(), target) == pytest.approx(1, abs=1e-6)


def test_likelihood_is_the_same_function_as_the_fusions():
    generator = torch.Generator().manual_seed(4)
    q = torch.randn(6, 5, generator=generator).softmax(1).sort(1, descending=True).values
    log_p = torch.randn(6, 5, generator=generator).log_softmax(1)
    shortlist = Shortlist(torch.arange(5).repeat(6, 1), q)
    ranking = Ranking(torch.arange(5).repeat(6, 1), log_p, torch.zeros(6, dtype=torch.int64))
    fused = LogLikFusion(alpha=0.4)(shortlist, ranking)
    assert torch.allclose(
        fused_log_probs(q.log(), log_p, 0.4).exp().float(), fused / fused.sum(1, keepdim=True), atol=1e-6
    )


def test_likelihood_of_a_guess():
    assert negative_log_likelihood(torch.zeros(3, 5), torch.tensor([0, 3, 4])) == pytest.approx(math.log(5))


def test_margin_by_brute_force():
    generator = torch.Generator().manual_seed(5)
    probs = torch.rand(300, 5, generator=generator).sort(1, descending=True).values
    target = torch.randint(-1, 5, (300,), generator=generator)
    answered = torch.where(torch.rand(300, generator=generator) < 0.5, target, torch.zeros_like(target)).clamp_min(0)
    margin = (probs[:, 0] - probs[:, 1]).double()
    found, saving = decisive_margin(probs, answered, target, tolerance=0.02)
    accuracy = (answered == target).double().mean()

    def loss(threshold):
        kept = torch.where(margin >= threshold, torch.zeros_like(answered), answered)
        return accuracy - (kept == target).double().mean()

    assert loss(found) <= 0.02 + 1e-12
    assert saving == (margin >= found).double().mean()
    assert all(loss(float(lower)) > 0.02 for lower in margin[margin < found])


def test_margin_without_regions_or_savings():
    assert decisive_margin(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0)) == (float("inf"), 0.0)
    probs = torch.tensor([[0.9, 0.1]])
    assert decisive_margin(probs, torch.tensor([1]), torch.tensor([1])) == (float("inf"), 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_auroc_is_the_share_of_pairs_in_order(seed):
    generator = torch.Generator().manual_seed(seed)
    scores, positive = torch.randint(0, 6, (40,), generator=generator), torch.rand(40, generator=generator) < 0.4
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0 for a in scores[positive].tolist() for b in scores[~positive].tolist()
    ]
    assert auroc(scores, positive) == pytest.approx(sum(pairs) / len(pairs))
    assert math.isnan(auroc(scores, torch.ones(40, dtype=torch.bool)))


@pytest.mark.parametrize("seed", range(3))
def test_the_threshold_is_the_lowest_that_is_right_often_enough(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 12, (60,), generator=generator).float() / 12
    right = torch.rand(60, generator=generator) < scores
    for wanted in (0.5, 0.8, 0.95):
        enough = {t: (scores >= t).double().mean().item() for t in scores.unique().tolist()
                  if right[scores >= t].double().mean() >= wanted}  # fmt: skip
        threshold, coverage, precision = threshold_for(wanted, scores, right)
        assert threshold == pytest.approx(min(enough, default=math.inf))
        assert coverage == pytest.approx(max(enough.values(), default=0.0))
        assert precision >= wanted
    assert threshold_for(0.5, scores, torch.zeros(60, dtype=torch.bool)) == (math.inf, 0.0, 1.0)


def test_coverage_and_precision_of_ties_stand_or_fall_together():
    thresholds, coverage, precision = precision_over_coverage(
        torch.tensor([0.9, 0.5, 0.5, 0.1]), torch.tensor([True, True, False, False])
    )
    assert thresholds.tolist() == pytest.approx([0.9, 0.5, 0.1])
    assert coverage.tolist() == [0.25, 0.75, 1.0]
    assert precision.tolist() == pytest.approx([1.0, 2 / 3, 0.5])
    assert [len(part) for part in precision_over_coverage(torch.zeros(0), torch.zeros(0, dtype=torch.bool))] == [0] * 3
