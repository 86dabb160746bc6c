"""Every backend against brute force in float64: ids, order, probabilities, equal scores."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from worlds import INFO, coarse, make_entries, make_memory, make_search, oracle, ranked, unit

from rar_mmdet.errors import ConfigError, HostError, MemoryMismatchError, VocabularyError
from rar_mmdet.memory import (
    CategoryMemory,
    Entries,
    EntryKind,
    FaissMemory,
    FaissSearch,
    IndexSpec,
    TextMemory,
    faiss_index,
)
from rar_mmdet.memory.exact import best_first
from rar_mmdet.testing import FakeEncoder, FakeMemory

EXACT = ["exact", "Flat"]
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
    found = make_search(entries, 200, index).search(queries, 50)
    ids, probs = ranked(oracle(entries, 200, queries), INFO.logit_scale, 50)
    assert torch.equal(found.category_ids, ids)
    torch.testing.assert_close(found.probs.double(), probs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("index", EXACT)
@pytest.mark.parametrize(("aggregation", "text_weight"), MIXES)
@pytest.mark.parametrize("depth", [1, 7, 90])
def test_equal_scores_come_by_category_id(index: str, aggregation: str, text_weight: float | None, depth: int) -> None:
    entries = make_entries(coarse(128), 90, images=0.5)
    queries = coarse(30, seed=1)
    settings = {"aggregation": aggregation, "text_weight": text_weight}
    found = make_search(entries, 90, index, **settings).search(queries, depth)
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


@pytest.mark.parametrize("index", ["HNSW16", "IVF4,Flat", "PCA16,Flat", "SQ8"])
def test_approximate_backends_find_and_weigh_what_brute_force_does(index: str) -> None:
    entries = make_entries(unit(600, 32), 200)
    queries = torch.nn.functional.normalize(entries.vectors[::13] + 0.05 * unit(47, 32, seed=3), dim=1)
    found = make_search(entries, 200, IndexSpec(index, mass_samples=200, survivors=150)).search(queries, 5)
    ids, probs = ranked(oracle(entries, 200, queries), INFO.logit_scale, 5)
    assert (found.category_ids[:, 0] == ids[:, 0]).all()
    # Every category is in the sample here, so a category outside weighs what the average of them weighs.
    torch.testing.assert_close(found.probs[:, 0].double(), probs[:, 0], rtol=0.02, atol=0)
    assert (found.probs.sum(dim=1) <= 1 + 1e-6).all()


def test_survivors_that_are_all_rows_make_an_approximate_index_exact() -> None:
    entries = make_entries(unit(90, 16), 30)
    queries = unit(10, 16, seed=1)
    exact = make_memory(entries, 30).search(queries, 30)
    found = make_search(entries, 30, IndexSpec("PCA4,Flat", survivors=90)).search(queries, 30)
    assert torch.equal(found.category_ids, exact.category_ids)
    torch.testing.assert_close(found.probs, exact.probs, rtol=1e-4, atol=1e-8)


def test_queries_the_index_serves_too_little_are_searched_exactly() -> None:
    entries = make_entries(unit(400, 16), 20)
    queries = unit(9, 16, seed=1)
    exact = make_memory(entries, 20).search(queries, 15)
    found = make_search(entries, 20, IndexSpec("HNSW8", survivors=1)).search(queries, 15)
    assert torch.equal(found.category_ids, exact.category_ids)


def test_approximate_index_says_that_probabilities_are_estimates(caplog: pytest.LogCaptureFixture) -> None:
    memory = make_search(make_entries(unit(50, 8), 50), 50, "HNSW8")
    memory.search(unit(2, 8), 3)
    memory.search(unit(2, 8), 3)
    assert [r.levelname for r in caplog.records].count("WARNING") == 1
    assert "estimated" in caplog.text


@pytest.mark.parametrize("index", [*EXACT, "HNSW8"])
def test_no_regions_one_category_and_depth_beyond_the_vocabulary(index: str) -> None:
    memory = make_search(make_entries(unit(7, 8), 7), 7, index)
    assert memory.search(torch.zeros(0, 8), 300).category_ids.shape == (0, 7)
    everything = memory.search(unit(3, 8, seed=1), 300)
    assert (everything.category_ids.sort(dim=1).values == torch.arange(7)).all()
    torch.testing.assert_close(everything.probs.sum(dim=1), torch.ones(3))
    one = make_search(make_entries(unit(1, 8), 1), 1, index).search(unit(2, 8), 5)
    assert one.category_ids.tolist() == [[0], [0]]
    assert one.probs.tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("index", [*EXACT, "HNSW8"])
@pytest.mark.parametrize("aggregation", ["max", "mean"])
def test_categories_without_entries_come_last_with_no_probability(index: str, aggregation: str) -> None:
    entries = Entries.sorted(unit(6, 8), torch.tensor([5, 1, 1, 3, 3, 3]), EntryKind.TEXT, ["s"] * 6)
    found = make_search(entries, 8, index, aggregation=aggregation).search(unit(4, 8, seed=1), 8)
    assert (found.category_ids[:, :3].sort(dim=1).values == torch.tensor([1, 3, 5])).all()
    assert (found.probs[:, 3:] == 0).all()
    torch.testing.assert_close(found.probs.sum(dim=1), torch.ones(4))


def test_temperature_replaces_the_learned_scale() -> None:
    entries, queries = make_entries(unit(20, 8), 20), unit(3, 8, seed=1)
    _, probs = ranked(oracle(entries, 20, queries), 2.0, 20)
    for index in EXACT:
        found = make_search(entries, 20, index, temperature=0.5).search(queries, 20)
        torch.testing.assert_close(found.probs.double(), probs, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("aggregation", "text_weight"), MIXES)
def test_an_autocast_around_a_search_changes_nothing(
    dtype: torch.dtype, aggregation: str, text_weight: float | None
) -> None:
    settings = {"aggregation": aggregation, "text_weight": text_weight}
    entries, queries = make_entries(unit(300, 24), 60, images=0.5), unit(20, 24, seed=2)
    before = make_memory(entries, 60, **settings).search(queries, 10)
    with torch.autocast("cpu", dtype=dtype):
        memory = make_memory(entries, 60, **settings)
        inside = memory.search(queries, 10)
        nearest = memory.nearest_entries(queries, 5)
    assert torch.equal(inside.category_ids, before.category_ids)
    assert torch.equal(inside.probs, before.probs)
    assert torch.equal(nearest[1], make_memory(entries, 60).nearest_entries(queries, 5)[1])


@pytest.mark.parametrize("k", [1, 7, 500])
def test_nearest_entries_equal_a_sort_of_all_cosines(k: int) -> None:
    entries, queries = make_entries(coarse(200), 90, images=0.5), coarse(30, seed=1)
    ids, cosines = make_memory(entries, 90, aggregation="mean", text_weight=0.3, temperature=7).nearest_entries(
        queries, k
    )
    expected = (queries.double() @ entries.vectors.double().T).sort(dim=1, descending=True, stable=True)
    assert ids.shape == (30, min(k, 200))
    assert torch.equal(ids, expected.indices[:, :k])
    assert torch.equal(cosines.double(), expected.values[:, :k])
    assert make_memory(entries, 90).nearest_entries(queries[:0], k)[0].shape == (0, min(k, 200))


def test_many_finite_halves_are_searched_although_their_sum_is_not_finite() -> None:
    memory = make_memory(make_entries(unit(4, 8), 4), 4)
    queries = torch.full((40_000, 8), 8**-0.5, dtype=torch.float16)
    assert torch.isinf(queries.sum())
    assert len(memory.search(queries, 1)) == 40_000


@pytest.mark.parametrize("index", [*EXACT, "HNSW8"])
def test_eight_threads_find_what_one_finds(index: str) -> None:
    entries, queries = make_entries(unit(900, 32), 200), unit(64, 32, seed=1)
    shared, alone = make_search(entries, 200, index), make_search(entries, 200, index)
    with ThreadPoolExecutor(8) as pool:
        for depth, found in zip([20, 5] * 8, pool.map(lambda n: shared.search(queries, n), [20, 5] * 8), strict=True):
            assert torch.equal(found.category_ids, alone.search(queries, depth).category_ids)


def test_a_ready_memory_checks_names_and_encoder() -> None:
    names = ["red panda", "cup_(drink)"]
    encoder = FakeEncoder()
    info = replace(INFO, encoder=encoder.fingerprint)
    memory = CategoryMemory(make_entries(unit(2, 16), 2), names, info=info)
    for ready in (memory, FaissSearch(memory, "Flat")):
        assert ready.prepare(encoder, ["red_panda", "cup (drink)"]) is ready
        with pytest.raises(
            MemoryMismatchError, match="this memory has 2 names, the recogniser 3 classes; 'x' is in the"
        ):
            ready.prepare(encoder, [*names, "x"])
        with pytest.raises(
            MemoryMismatchError, match="in another order .*2 of 2 labels differ; label 0 is 'red panda'"
        ):
            ready.prepare(encoder, names[::-1])
        with pytest.raises(MemoryMismatchError, match="was built by encoder fake-16-0, this config's is fake-16-1"):
            ready.prepare(FakeEncoder(seed=1), names)


def test_vectors_of_another_precision_are_refused() -> None:
    memory = CategoryMemory(make_entries(unit(2, 16), 2), ["a", "b"], info=replace(INFO, encoder="ViT@12ab:fp16"))
    encoder = FakeEncoder()
    encoder.fingerprint = "ViT@12ab:fp32"
    with pytest.raises(MemoryMismatchError, match="built in fp16, the encoder runs in fp32; .*precision='fp16'"):
        memory.prepare(encoder, ["a", "b"])


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
    ("queries", "depth", "message"),
    [
        pytest.param(torch.ones(2, 5), 3, r"queries must be \(R, 8\), got \(2, 5\)", id="dimension"),
        pytest.param(torch.full((2, 8), torch.nan), 3, r"not finite in rows \[0, 1\]", id="nan"),
        pytest.param(torch.ones(2, 8), 0, "depth must be at least 1", id="depth"),
    ],
)
@pytest.mark.parametrize("index", EXACT)
def test_bad_queries_are_refused(index: str, queries: torch.Tensor, depth: int, message: str) -> None:
    memory = make_search(make_entries(unit(4, 8), 4), 4, index)
    with pytest.raises(ConfigError, match=message):
        memory.search(queries, depth)


def test_index_that_cannot_serve_a_mix() -> None:
    with pytest.raises(ValueError, match="Search without FAISS, or take aggregation='mean'"):
        make_search(make_entries(unit(8, 8), 4, images=0.5), 4, "HNSW8", text_weight=0.5)


def test_misspelt_index_is_refused() -> None:
    with pytest.raises(ValueError, match="index='HNWS' is no factory string of FAISS; for instance 'Flat'"):
        make_search(make_entries(unit(8, 8), 4), 4, "HNWS")


def test_bad_settings_are_refused() -> None:
    entries = make_entries(unit(8, 8), 4)
    with pytest.raises(ValueError, match="aggregation must be 'max' or 'mean'"):
        make_memory(entries, 4, aggregation="sum")
    with pytest.raises(ValueError, match=r"text_weight must be in \[0, 1\]"):
        make_memory(entries, 4, text_weight=1.5)
    for temperature in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="temperature must be a positive number such as 0.01"):
            make_memory(entries, 4, temperature=temperature)
    with pytest.raises(ConfigError, match="expected unit length"):
        Entries.sorted(torch.ones(2, 8), torch.zeros(2, dtype=torch.int64), EntryKind.TEXT, ["a", "b"])
    with pytest.raises(VocabularyError, match="needs at least one category name"):
        CategoryMemory(entries, [], info=INFO)
    with pytest.raises(VocabularyError, match="needs at least one entry"):
        CategoryMemory(entries.take(torch.arange(0)), ["a"], info=INFO)
    with pytest.raises(VocabularyError, match="entries name categories up to 3, but there are 2"):
        CategoryMemory(entries, ["a", "b"], info=INFO)


# FAISS as a recipe


def index_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.faiss"))


def test_faiss_searches_the_memory_of_another_recipe(tmp_path: Path) -> None:
    names, encoder = [f"n{i}" for i in range(60)], FakeEncoder()
    source = TextMemory(cache_dir=tmp_path / "memory", temperature=0.1)
    exact = source.prepare(encoder, names)
    queries = encoder.encode_texts([f"a photo of a n{i}" for i in range(20)])
    for index in ("Flat", "HNSW8"):
        found = FaissMemory(source, index, cache_dir=tmp_path / "faiss").prepare(encoder, names)
        assert found.category_names == tuple(names)
        same = found.search(queries, 5).category_ids == exact.search(queries, 5).category_ids
        assert same.float().mean() > (0.999 if index == "Flat" else 0.9)
    assert len(index_files(tmp_path / "faiss")) == 1  # 'Flat' has no index


def test_an_index_is_built_once_for_its_vectors_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    real = faiss_index.build_index
    monkeypatch.setattr(faiss_index, "build_index", lambda *args: built.append(1) or real(*args))
    memory = make_memory(make_entries(unit(200, 16), 50, images=0.5), 50)
    queries = unit(30, 16, seed=1)
    first = FaissSearch(memory, "HNSW8", cache_dir=tmp_path).search(queries, 5)
    for index in ("HNSW8", IndexSpec("HNSW8", ef_search=32)):
        again = FaissSearch(memory, index, cache_dir=tmp_path).search(queries, 5)
    assert len(built) == 1
    assert torch.equal(
        first.category_ids, FaissSearch(memory, "HNSW8", cache_dir=tmp_path).search(queries, 5).category_ids
    )
    assert again.depth == 5
    FaissSearch(memory, "HNSW16", cache_dir=tmp_path)
    FaissSearch(memory, IndexSpec("HNSW8", ef_construction=20), cache_dir=tmp_path)
    FaissSearch(make_memory(memory.entries, 50, aggregation="mean"), "HNSW8", cache_dir=tmp_path)
    assert len(built) == 4


@pytest.mark.parametrize("damage", ["rubbish", "cut", "flipped", "unsaid"])
def test_a_damaged_index_is_built_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    memory, queries = make_memory(make_entries(unit(200, 16), 50), 50), unit(30, 16, seed=1)
    first = FaissSearch(memory, "HNSW8", cache_dir=tmp_path).search(queries, 5)
    (path,) = index_files(tmp_path)
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "rubbish": b"rubbish",
            "cut": content[:middle],
            "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "unsaid": content,
        }[damage]
    )
    if damage == "unsaid":
        path.with_suffix(".json").write_text("{}")
    again = FaissSearch(memory, "HNSW8", cache_dir=tmp_path).search(queries, 5)
    assert "is damaged; built anew" in caplog.text
    assert torch.equal(first.category_ids, again.category_ids)
    assert path.read_bytes() == content


def test_an_index_that_cannot_be_kept_is_built_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    memory = make_memory(make_entries(unit(200, 16), 50), 50)
    assert FaissSearch(memory, "HNSW8", cache_dir=tmp_path / "file" / "x").search(unit(3, 16), 5).depth == 5
    assert "cannot be kept in" in caplog.text


def test_faiss_needs_a_category_memory() -> None:
    class Recipe:
        def prepare(self, encoder: object, names: object) -> FakeMemory:
            return FakeMemory(vectors=unit(3, 8))

    with pytest.raises(ConfigError, match="needs a source of a CategoryMemory, such as TextMemory; got .*FakeMemory"):
        FaissMemory(Recipe()).prepare(FakeEncoder(), ["a", "b", "c"])


def test_bad_index_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="ef_search must be at least 1"):
        IndexSpec(ef_search=0)
    with pytest.raises(ConfigError, match="survivors must be at least 1 or None"):
        IndexSpec(survivors=0)
    with pytest.raises(ConfigError, match="cannot be trained on 4 vectors"):
        make_search(make_entries(unit(4, 8), 4), 4, "IVF64,Flat")


def test_faiss_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(HostError, match="FaissMemory needs FAISS: pip install faiss-cpu"):
        make_search(make_entries(unit(4, 8), 4), 4, "HNSW8")
