import pytest

from rar_mmdet import fusion
from rar_mmdet.components import build_component, build_recognizer, register
from rar_mmdet.emission import TopPairs
from rar_mmdet.errors import ConfigError
from rar_mmdet.models.testing import FakeRanker, fake_recognizer
from rar_mmdet.regions import AreaScale, RegionCropper

NAMES = ["cat", "dog", "bird", "fish"]


def test_every_exported_fusion_is_a_config_type():
    for name in ("LogLikFusion", "RankFusion", "PermuteFusion"):
        assert isinstance(build_component({"type": name}, "fusion"), getattr(fusion, name))


def test_nested_dicts_are_built():
    cropper = build_component({"type": "RegionCropper", "size": 32, "scale": {"type": "AreaScale"}}, "cropper")
    assert isinstance(cropper, RegionCropper)
    assert cropper.size == 32
    assert isinstance(cropper.scale, AreaScale)


def test_a_class_registered_with_mmdetection_is_found():
    from rar_mmdet.registry import TASK_UTILS

    TASK_UTILS.register_module(name="RankerOfAUser", module=FakeRanker, force=True)
    assert isinstance(build_component({"type": "RankerOfAUser"}, "ranker"), FakeRanker)


def test_a_class_registered_by_its_name():
    class MyEncoder:
        pass

    register(MyEncoder)
    assert isinstance(build_component({"type": "MyEncoder"}, "encoder"), MyEncoder)


def test_a_path_whose_module_lacks_a_package_says_so(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="importing needs_more fails, there is no module 'not_there_at_all'"):
        build_component({"type": "needs_more.Encoder"}, "encoder")


def test_a_class_by_its_path():
    assert isinstance(build_component({"type": "rar_mmdet.models.testing.FakeRanker"}, "ranker"), FakeRanker)


def test_recognizer_from_config():
    recognizer = build_recognizer(fake_recognizer(NAMES, fusion={"type": "RankFusion", "beta": 0.2}))
    assert list(recognizer.category_names) == NAMES
    assert recognizer.fusion == fusion.RankFusion(0.2)
    assert isinstance(recognizer.ranker, FakeRanker)


def test_emission_of_the_config_wins_over_the_models():
    default = TopPairs(max_per_image=7)
    assert build_recognizer(fake_recognizer(NAMES), default_emission=default).emission == default
    config = fake_recognizer(NAMES, emission={"max_per_image": 3})
    assert build_recognizer(config, default_emission=default).emission == TopPairs(max_per_image=3)


def test_the_config_is_not_changed():
    config = fake_recognizer(NAMES)
    before = repr(config)
    build_recognizer(config)
    assert repr(config) == before


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        pytest.param({"croper": {}}, r"model\.recognizer: .*no key 'croper'; did you mean 'cropper'", id="part"),
        pytest.param(
            {"cropper": {"type": "RegionCropper", "sise": 32}},
            r"model\.recognizer\.cropper: RegionCropper has no key 'sise'; did you mean 'size'",
            id="key-of-a-part",
        ),
        pytest.param(
            {"cropper": {"size": 32, "scale": {"type": "AreaScal"}}},
            r"model\.recognizer\.cropper\.scale: there is no 'AreaScal'; did you mean 'AreaScale'",
            id="type-in-a-part",
        ),
        pytest.param({"encoder": {"model": "x"}}, r"model\.recognizer\.encoder needs the key 'type'", id="no-type"),
        pytest.param(
            {"ranker": {"type": "TransformersRanker"}},
            r"model\.recognizer\.ranker: TransformersRanker needs the key 'model'",
            id="missing-key",
        ),
        pytest.param(
            {"fusion": {"type": "RankFusion", "beta": -1}},
            r"model\.recognizer\.fusion: RankFusion refuses its values: .*beta must be >= 0",
            id="bad-value",
        ),
        pytest.param({"num_candidates": 0}, "num_candidates must be at least 1, got 0", id="bad-number"),
        pytest.param({"vocabulary": []}, "holds no names", id="no-names"),
    ],
)
def test_a_wrong_key_is_named_with_its_place(changes, match):
    with pytest.raises((ConfigError, ValueError), match=match):
        build_recognizer(fake_recognizer(NAMES) | changes, "model.recognizer")


def test_a_missing_vocabulary_says_what_to_give():
    config = fake_recognizer(NAMES)
    del config["vocabulary"]
    with pytest.raises(ConfigError, match="needs the key 'vocabulary': a names file"):
        build_recognizer(config)


def test_a_recognizer_that_is_no_dict():
    with pytest.raises(ConfigError, match="must be a dict"):
        build_recognizer("clip")
