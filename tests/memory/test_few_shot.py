"""Few-shot classifiers against the authors' own numbers, and what must hold for any vectors."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn.functional import normalize

from rar_mmdet.errors import FewShotError
from rar_mmdet.memory import few_shot
from rar_mmdet.memory.few_shot import (
    GaussianClassifier,
    fit_gda,
    gda_logits,
    nearest_labels,
    tip_keys,
    tip_logits,
)

GOLDEN = Path(__file__).parents[1] / "data" / "fewshot_a"
CASES = [f"s{shots}_v{views}" for shots in (1, 2, 4, 16) for views in (1, 3)] + ["uneven_v1"]
FACTORS = [(1, 1), (1.17, 5.5), (3, 0.1), (0, 2), (10, 20)]
ALPHAS = [1e-4, 1e-3, 1e-2, 0.1, 1, 10, 100]
DTYPES = {"f32": torch.float32, "f64": torch.float64}


class World:
    """One case of the reference values in one precision."""

    def __init__(self, case, precision):
        inputs, self.outputs = (load_file(GOLDEN / f"{name}.safetensors") for name in ("inputs", "outputs"))
        self.dtype, self.case = DTYPES[precision], case
        self.suffix = "_f64" if precision == "f64" else ""
        name, views = case.split("_v")
        self.queries, self.text = inputs["queries"].to(self.dtype), inputs["text_weights"].to(self.dtype)
        self.views = inputs[f"features_{name}"][: int(views)].to(self.dtype)
        self.labels = inputs[f"labels_{name}"]

    def expect(self, actual, name):
        expected = self.outputs[f"{self.case}.{name}{self.suffix}"]
        assert actual.dtype == self.dtype
        bound = 1e-10 if self.dtype == torch.float64 else 1e-5
        assert (actual - expected).abs().max() <= bound * expected.abs().max()

    @property
    def samples(self):
        """Every view as a sample of its own."""
        return normalize(self.views, dim=2).flatten(0, 1), self.labels.repeat(len(self.views))


@pytest.fixture(params=[(case, precision) for case in CASES for precision in DTYPES], ids="-".join)
def world(request):
    return World(*request.param)


def test_tip_is_the_authors(world):
    keys = tip_keys(world.views)
    world.expect(keys, "tip_keys")
    for j, (alpha, beta) in enumerate(FACTORS):
        world.expect(tip_logits(world.queries, keys, world.labels, world.text, alpha, beta), f"tip_logits_{j}")


def test_gda_is_the_authors(world):
    if world.case == "s1_v1":
        pytest.skip("the authors' code falls back to text silently; see test_one_exemplar_is_the_nearest_mean")
    gda = fit_gda(*world.samples, 6)
    assert not gda.is_nearest_mean
    world.expect(gda.means, "gda_means")
    world.expect(gda.precision, "gda_precision")
    world.expect(gda.weight, "gda_W")
    world.expect(gda.bias, "gda_b")
    logits = torch.stack([gda_logits(world.queries, world.text, gda, alpha) for alpha in ALPHAS])
    world.expect(logits, "gda_logits")


@pytest.mark.parametrize("case", [case for case in CASES if case.endswith("_v1")])
def test_nearest_labels_are_the_released_ones_up_to_where_faiss_is_exact(case):
    world = World(case, "f32")
    exemplars = normalize(world.views[0], dim=1)
    expected = world.outputs[f"{case}.nn_labels"]
    assert torch.equal(nearest_labels(world.queries, exemplars, world.labels, 20), expected)
    assert torch.equal(nearest_labels(world.queries, exemplars, world.labels, 1), expected[:, :1])


# --- What must hold


def draw(num_queries=9, shots=4, classes=5, channels=16, views=1, dtype=torch.float64, seed=0):
    """Queries, views, labels in random order, text."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, channels, generator=generator, dtype=torch.float64)
    labels = torch.arange(classes).repeat_interleave(shots)[torch.randperm(classes * shots, generator=generator)]
    noise = torch.randn(views, len(labels), channels, generator=generator, dtype=torch.float64)
    queries = normalize(torch.randn(num_queries, channels, generator=generator, dtype=torch.float64), dim=1)
    text = normalize(centres + torch.randn(classes, channels, generator=generator, dtype=torch.float64), dim=1).T
    return queries.to(dtype), (centres[labels] + noise).to(dtype), labels, text.to(dtype)


