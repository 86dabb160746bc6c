"""Background names take probability and are never emitted; without them nothing changes."""

import pytest
import torch

from rar_mmdet.background import background_names, show_background
from rar_mmdet.emission import BestPerRegion, TopPairs
from rar_mmdet.errors import ConfigError
from rar_mmdet.fusion import LogLikFusion, NoneOfThese, RankFusion
from rar_mmdet.recognizer import RegionRecognizer
from rar_mmdet.regions import RegionCropper
from rar_mmdet.structures import Ranking, RankStatus, Shortlist
from rar_mmdet.testing import FakeEncoder, FakeMemory, FakeRanker, make_boxes, make_image, make_shortlist

NAMES, OTHERS = [f"thing {i}" for i in range(12)], [f"other {i}" for i in range(9)]


class Recipe:
    """A memory of whatever names it is asked for."""

    def __init__(self):
        self.asked = []

    def prepare(self, encoder, category_names):
        self.asked.append(tuple(category_names))
        return FakeMemory(vectors=encoder.encode_texts(list(category_names)))


class MassRanker(FakeRanker):
    """Gives each region's candidates a mass by its mean colour."""

    def rank(self, crops, shortlist, category_names):
        assert len(category_names) > int(shortlist.category_ids.max())
        assert (shortlist.probs.diff(dim=1) <= 0).all()
        found = super().rank(crops, shortlist, category_names)
        return Ranking(found.order, found.log_probs, found.status, None, None, crops.float().mean((1, 2, 3)) / 255)


def make_recognizer(**changes):
    settings = {
        "cropper": RegionCropper(size=32), "encoder": FakeEncoder(), "memory": Recipe(), "category_names": NAMES,
        "ranker": FakeRanker(), "num_candidates": 4,
    }  # fmt: skip
    return RegionRecognizer(**{**settings, **changes})


def recognise(recognizer, count=7):
    return recognizer(make_image(seed=3), make_boxes(count, seed=3))


def test_names_of_the_vocabulary_are_no_background():
    kept = background_names(
        ["dogs", "Car_(automobile)", "hot-dog", "tree", "tree", "bow_(weapon)"], ["dog", "car", "hot dog", "bow"]
    )
    assert kept == ("tree",)
    assert background_names(None, ["dog"]) == ()
    lvis = background_names("lvis", ["dog", "traffic light", "car"])
    assert len(lvis) == 1203 - 3
    assert {"zebra", "zucchini"} <= set(lvis)
    assert not {"dog", "traffic_light", "car_(automobile)"} & set(lvis)


def test_a_background_of_the_vocabulary_alone_is_refused():
    with pytest.raises(ConfigError, match=r"all of \['dogs'\] are names of the vocabulary; give names of other things"):
        background_names(["dogs"], ["dog"])


def test_more_than_the_ranker_can_tell_apart_is_refused():
    ranker = FakeRanker()
    ranker.max_candidates = 6
    make_recognizer(ranker=ranker)
    with pytest.raises(ConfigError, match="num_candidates=4 and num_background=3, but this ranker can tell at most 6"):
        make_recognizer(ranker=ranker, background=OTHERS)
    with pytest.raises(ConfigError, match="num_background must be at least 1, got 0"):
        make_recognizer(background=OTHERS, num_background=0)


def test_the_split_is_that_of_plain_sorting():
    found = make_shortlist(30, 21, seed=1)
    both = show_background(found, 12, depth=10, num_candidates=4, num_background=3)
    for row, (ids, probs) in enumerate(zip(found.category_ids.tolist(), found.probs.tolist(), strict=True)):
        pairs = list(zip(ids, probs, strict=True))
        known, other = [p for p in pairs if p[0] < 12][:10], [p for p in pairs if p[0] >= 12][:3]
        shown = sorted(known[:4] + other, key=lambda pair: -pair[1])
        assert both.known.category_ids[row].tolist() == [i for i, _ in known]
        assert both.shown.category_ids[row].tolist() == [i for i, _ in shown]
        assert both.joint.category_ids[row].tolist() == [i for i, _ in shown + known[4:]]
    assert torch.equal(both.names_of(both.joint.probs), both.known.probs)


def test_a_ranking_without_its_background_is_the_ranking_of_the_names():
    both = show_background(make_shortlist(20, 21, seed=2), 12, depth=10, num_candidates=4, num_background=3)
    log_probs = torch.log_softmax(torch.randn(20, 7, generator=torch.Generator().manual_seed(0)), 1)
    status = torch.zeros(20, dtype=torch.int64)
    each = torch.arange(-1, 7).expand(20, 8)  # every column that was shown, and none
    shown = Ranking(
        log_probs.argsort(1, descending=True), log_probs, status, presence=torch.full((20,), 0.8), preferred=each
    )
    ranking = both.ranking_of(shown)
    assert (ranking.preferred[:, 0] == -1).all()
    back = torch.where(ranking.preferred < 0, -1, both.place.gather(1, ranking.preferred.clamp_min(0)))
    names = torch.zeros(20, 7, dtype=torch.bool).scatter_(1, both.place, True)
    assert torch.equal(back[:, 1:], torch.where(names, torch.arange(7).expand(20, 7), -1))
    own = log_probs.gather(1, both.place)
    torch.testing.assert_close(ranking.log_probs, torch.log_softmax(own, 1))
    assert torch.equal(ranking.order, own.argsort(1, descending=True))
    torch.testing.assert_close(ranking.presence, 0.8 * own.exp().sum(1))
    without = both.ranking_of(Ranking(shown.order, log_probs, status))
    torch.testing.assert_close(without.presence, own.exp().sum(1))
    silent = both.ranking_of(Ranking(shown.order, log_probs, status + int(RankStatus.FALLBACK)))
    assert silent.presence.isnan().all()


