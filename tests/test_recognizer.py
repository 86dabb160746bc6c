"""The recogniser: batching, skipping and ranking change nothing they should not change."""

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from rar_mmdet import recognizer as recognizer_module
from rar_mmdet.emission import TopPairs
from rar_mmdet.errors import ConfigError, InvalidBoxError, VocabularyError
from rar_mmdet.fusion import LogLikFusion, LogPool, PermuteFusion
from rar_mmdet.memory import TextMemory
from rar_mmdet.rankers import Ranker
from rar_mmdet.recognizer import RegionRecognizer, _warn_without_masks
from rar_mmdet.regions import AreaScale, BlurBackground, BlurOutsideMask, GreyBackground, RegionCropper
from rar_mmdet.structures import ImageRegions, Ranking, RegionCrops
from rar_mmdet.testing import FakeEncoder, FakeMemory, FakeRanker, make_boxes, make_image


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RAR_MMDET_CACHE", str(tmp_path / "cache"))


NAMES = [f"thing {i}" for i in range(40)]


class ReversingRanker(Ranker):
    """Says the shortlist is upside down."""

    crop_size = 24

    def __init__(self):
        self.crop_shapes = []

    def rank(self, crops, shortlist, category_names):
        self.crop_shapes.append(tuple(crops.shape))
        order = torch.arange(shortlist.depth - 1, -1, -1).repeat(len(shortlist), 1)
        return Ranking(order, None, torch.zeros(len(shortlist), dtype=torch.int64))

    def report(self):
        return {"calls": len(self.crop_shapes)}


def make_recognizer(**changes):
    encoder = FakeEncoder()
    settings = {
        "cropper": RegionCropper(size=32),
        "encoder": encoder,
        "memory": FakeMemory(vectors=encoder.encode_texts(NAMES)),
        "category_names": NAMES,
        "emission": TopPairs(),
    }
    return RegionRecognizer(**{**settings, **changes})


def assert_same(a, b):
    assert torch.equal(a.category_ids, b.category_ids)
    assert torch.equal(a.region_ids, b.region_ids)
    torch.testing.assert_close(a.scores, b.scores)


def test_scores_are_the_full_softmax_of_the_shortlist():
    recognizer, image, boxes = make_recognizer(), make_image(), make_boxes(3)
    result = recognizer(image, boxes)
    assert len(result.scores) == 3 * 40
    for region in range(3):
        torch.testing.assert_close(result.scores[result.region_ids == region].sum(), torch.tensor(1.0))
    assert (result.scores.diff() <= 0).all()
    best = [NAMES[i] for i in result.shortlist.category_ids[:, 0].tolist()]
    assert [name for name, _ in result.top()] == best == result.best_names


def test_batch_equals_one_at_a_time_whatever_the_region_batch():
    images = [make_image(seed=1), make_image(50, 70, seed=2), make_image(seed=3)]
    boxes = [make_boxes(4, seed=1), torch.zeros(0, 4), make_boxes(7, seed=3)]
    single = [make_recognizer()(image, b) for image, b in zip(images, boxes, strict=True)]
    for region_batch in (1, 3, 100):
        recognizer = make_recognizer()
        recognizer.region_batch = region_batch
        together = recognizer.recognize([ImageRegions(i, b) for i, b in zip(images, boxes, strict=True)])
        for a, b in zip(single, together, strict=True):
            assert_same(a, b)
    assert len(single[1].scores) == 0


def test_crops_made_ahead_give_the_same():
    image, boxes, cropper = make_image(), make_boxes(5), RegionCropper(size=32)
    ready = RegionCrops(cropper.crop(image, boxes), cropper.with_size(24).crop(image, boxes))
    recognizer = make_recognizer(ranker=ReversingRanker())
    a, b = recognizer(image, boxes), recognizer.recognize([ImageRegions(None, boxes, crops=ready)])[0]
    assert_same(a, b)


