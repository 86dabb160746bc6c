"""Every backend against brute force in float64: ids, order, probabilities, equal scores."""

from __future__ import annotations

import pytest
import torch
from worlds import INFO, coarse, make_entries, make_memory, oracle, ranked, unit

from rar_mmdet.errors import VocabularyError
from rar_mmdet.memory import CategoryMemory, Entries, EntryKind, IndexSpec
from rar_mmdet.memory.exact import best_first

EXACT = ["torch", "Flat"]
MIXES = [
    pytest.param("max", None, id="max"),
    pytest.param("mean", None, id="mean"),
    pytest.param("mean", 0.3, id="mean-mixed"),
    pytest.param("max", 0.3, id="max-mixed"),
]


@pytest.mark.parametrize("index", EXACT)
@pytest.mark.parametrize("entries_per_category", [1, 3])
def test_exact_backends_equal_float64_brute_force(index: str, entries_per_category: int) -> None:
    entries = make_entries(unit(200 * entries_per_category, 32), 200)
    queries = unit(40, 32, seed=1)
    found = make_memory(entries, 200, index=index).search(queries, 50)
    ids, probs = ranked(oracle(entries, 200, queries), INFO.logit_scale, 50)
    assert torch.equal(found.category_ids, ids)
    torch.testing.assert_close(found.probs.double(), probs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("index", EXACT)
@pytest.mark.parametrize(("aggregation", "text_weight"), MIXES)
@pytest.mark.parametrize("depth", [1, 7, 90])
def test_equal_scores_come_by_category_id(index: str, aggregation: str, text_weight: float | None, depth: int) -> None:
    if index == "Flat" and aggregation == "max" and text_weight is not None:
        pytest.skip("refused, see test_index_that_cannot_serve_a_mix")
    entries = make_entries(coarse(128), 90, images=0.5)
    queries = coarse(30, seed=1)
    settings = {"aggregation": aggregation, "text_weight": text_weight}
    found = make_memory(entries, 90, index=index, **settings).search(queries, depth)
    scores = oracle(entries, 90, queries, **settings)
    ids, probs = ranked(scores, INFO.logit_scale, depth)
    torch.testing.assert_close(found.probs.double(), probs, rtol=1e-4, atol=1e-9)
    if aggregation == "max" and text_weight is None:  # exact in float32, so equal means equal
        assert len(scores[0].unique()) < 9
        assert torch.equal(found.category_ids, ids)
    else:
        torch.testing.assert_close(scores.gather(1, found.category_ids), scores.gather(1, ids), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("aggregation", "text_weight"), MIXES)
def test_aggregation_equals_a_loop(aggregation: str, text_weight: float | None) -> None:
    entries = make_entries(unit(300, 24), 60, images=0.5)
    queries = unit(20, 24, seed=2)
    settings = {"aggregation": aggregation, "text_weight": text_weight}
    found = make_memory(entries, 60, **settings).search(queries, 60)
    ids, probs = ranked(oracle(entries, 60, queries, **settings), INFO.logit_scale, 60)
    assert torch.equal(found.category_ids, ids)
    torch.testing.assert_close(found.probs.double(), probs, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("index", [*EXACT, "HNSW16", "IVF4,Flat", "PCA16,Flat", "SQ8"])
def test_approximate_backends_find_and_weigh_what_brute_force_does(index: str) -> None:
    entries = make_entries(unit(600, 32), 200)
    queries = torch.nn.functional.normalize(entries.vectors[::13] + 0.05 * unit(47, 32, seed=3), dim=1)
    found = make_memory(entries, 200, index=IndexSpec(index, mass_samples=200, survivors=150)).search(queries, 5)
    ids, probs = ranked(oracle(entries, 200, queries), INFO.logit_scale, 5)
    assert (found.category_ids[:, 0] == ids[:, 0]).all()
    # Every category is in the sample here, so a category outside weighs what the average of them weighs.
    torch.testing.assert_close(found.probs[:, 0].double(), probs[:, 0], rtol=0.02, atol=0)
    assert (found.probs.sum(dim=1) <= 1 + 1e-6).all()


def test_survivors_that_are_all_rows_make_an_approximate_index_exact() -> None:
    entries = make_entries(unit(90, 16), 30)
    queries = unit(10, 16, seed=1)
    exact = make_memory(entries, 30).search(queries, 30)
    found = make_memory(entries, 30, index=IndexSpec("PCA4,Flat", survivors=90)).search(queries, 30)
    assert torch.equal(found.category_ids, exact.category_ids)
    torch.testing.assert_close(found.probs, exact.probs, rtol=1e-4, atol=1e-8)


def test_queries_the_index_serves_too_little_are_searched_exactly() -> None:
    entries = make_entries(unit(400, 16), 20)
    queries = unit(9, 16, seed=1)
    exact = make_memory(entries, 20).search(queries, 15)
    found = make_memory(entries, 20, index=IndexSpec("HNSW8", survivors=1)).search(queries, 15)
    assert torch.equal(found.category_ids, exact.category_ids)


def test_approximate_index_says_that_probabilities_are_estimates(caplog: pytest.LogCaptureFixture) -> None:
    memory = make_memory(make_entries(unit(50, 8), 50), 50, index="HNSW8")
    memory.search(unit(2, 8), 3)
    memory.search(unit(2, 8), 3)
    assert [r.levelname for r in caplog.records].count("WARNING") == 1
    assert "estimated" in caplog.text


@pytest.mark.parametrize("index", [*EXACT, "HNSW8"])
def test_no_regions_one_category_and_depth_beyond_the_vocabulary(index: str) -> None:
    memory = make_memory(make_entries(unit(7, 8), 7), 7, index=index)
    assert memory.search(torch.zeros(0, 8), 300).category_ids.shape == (0, 7)
    everything = memory.search(unit(3, 8, seed=1), 300)
    assert (everything.category_ids.sort(dim=1).values == torch.arange(7)).all()
    torch.testing.assert_close(everything.probs.sum(dim=1), torch.ones(3))
    one = make_memory(make_entries(unit(1, 8), 1), 1, index=index).search(unit(2, 8), 5)
    assert one.category_ids.tolist() == [[0], [0]]
    assert one.probs.tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("index", [*EXACT, "HNSW8"])
@pytest.mark.parametrize("aggregation", ["max", "mean"])
def test_categories_without_entries_come_last_with_no_probability(index: str, aggregation: str) -> None:
    entries = Entries.sorted(unit(6, 8), torch.tensor([5, 1, 1, 3, 3, 3]), EntryKind.TEXT, ["s"] * 6)
    found = make_memory(entries, 8, index=index, aggregation=aggregation).search(unit(4, 8, seed=1), 8)
    assert (found.category_ids[:, :3].sort(dim=1).values == torch.tensor([1, 3, 5])).all()
    assert (found.probs[:, 3:] == 0).all()
    torch.testing.assert_close(found.probs.sum(dim=1), torch.ones(4))


def test_temperature_replaces_the_learned_scale() -> None:
    entries, queries = make_entries(unit(20, 8), 20), unit(3, 8, seed=1)
    found = make_memory(entries, 20).search(queries, 20, temperature=0.5)
    _, probs = ranked(oracle(entries, 20, queries), 2.0, 20)
    torch.testing.assert_close(found.probs.double(), probs, rtol=1e-5, atol=0)


def test_order_of_entries_and_batches_does_not_matter() -> None:
    vectors, ids = unit(60, 8), torch.arange(60) % 20
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    straight = make_memory(Entries.sorted(vectors, ids, EntryKind.TEXT, ["s"] * 60), 20)
    shuffled = make_memory(Entries.sorted(vectors[order], ids[order], EntryKind.TEXT, ["s"] * 60), 20)
    queries = unit(33, 8, seed=1)
    whole = straight.search(queries, 5)
    assert torch.equal(whole.category_ids, shuffled.search(queries, 5).category_ids)
    single = torch.cat([straight.search(row[None], 5).category_ids for row in queries])
    assert torch.equal(whole.category_ids, single)


@pytest.mark.parametrize("depth", [1, 3, 11, 12])
def test_best_first_equals_a_stable_sort(depth: int) -> None:
    scores = torch.randint(0, 4, (200, 12), generator=torch.Generator().manual_seed(0)).float()
    ids, values = best_first(scores, depth)
    expected = scores.sort(dim=1, descending=True, stable=True)
    assert torch.equal(ids, expected.indices[:, :depth])
    assert torch.equal(values, expected.values[:, :depth])


@pytest.mark.parametrize(
    ("queries", "depth", "temperature", "message"),
    [
        pytest.param(torch.ones(2, 5), 3, None, r"queries must be \(R, 8\), got \(2, 5\)", id="dimension"),
        pytest.param(torch.full((2, 8), torch.nan), 3, None, r"not finite in rows \[0, 1\]", id="nan"),
        pytest.param(torch.ones(2, 8), 0, None, "depth must be at least 1", id="depth"),
        pytest.param(torch.ones(2, 8), 3, 0.0, "temperature must be positive", id="temperature"),
    ],
)
def test_bad_queries_are_refused(queries: torch.Tensor, depth: int, temperature: float | None, message: str) -> None:
    memory = make_memory(make_entries(unit(4, 8), 4), 4)
    with pytest.raises(ValueError, match=message):
        memory.search(queries, depth, temperature)


def test_index_that_cannot_serve_a_mix() -> None:
    with pytest.raises(ValueError, match="Use index='torch', or aggregation='mean'"):
        make_memory(make_entries(unit(8, 8), 4, images=0.5), 4, index="HNSW8", text_weight=0.5)


def test_misspelt_index_is_refused() -> None:
    with pytest.raises(ValueError, match="neither 'torch' nor a FAISS factory string"):
        make_memory(make_entries(unit(8, 8), 4), 4, index="HNWS")


def test_bad_settings_are_refused() -> None:
    entries = make_entries(unit(8, 8), 4)
    with pytest.raises(ValueError, match="aggregation must be 'max' or 'mean'"):
        make_memory(entries, 4, aggregation="sum")
    with pytest.raises(ValueError, match=r"text_weight must be in \[0, 1\]"):
        make_memory(entries, 4, text_weight=1.5)
    with pytest.raises(ValueError, match="expected unit length"):
        Entries.sorted(torch.ones(2, 8), torch.zeros(2, dtype=torch.int64), EntryKind.TEXT, ["a", "b"])
    with pytest.raises(VocabularyError, match="entries name categories up to 3, but there are 2"):
        CategoryMemory(entries, ["a", "b"], info=INFO)