def test_background_takes_probability_and_is_never_emitted():
    memory = Recipe()
    recognizer = make_recognizer(memory=memory, background=[*OTHERS, "Thing 3"], emission=TopPairs())
    found, alone = recognise(recognizer), recognise(make_recognizer(emission=TopPairs()))
    assert memory.asked == [(*NAMES, *OTHERS)]
    assert (found.shortlist.category_ids < len(NAMES)).all()
    assert (found.category_ids < len(NAMES)).all()
    assert found.category_names == tuple(NAMES)
    assert found.shortlist.category_ids.shape == alone.shortlist.category_ids.shape == (7, len(NAMES))
    assert (found.fused.sum(1) < 1 - 1e-3).all()
    torch.testing.assert_close(alone.fused.sum(1), torch.ones(7))
    assert (found.ranking.presence < 1).all()
    torch.testing.assert_close(found.ranking.log_probs.logsumexp(1), torch.zeros(7), atol=1e-5, rtol=0)
    assert recognise(make_recognizer(ranker=None, background=OTHERS)).best_ids.max() < len(NAMES)


def test_other_vocabularies_keep_the_background_that_is_not_theirs():
    other = make_recognizer(background=OTHERS).with_vocabulary([*NAMES, "other 1"])
    assert other.background_names == tuple(name for name in OTHERS if name != "other 1")
    assert len(recognise(other)) == 7


@pytest.mark.parametrize("inner", [LogLikFusion(), RankFusion()], ids=str)
def test_none_of_these_is_the_other_fusion_times_presence(inner):
    shortlist = make_shortlist(6, 8)
    log_probs = torch.log_softmax(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), 1)
    status = torch.tensor([0, 0, 1, 0, int(RankStatus.FALLBACK), int(RankStatus.SKIPPED)])
    presence = torch.tensor([0.5, 1.0, 0.25, torch.nan, 0.1, 0.1])
    ranking = Ranking(log_probs.argsort(1, descending=True), log_probs, status, presence=presence)
    factor = torch.tensor([0.5, 1.0, 0.25, 1.0, 1.0, 1.0])  # nothing said: nothing changed
    for weight in (0.0, 1.0, 2.0):
        fused = NoneOfThese(inner, weight)(shortlist, ranking)
        torch.testing.assert_close(fused, inner(shortlist, ranking) * factor.pow(weight)[:, None])
    unsaid = Ranking(ranking.order, log_probs, status)
    assert torch.equal(NoneOfThese(inner)(shortlist, unsaid), inner(shortlist, unsaid))


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="NoneOfThese.weight must be >= 0, got -1"):
        NoneOfThese(weight=-1)


def test_a_region_without_a_name_is_a_possible_result():
    sure = recognise(make_recognizer(ranker=MassRanker()), 12)
    presence = sure.ranking.presence
    bar = float((sure.best_scores * presence).median())
    recognizer = make_recognizer(
        ranker=MassRanker(), fusion=NoneOfThese(), emission=BestPerRegion(min_score=bar, depth=20)
    )
    found = recognise(recognizer, 12)
    torch.testing.assert_close(found.best_scores, sure.best_scores * presence)
    named = sorted(found.region_ids.tolist())
    assert 0 < len(named) < 12
    assert [name is not None for name in found.names] == [region in named for region in range(12)]
    assert all(found.names[region] == found.best_names[region] for region in named)


def test_every_region_is_asked_where_names_may_lose_their_mass():
    asked = {}
    for name, fusion in (("keeps", LogLikFusion()), ("loses", NoneOfThese())):
        ranker = FakeRanker()
        recognise(make_recognizer(ranker=ranker, fusion=fusion, emission=BestPerRegion(min_score=1.0)), 40)
        asked[name] = ranker.num_asked
    assert asked == {"keeps": 0, "loses": 40}  # no region's names have all of the probability


def test_no_regions():
    found = make_recognizer(background=OTHERS)(make_image(), torch.zeros(0, 4))
    assert (len(found), found.names) == (0, [])
    empty = show_background(Shortlist(torch.zeros(0, 21).long(), torch.zeros(0, 21)), 12, 10, 4, 3)
    assert empty.joint.depth == 4 + 3 + 10 - 4