def test_what_encoder_and_ranker_both_look_at_is_cut_once(monkeypatch):
    cut, crop = [], RegionCropper.crop
    monkeypatch.setattr(RegionCropper, "crop", lambda self, *args, **kw: cut.append(self) or crop(self, *args, **kw))
    batch = [ImageRegions(make_image(seed=seed), make_boxes(4, seed=seed)) for seed in (1, 2)]
    found = {}
    for name, side, region_batch in (("once", 32, 8), ("many regions", 32, 7), ("other crops", 24, 8)):
        cut.clear()
        recognizer = make_recognizer(ranker=FakeRanker(crop_size=side))
        recognizer.region_batch = region_batch
        found[name] = recognizer.recognize(batch), len(cut)
    assert [calls for _, calls in found.values()] == [2, 4, 4]
    for a, b in zip(found["once"][0], found["many regions"][0], strict=True):
        assert torch.equal(a.fused, b.fused)
    assert batch[0].crops is None


def made_with(cropper, image, boxes, ranker_cropper=None):
    ranker = ranker_cropper and ranker_cropper.crop(image, boxes)
    return RegionCrops(cropper.crop(image, boxes), ranker, cropper, ranker_cropper)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"size": 24}, id="size"),
        pytest.param({"window": "pad", "fill": "edge"}, id="two"),
        pytest.param({"scale": AreaScale(large=1.2)}, id="number-of-a-part"),
        pytest.param({"background": GreyBackground()}, id="part"),
    ],
)
def test_crops_made_ahead_with_other_settings_are_refused(changes):
    image, boxes, settings = (
        make_image(),
        make_boxes(3),
        {"size": 32, "scale": AreaScale(), "background": BlurBackground(3)},
    )
    recognizer = make_recognizer(cropper=RegionCropper(**settings))
    same = RegionCropper(size=32, scale=AreaScale(), background=BlurBackground(3))
    found = recognizer.recognize([ImageRegions(None, boxes, crops=made_with(same, image, boxes))])[0]
    assert_same(found, recognizer(image, boxes))
    other = made_with(RegionCropper(**{**settings, **changes}), image, boxes)
    with pytest.raises(ConfigError, match="another cropper than .* is not .*the same cropper=dict"):
        recognizer.recognize([ImageRegions(None, boxes, crops=other)])


def test_ranker_crops_made_ahead_are_compared_with_the_rankers_cropper():
    image, boxes, cropper = make_image(), make_boxes(3), RegionCropper(size=32)
    ready = made_with(cropper, image, boxes, cropper.with_size(28))
    with pytest.raises(ConfigError, match="another ranker_cropper than .*size=28.* is not .*size=24"):
        make_recognizer(ranker=ReversingRanker()).recognize([ImageRegions(None, boxes, crops=ready)])
    assert_same(
        make_recognizer().recognize([ImageRegions(None, boxes, crops=ready)])[0], make_recognizer()(image, boxes)
    )