def dense_tip(queries, keys, labels, text, alpha, beta):
    """The formula, written out."""
    close = torch.exp(-beta * (1 - queries @ keys.T))
    return 100 * queries @ text + alpha * close @ torch.nn.functional.one_hot(labels, text.shape[1]).to(close)


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=9),
    alpha=st.floats(0, 50),
    beta=st.floats(0, 50),
    seed=st.integers(0, 99),
)
def test_tip_is_its_formula_for_any_numbers_of_exemplars(counts, alpha, beta, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    keys, queries = (
        normalize(torch.randn(rows, 8, generator=generator, dtype=torch.float64), dim=1) for rows in (len(labels), 7)
    )
    text = torch.randn(8, len(counts), generator=generator, dtype=torch.float64)
    actual = tip_logits(queries, keys, labels, text, alpha, beta)
    torch.testing.assert_close(actual, dense_tip(queries, keys, labels, text, alpha, beta), rtol=1e-10, atol=1e-10)


def test_alpha_zero_is_zero_shot_to_the_bit():
    queries, views, labels, text = draw(dtype=torch.float32)
    zero_shot = 100 * (queries @ text)
    assert torch.equal(tip_logits(queries, tip_keys(views), labels, text, 0, 5.5), zero_shot)
    gda = fit_gda(normalize(views[0], dim=1), labels, 5)
    assert torch.equal(gda_logits(queries, text, gda, 0), zero_shot)


def test_blocks_change_nothing(monkeypatch):
    queries, views, labels, text = draw(num_queries=50)
    keys = tip_keys(views)
    whole = tip_logits(queries, keys, labels, text, 2, 5), nearest_labels(queries, keys, labels, 7)
    monkeypatch.setattr(few_shot, "BLOCK_BYTES", 1)
    monkeypatch.setattr(few_shot, "ROWS_AT_ONCE", 3)
    torch.testing.assert_close(tip_logits(queries, keys, labels, text, 2, 5), whole[0])
    assert torch.equal(nearest_labels(queries, keys, labels, 7), whole[1])
    by_threes = fit_gda(keys, labels, 5)
    monkeypatch.undo()
    torch.testing.assert_close(by_threes.weight, fit_gda(keys, labels, 5).weight)


def all_scores(queries, views, labels, text):
    keys = tip_keys(views)
    samples = normalize(views, dim=2).flatten(0, 1)
    gda = fit_gda(samples, labels.repeat(len(views)), text.shape[1])
    return tip_logits(queries, keys, labels, text, 1.17, 5.5), gda_logits(queries, text, gda, 0.1)


def test_order_of_exemplars_does_not_matter():
    queries, views, labels, text = draw(views=2)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))
    for actual, expected in zip(
        all_scores(queries, views[:, order], labels[order], text), all_scores(queries, views, labels, text), strict=True
    ):
        torch.testing.assert_close(actual, expected)
    keys = tip_keys(views)
    assert torch.equal(
        nearest_labels(queries, keys[order], labels[order], 20), nearest_labels(queries, keys, labels, 20)
    )


def test_classes_may_stand_in_any_order():
    queries, views, labels, text = draw(views=2)
    order = torch.tensor([3, 0, 4, 1, 2])  # new class j is old class order[j]
    renamed = order.argsort()[labels]
    for actual, expected in zip(
        all_scores(queries, views, renamed, text[:, order]), all_scores(queries, views, labels, text), strict=True
    ):
        torch.testing.assert_close(actual, expected[:, order])


