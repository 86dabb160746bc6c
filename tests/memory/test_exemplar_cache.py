"""Exemplars beside texts: the formula written out, nothing at alpha 0, and a fit that does no harm."""

import pytest
import torch
from torch.nn.functional import normalize

from rar_mmdet.memory import ExemplarCache, fit_cache
from rar_mmdet.testing import FakeMemory

C, D = 7, 16


@pytest.fixture
def base():
    return FakeMemory(vectors=normalize(torch.randn(C, D, generator=torch.Generator().manual_seed(0)), dim=1))


def units(count, seed):
    return normalize(torch.randn(count, D, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_it_is_the_formula(base):
    keys, labels, queries = units(9, 1), torch.tensor([0, 0, 3, 3, 3, 5, 5, 6, 0]), units(4, 2)
    found = ExemplarCache(base, C, keys, labels, alpha=2.0, beta=5.5).search(queries, C)
    for row, query in enumerate(queries):
        logits = query @ base.vectors.T / base.temperature
        for key, label in zip(keys, labels.tolist(), strict=True):
            logits[label] += 2.0 * torch.exp(-5.5 * (1 - query @ key))
        expected = torch.softmax(logits, dim=0)
        assert torch.equal(found.category_ids[row], expected.argsort(descending=True))
        torch.testing.assert_close(found.probs[row], expected.sort(descending=True).values, rtol=1e-4, atol=1e-6)


def test_alpha_zero_changes_nothing(base):
    queries = units(5, 3)
    found = ExemplarCache(base, C, units(2, 4), torch.tensor([1, 2]), alpha=0.0).search(queries, 3)
    plain = base.search(queries, 3)
    assert torch.equal(found.category_ids, plain.category_ids)
    torch.testing.assert_close(found.probs, plain.probs, rtol=1e-4, atol=1e-6)


def test_the_fit_wants_exemplars_where_words_say_nothing_and_leaves_them_where_words_are_right(base):
    groups = torch.arange(40)
    labels = torch.arange(40) % C
    like_words = normalize(base.vectors[labels] + 0.05 * units(40, 5), dim=1)
    assert fit_cache(base, C, like_words, labels, groups)[0] <= 1.0
    own = normalize(units(C, 6)[labels] + 0.05 * units(40, 7), dim=1)  # each looks like its kind, not like its word
    alpha, beta = fit_cache(base, C, own, labels, groups)
    assert alpha >= 8
    before = (base.search(own, 1).category_ids[:, 0] == labels).float().mean()
    fresh = normalize(units(C, 6)[labels] + 0.05 * units(40, 8), dim=1)
    after = ExemplarCache(base, C, own, labels, alpha, beta).search(fresh, 1).category_ids[:, 0] == labels
    assert before < 0.5 < 0.95 < after.float().mean()
    # Exemplars of the same photo are no evidence for each other.
    assert fit_cache(base, C, own, labels, torch.zeros(40, dtype=torch.int64)) == (1.0, 5.5)