def upper_halves(boxes):
    masks = torch.zeros(len(boxes), 60, 80, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1 : (y1 + y2) // 2, x1:x2] = True
    return masks


@pytest.mark.parametrize("region_batch", [2, 100])
def test_masks_go_with_their_boxes(region_batch):
    image, boxes = make_image(), make_boxes(5)
    masks, bad = upper_halves(boxes), torch.tensor([[5.0, 5.0, 5.0, 9.0]])
    cropper = RegionCropper(size=32, background=BlurOutsideMask(3))
    recognizer = make_recognizer(cropper=cropper, ranker=ReversingRanker(), on_bad_box="skip")
    recognizer.region_batch = region_batch
    ready = RegionCrops(cropper.crop(image, boxes, masks), cropper.with_size(24).crop(image, boxes, masks))
    expected = recognizer.recognize([ImageRegions(None, boxes, crops=ready)])[0]
    with_a_bad_box = torch.cat([masks[:2], masks[:1], masks[2:]]).numpy()
    found = recognizer(image, torch.cat([boxes[:2], bad, boxes[2:]]), masks=with_a_bad_box)
    assert_same(found, expected)
    with pytest.raises(InvalidBoxError, match="5 boxes but 4 masks"):
        recognizer(image, boxes, masks=masks[:4])


def test_a_background_for_masks_without_masks_is_warned_of_once(caplog):
    image, boxes = make_image(), make_boxes(3)
    recognizer = make_recognizer(cropper=RegionCropper(size=32, background=BlurOutsideMask(3)))
    _warn_without_masks.cache_clear()
    with caplog.at_level(logging.WARNING):
        recognizer(image, boxes, masks=upper_halves(boxes))
        recognizer(image, [])
        assert not caplog.records
        found = recognizer(image, boxes)
        recognizer(image, boxes)
    assert [r.getMessage().split(" and ")[0] for r in caplog.records] == ["BlurOutsideMask got no masks"]
    assert_same(found, make_recognizer(cropper=RegionCropper(size=32, background=BlurBackground(3)))(image, boxes))


def test_identity_order_permuted_equals_retrieval():
    class AgreeingRanker(ReversingRanker):
        def rank(self, crops, shortlist, category_names):
            ranking = Ranking.identity(len(shortlist), shortlist.depth)
            return Ranking(ranking.order, None, torch.zeros_like(ranking.status))

    image, boxes = make_image(), make_boxes(5)
    plain = make_recognizer()(image, boxes)
    agreed = make_recognizer(ranker=AgreeingRanker(), fusion=PermuteFusion())(image, boxes)
    assert torch.equal(plain.scores, agreed.scores)
    assert_same(plain, agreed)


def test_a_ranker_moves_mass_within_its_candidates_only():
    image, boxes = make_image(), make_boxes(5)
    plain = make_recognizer()(image, boxes)
    ranked = make_recognizer(ranker=ReversingRanker(), fusion=LogLikFusion())(image, boxes)
    assert torch.equal(plain.shortlist.category_ids, ranked.shortlist.category_ids)
    assert torch.equal(ranked.ranked_ids, plain.shortlist.category_ids[:, :5].flip(1))
    torch.testing.assert_close(plain.scores.sum(), ranked.scores.sum())
    assert not torch.equal(plain.scores, ranked.scores)


def test_only_regions_that_can_matter_are_asked():
    ranker = ReversingRanker()
    recognizer = make_recognizer(ranker=ranker, emission=TopPairs(max_per_image=1, box_score_weight=0.5))
    recognizer(make_image(), make_boxes(4), box_scores=[0.9, 1e-6, 1e-6, 1e-6])
    assert ranker.crop_shapes == [(1, 3, 24, 24)]
    assert recognizer.report() == {"images": 1, "regions": 4, "not asked about": 3, "ranker": {"calls": 1}}


@pytest.mark.parametrize(
    "box",
    [
        pytest.param([5.0, 5.0, 5.0, 9.0], id="empty"),
        pytest.param([9.0, 5.0, 5.0, 9.0], id="inverted"),
        pytest.param([float("nan"), 5.0, 9.0, 9.0], id="nan"),
        pytest.param([float("inf"), 5.0, 9.0, 9.0], id="inf"),
        pytest.param([200.0, 200.0, 220.0, 220.0], id="outside"),
    ],
)
def test_bad_boxes_are_named_or_skipped_and_counted(box):
    image, boxes = make_image(), torch.cat([make_boxes(2), torch.tensor([box])])
    with pytest.raises(InvalidBoxError, match=r"image 0 of the batch \(80x60 px\): 1 of 3 boxes.*box 2 = "):
        make_recognizer()(image, boxes)
    recognizer = make_recognizer(on_bad_box="skip")
    assert_same(recognizer(image, boxes), make_recognizer()(image, boxes[:2]))
    assert sum(n for key, n in recognizer.report().items() if key.startswith("skipped box")) == 1


def test_one_pixel_wide_and_half_outside_boxes_are_fine():
    result = make_recognizer()(make_image(), [[10, 10, 11, 30], [-20, -20, 10, 10], [0, 0, 80, 60]])
    assert len(result.boxes_xyxy) == 3
    assert result.scores.isfinite().all()


def test_no_boxes_no_detections():
    result = make_recognizer(ranker=ReversingRanker())(make_image(), [])
    assert len(result.scores) == len(result.boxes_xyxy) == len(result.ranking) == 0


def test_scores_or_crops_of_another_number_are_refused():
    with pytest.raises(InvalidBoxError, match="2 boxes but 1 box_scores"):
        make_recognizer()(make_image(), make_boxes(2), [0.5])
    crops = RegionCrops(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(InvalidBoxError, match="2 boxes but 1 crops"):
        make_recognizer().recognize([ImageRegions(make_image(), make_boxes(2), crops=crops)])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        pytest.param({"category_names": []}, VocabularyError, "category_names is empty", id="no-names"),
        pytest.param({"on_bad_box": "drop"}, ConfigError, "'raise' or 'skip', got 'drop'", id="on-bad-box"),
        pytest.param({"num_candidates": 0}, ConfigError, "num_candidates must be at least 1, got 0", id="k-0"),
    ],
)
def test_settings_out_of_range_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        make_recognizer(**changes)