def test_one_exemplar_is_the_nearest_mean():
    """The only direction a covariance of nothing allows; the limit of ever smaller equal spread of all channels."""
    queries, views, labels, text = draw(shots=1, num_queries=200)
    exemplars = normalize(views[0], dim=1)
    gda = fit_gda(exemplars, labels, 5)
    assert gda.is_nearest_mean
    alone = gda_logits(queries, torch.zeros_like(text), gda, 1)
    nearest = torch.cdist(queries, gda.means).argmin(dim=1)
    assert torch.equal(alone.argmax(dim=1), nearest)
    assert torch.equal(alone.argmax(dim=1), nearest_labels(queries, exemplars, labels, 1)[:, 0])
    # The limit: spread of one size in every direction, getting smaller.
    around = torch.cat([torch.eye(16), -torch.eye(16)]).double()
    spread = (exemplars[:, None] + 1e-3 * around).flatten(0, 1)
    limit = fit_gda(spread, labels.repeat_interleave(len(around)), 5)
    assert not limit.is_nearest_mean
    scores = gda_logits(queries, torch.zeros_like(text), limit, 1)
    assert torch.equal(scores.argmax(dim=1), nearest)
    torch.testing.assert_close(normalize(limit.weight, dim=0), normalize(gda.weight, dim=0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("copies", [2, 3, 10])
@pytest.mark.parametrize("noise", [0, 1e-7], ids=["equal", "rounded"])
def test_equal_views_are_one_view(dtype, copies, noise):
    _, views, labels, _ = draw(shots=1, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    single = normalize(views[0], dim=1).to(dtype)
    several = single.repeat(copies, 1) + noise * torch.randn(copies * 5, 16, generator=generator).to(dtype)
    gda, one = fit_gda(several, labels.repeat(copies), 5), fit_gda(single, labels, 5)
    assert gda.is_nearest_mean
    assert gda.weight.abs().max() <= 1.001
    bound = {"rtol": 1e-5, "atol": 1e-6} if dtype != torch.float16 else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(gda.weight, one.weight, **bound)
    torch.testing.assert_close(gda.bias, one.bias, **bound)


def test_one_class_with_spread_is_enough():
    _, views, labels, _ = draw(shots=3)
    samples = normalize(views[0], dim=1)
    samples[labels != 2] = samples[labels != 2][0]
    assert not fit_gda(samples, labels, 5).is_nearest_mean


def test_a_class_without_exemplars():
    queries, views, labels, text = draw()
    kept = labels != 4  # the last: one_hot without its number of classes loses it
    keys = tip_keys(views)[kept]
    with pytest.raises(FewShotError, match=r"no exemplar of class 4 \(of 5\); give each class at least one"):
        fit_gda(keys, labels[kept], 5)
    logits = tip_logits(queries, keys, labels[kept], text, 3, 5)
    assert logits.shape == (9, 5)
    torch.testing.assert_close(logits[:, 4], 100 * queries @ text[:, 4])
    assert (nearest_labels(queries, keys, labels[kept], 99) != 4).all()


def test_every_class_is_as_probable_however_many_exemplars_it_has():
    _, views, labels, _ = draw()
    gda = fit_gda(normalize(views[0], dim=1), labels, 5)
    half = (gda.means * (gda.means @ gda.precision)).sum(dim=1) / 2
    torch.testing.assert_close(gda.bias, -math.log(5) - half)


def test_views_are_averaged_before_they_are_normalised():
    views = torch.tensor([[[3.0, 0.0]], [[0.0, 1.0]]])
    torch.testing.assert_close(tip_keys(views), normalize(torch.tensor([[3.0, 1.0]])))


def test_nearest_labels_against_sorting_with_ties_and_a_list_that_ends():
    grid = torch.randint(-1, 2, (40, 3), generator=torch.Generator().manual_seed(0)).double()
    queries, labels = grid[:20], torch.arange(40) % 7
    expected = labels[(queries @ grid.T).sort(dim=1, descending=True, stable=True).indices]
    for depth in (1, 2, 7, 39, 40):
        assert torch.equal(nearest_labels(queries, grid, labels, depth), expected[:, :depth])
    assert torch.equal(nearest_labels(queries, grid, labels, 100), expected)


def test_no_queries_and_half_precision():
    queries, views, labels, text = draw(dtype=torch.float32)
    keys, none = tip_keys(views), queries[:0]
    gda = fit_gda(keys, labels, 5)
    assert tip_logits(none, keys, labels, text, 1, 1).shape == (0, 5)
    assert gda_logits(none, text, gda, 1).shape == (0, 5)
    assert nearest_labels(none, keys, labels, 3).shape == (0, 3)
    half = tip_logits(queries.half(), keys.half(), labels, text.half(), 1, 5)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), tip_logits(queries, keys, labels, text, 1, 5), rtol=1e-2, atol=0.2)
    assert tip_keys(views.bfloat16()).dtype == torch.bfloat16
    assert tip_logits(queries, keys[:0], labels[:0], text, 1, 1).shape == (9, 5)


Q, V, L, T = draw()
K = tip_keys(V)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda: tip_keys(V[0]), r"views must be a \(V, N, D\)", id="views-2d"),
        pytest.param(lambda: tip_keys(torch.stack([V[0], -V[0]])), "exemplar 0: its views are not finite", id="cancel"),
        pytest.param(lambda: tip_logits(Q, K[:, :8], L, T, 1, 1), r"exemplars must be \(N, D\)", id="channels"),
        pytest.param(lambda: tip_logits(Q, K, L[:3], T, 1, 1), r"labels must be \(20,\) whole numbers", id="short"),
        pytest.param(lambda: tip_logits(Q, K, L.float(), T, 1, 1), "whole numbers", id="float-labels"),
        pytest.param(lambda: tip_logits(Q, K, L + 1, T, 1, 1), r"=5 is outside \[0, 5\)", id="label-5"),
        pytest.param(lambda: tip_logits(Q, K, L, T.T, 1, 1), "a column for each class", id="text-rows"),
        pytest.param(lambda: tip_logits(Q, K, L, T, -1, 1), "alpha=-1 must be a finite", id="alpha"),
        pytest.param(lambda: tip_logits(Q, K, L, T, 1, math.nan), "beta=nan must be a finite", id="beta"),
        pytest.param(lambda: tip_logits(Q * math.nan, K, L, T, 1, 1), "query 0 holds a number", id="nan-query"),
        pytest.param(lambda: fit_gda(K * math.inf, L, 5), "exemplar 0 holds a number", id="inf-exemplar"),
        pytest.param(lambda: fit_gda(K, L, 0), "num_classes=0 must be", id="no-class"),
        pytest.param(lambda: fit_gda(K, L, 40), "class 5, 6, 7, 8, 9 and 30 more", id="many-empty"),
        pytest.param(lambda: fit_gda(K[0], L, 5), r"features must be a \(n, D\)", id="one-vector"),
        pytest.param(
            lambda: gda_logits(Q, T[:, :4], fit_gda(K, L, 5), 1), "for 5 classes and 16 channels", id="other-classes"
        ),
        pytest.param(lambda: nearest_labels(Q, K, L, 0), "depth=0 must be", id="depth"),
        pytest.param(lambda: nearest_labels(Q, K[:0], L[:0], 1), "there are no exemplars", id="no-exemplars"),
        pytest.param(lambda: nearest_labels(Q[0], K, L, 1), r"queries must be a \(Q, D\)", id="one-query"),
        pytest.param(
            lambda: GaussianClassifier(torch.zeros(2, 3), torch.eye(3), torch.zeros(2, 3), torch.zeros(2)),
            r"weight must be \(3, 2\)",
            id="classifier",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(FewShotError, match=message):
        call()