def test_an_outer_autocast_changes_nothing():
    image, boxes = make_image(), make_boxes(8)
    recognizer = make_recognizer(ranker=FakeRanker())
    plain = recognizer(image, boxes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = recognizer(image, boxes)
    assert torch.equal(plain.fused, cast.fused)
    assert torch.equal(plain.shortlist.category_ids, cast.shortlist.category_ids)


def test_eight_threads_get_what_one_gets():
    images = [make_image(seed=i) for i in range(8)]
    expected = [make_recognizer(ranker=FakeRanker())(image, make_boxes(5)) for image in images]
    shared = make_recognizer(ranker=FakeRanker())
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: shared(images[i % 8], make_boxes(5)), range(32)))
    for i, recognition in enumerate(found):
        assert torch.equal(recognition.fused, expected[i % 8].fused)
    assert shared.counts == {"images": 32, "regions": 160}


def test_a_path_is_a_vocabulary_and_a_photo(tmp_path):
    (tmp_path / "words.txt").write_text("\n".join(NAMES))
    Image.fromarray(make_image()).save(tmp_path / "a.png")
    recognizer = make_recognizer(category_names=str(tmp_path / "words.txt"))
    assert list(recognizer.category_names) == NAMES
    assert_same(recognizer(tmp_path / "a.png", make_boxes(3)), make_recognizer()(make_image(), make_boxes(3)))
    with pytest.raises(InvalidBoxError, match=r"\(.*a\.png, 80x60 px\): 1 of 1 boxes cannot"):
        recognizer(tmp_path / "a.png", [[5, 5, 5, 9]])


def test_other_words_share_encoder_and_ranker():
    encoder = FakeEncoder()
    recognizer = make_recognizer(encoder=encoder, memory=TextMemory(cache_dir=None), ranker=FakeRanker())
    other = recognizer.with_vocabulary(["a", "b", "c"])
    assert other.encoder is recognizer.encoder
    assert other.ranker is recognizer.ranker
    fresh = make_recognizer(memory=TextMemory(cache_dir=None), category_names=["a", "b", "c"], ranker=FakeRanker())
    assert torch.equal(other(make_image(), make_boxes(3)).fused, fresh(make_image(), make_boxes(3)).fused)
    assert list(recognizer.category_names) == NAMES


def test_boxes_that_look_like_another_format_are_warned_of_once(caplog):
    boxes = [[10 + i, 5, 70, 50 + i] for i in range(10)]  # x, y, width, height, of which most leave 80 x 60 px
    recognizer = make_recognizer(on_bad_box="skip")
    recognizer_module._SAID.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            recognizer(make_image(), [[x1, y1, x1 + x2, y1 + y2] for x1, y1, x2, y2 in boxes])
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["image 0"]
    assert "leave their image" in caplog.text


def test_a_cropper_without_a_size_takes_the_encoders():
    unsized = make_recognizer(encoder=FakeEncoder(image_size=48), cropper=RegionCropper(size=48))
    assert unsized.cropper.size == 48
    with pytest.raises(ConfigError, match="cropper.size=32, but the encoder takes 48 px.*Leave `size` out"):
        make_recognizer(encoder=FakeEncoder(image_size=48))(make_image(), make_boxes(2))


CONFIG = """
model = dict(type="Whatever", roi_head=dict(recognizer=dict(
    vocabulary=["cat", "dog", "bird"], cropper=dict(size=32), encoder=dict(type="rar_mmdet.testing.FakeEncoder"),
    memory=dict(type="TextMemory"), num_candidates=2)))
"""


def test_from_a_config_file(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(CONFIG)
    recognizer = RegionRecognizer.from_config(file)
    assert recognizer.category_names == ("cat", "dog", "bird")
    assert len(recognizer(make_image(), make_boxes(3)).top()) == 3
    assert RegionRecognizer.from_config(str(file), vocabulary=["x", "y"]).category_names == ("x", "y")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param("nowhere.py", "config nowhere.py does not exist", id="missing"),
        pytest.param({"model": {"type": "X"}}, "expected one `recognizer` .* found 0", id="none"),
        pytest.param({"a": {"recognizer": {}}, "b": {"recognizer": {}}}, "found 2", id="two"),
        pytest.param({"encoder": {}, "cropper": {}}, "needs the key 'vocabulary'", id="no-names"),
    ],
)
def test_a_config_without_one_recognizer_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        RegionRecognizer.from_config(config)


class TestDetectorFusion:
    """A detector's own class scores join before the ranker is asked."""

    def test_the_shortlist_is_that_of_the_pool(self):
        image, boxes = make_image(), make_boxes(6)
        own = torch.rand(6, len(NAMES), generator=torch.Generator().manual_seed(1))
        own[:, 20:] = torch.nan
        plain = make_recognizer()(image, boxes)
        pool = LogPool(weight=0.5, unknown=0.3)
        joined = make_recognizer(detector_fusion=pool)(image, boxes, class_scores=own)
        expected = pool(plain.shortlist, own.gather(1, plain.shortlist.category_ids))
        assert torch.equal(joined.shortlist.category_ids, expected.category_ids)
        assert torch.equal(joined.shortlist.probs, expected.probs)

    def test_its_names_become_candidates_of_the_ranker(self):
        image, boxes = make_image(), make_boxes(4)
        last = make_recognizer()(image, boxes).shortlist.category_ids[:, -1]
        own = torch.zeros(4, len(NAMES)).scatter(1, last[:, None], 1.0)
        recognizer = make_recognizer(detector_fusion=LogPool(weight=0.999), ranker=FakeRanker(), num_candidates=3)
        found = recognizer.with_vocabulary(NAMES)(image, boxes, class_scores=own)
        assert torch.equal(found.shortlist.category_ids[:, 0], last)
        assert (found.ranked_ids == last[:, None]).any(1).all()

    def test_background_names_are_unknown_to_the_detector(self):
        image, boxes = make_image(), make_boxes(4)
        settings = {"memory": TextMemory(cache_dir=None), "background": ["sky", "grass"], "ranker": FakeRanker()}
        own = torch.full((4, len(NAMES)), torch.nan)
        plain = make_recognizer(**settings)(image, boxes)
        joined = make_recognizer(detector_fusion=LogPool(weight=0.0001), **settings)(image, boxes, class_scores=own)
        torch.testing.assert_close(joined.shortlist.probs, plain.shortlist.probs, atol=1e-3, rtol=0)

    def test_batches_and_images_without_boxes(self):
        own = torch.rand(3, len(NAMES))
        recognizer = make_recognizer(detector_fusion=LogPool())
        nothing = ImageRegions(make_image(), torch.zeros(0, 4))
        some = ImageRegions(make_image(seed=1), make_boxes(3), class_scores=own)
        first, second = recognizer.recognize([nothing, some])
        assert len(first) == 0
        assert_same(second, recognizer.recognize([some])[0])
        assert torch.equal(some[torch.tensor([2])].class_scores, own[2:])

    def test_scores_that_are_absent_or_do_not_fit(self):
        recognizer = make_recognizer(detector_fusion=LogPool())
        with pytest.raises(ConfigError, match="its 3 regions have no class_scores"):
            recognizer(make_image(), make_boxes(3))
        with pytest.raises(ConfigError, match=r"class_scores \(3, 2\) for 40 names"):
            recognizer(make_image(), make_boxes(3), class_scores=torch.zeros(3, 2))
        with pytest.raises(InvalidBoxError, match="3 boxes but 2 class_scores"):
            recognizer(make_image(), make_boxes(3), class_scores=torch.zeros(2, 40))
