"""Names without a list: merging is order-free, finders on miniatures, each way on a hand-worked example, bad input."""

import json
import os
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rar_mmdet.classification import read_folders
from rar_mmdet.classification.dataset import Example
from rar_mmdet.classification.naming import (
    WAYS,
    AttributeFinder,
    Blip2Finder,
    CaptionFinder,
    DiscoveryPhoto,
    FoundNames,
    GuessedFinder,
    Known,
    Merging,
    MllmFinder,
    WordNetFinder,
    draw_discovery,
    merge,
    read_found,
    read_nouns,
    write_found,
)
from rar_mmdet.classification.naming.finders import read_captions, write_captions
from rar_mmdet.classification.naming.scores import CONSTANT, RANDOM, NamesTable, Score, Scorer, predictions, sets_table
from rar_mmdet.classification.naming.settings import NamesSettings
from rar_mmdet.classification.naming.spelling import is_latin, names_in, spelling_key, tidy
from rar_mmdet.classification.naming.views import augmented_views
from rar_mmdet.classification.naming.ways import NearestGuesses, pooled_names
from rar_mmdet.classification.vectors import PhotoVectors
from rar_mmdet.cli import main as rar_mmdet
from rar_mmdet.errors import ConfigError, DatasetError, MissingAssetError
from rar_mmdet.rankers import AskingRanker, Likelihood, Open
from rar_mmdet.rankers.questions import Answer, Question
from rar_mmdet.records import RegionRecord
from rar_mmdet.regions import RegionCropper
from rar_mmdet.structures import Shortlist
from rar_mmdet.testing import FakeEncoder, FakeRanker, make_image

CLASSES = ("grey wolf", "oak", "red fox")
INDEX = (
    "  1 A miniature in the layout of WordNet {version}.  \n"
    "grey_wolf n 1 2 @ ~ 1 0 00000100  \n"
    "gray_wolf n 1 1 @ 1 0 00000100  \n"
    "oak n 2 0 2 1 00000200 00000300  \n"
    "timber_wolf n 1 0 1 0 00000100  \n"
    "wood n 2 0 2 1 00000300 00000200  \n"
)


@pytest.fixture
def dictionary(tmp_path):
    folder = tmp_path / "wordnet" / "dict"
    folder.mkdir(parents=True)
    (folder / "index.noun").write_text(INDEX.replace("{version}", "3.0"))
    return tmp_path / "wordnet"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for label, name in enumerate(CLASSES):
        for part, count in (("train", 5), ("test", 4)):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                noise = np.random.default_rng([label, i, len(part)]).normal(0, 30, (40, 50, 3))
                photo = np.clip(make_image(40, 50, seed=label) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(photo).save(root / part / name / f"{name[0]}{part[0]}{i}.png")
    return root


@pytest.fixture
def dataset(root):
    return read_folders(root)


@pytest.fixture
def photos():
    return PhotoVectors(FakeEncoder(), RegionCropper(window="cover"), None)


class Talker(AskingRanker):
    """Answers by a function of the question's words; counts what it was asked."""

    crop_size = 24

    def __init__(self, say, **more):
        super().__init__(ask=Open(), **more)
        self.say, self.asked = say, 0

    def answer(self, questions):
        for index, question in enumerate(questions):
            self.asked += 1
            yield {index: Answer(reply=self.say(question.words))}

    def identity(self):
        return {"id": "talker"}


# --- Names as they are written


@pytest.mark.parametrize(
    ("guess", "name"),
    [
        ("**Red_Fox.**", "Red Fox"),
        ("2) the red fox", "red fox"),
        ("This is a red fox (Vulpes vulpes).", "red fox"),
        ("The bird in the photo is a Song Sparrow", "Song Sparrow"),
        ("Unknown", ""),
        ("...", ""),
        ("I am sorry but I can not say what this photo shows at all", ""),
    ],
)
def test_a_guess_becomes_a_name(guess, name):
    assert tidy(guess) == name


def test_replies_list_names():
    assert names_in("1. Song Sparrow\n2. House sparrow or tree sparrow; n/a") == [
        "Song Sparrow",
        "House sparrow",
        "tree sparrow",
    ]


def test_scripts():
    assert is_latin("Crème brûlée")
    assert is_latin("Ca sĩ")
    assert not is_latin("лиса")
    assert not is_latin("123")


words = st.sampled_from(["Red Fox", "red fox", "red-fox", "the red foxes", "oak", "Oaks", "grey wolf", "gray wolf"])


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(words, st.integers(1, 3), max_size=8), st.randoms())
def test_merging_is_order_free_and_done_once(counts, random):
    merged = merge(counts)
    items = list(counts.items())
    random.shuffle(items)
    assert merge(dict(items)) == merged
    total = {name: sum(counts[s] for s in spellings) for name, spellings in merged.items()}
    assert set(merge(total)) == set(merged)
    assert sorted(s for spellings in merged.values() for s in spellings) == sorted(counts)
    assert len({spelling_key(name) for name in merged}) == len(merged)


def test_synonyms_are_names_of_one_first_sense(dictionary):
    merging = Merging(read_nouns(dictionary))
    counts = {"gray wolf": 1, "Timber Wolves": 2, "grey wolf": 1, "oak": 1, "wood": 1, "red fox": 1}
    for order in list(permutations(counts))[::97]:
        merged = merge({name: counts[name] for name in order}, merging.key)
        # 'oak' and 'wood' share their senses, but not the first one of each.
        assert sorted(merged) == ["Timber Wolves", "oak", "red fox", "wood"]
        assert merged["Timber Wolves"] == ("Timber Wolves", "gray wolf", "grey wolf")


# --- The photos that names are found on


def test_a_finder_gets_train_photos_without_labels(dataset):
    discovery = draw_discovery(dataset, seed=3)
    assert len(discovery) == 9
    assert {photo.id for photo in discovery.photos} <= {example.id for example in dataset.train}
    assert not {photo.path for photo in discovery.photos} & {example.path for example in dataset.test}
    assert {name for photo in discovery.photos for name in vars(photo)} == {"id", "path", "loader"}
    assert discovery == draw_discovery(dataset, seed=3) != draw_discovery(dataset, seed=4)
    assert [p.id for p in discovery.photos] != sorted(p.id for p in discovery.photos)


def test_the_largest_files_only(dataset, monkeypatch):
    monkeypatch.setattr("rar_mmdet.classification.naming.discovery.LARGEST_POOL", 2)
    for seed in range(5):
        drawn = {photo.id for photo in draw_discovery(dataset, per_class=2, seed=seed, rule="largest").photos}
        for label in range(3):
            own = sorted((e for e in dataset.train if e.label == label), key=lambda e: -os.stat(e.path).st_size)
            assert {e.id for e in own[:2]} <= drawn
            assert not {e.id for e in own[2:]} & drawn


def test_photos_of_a_list(dataset, tmp_path):
    (tmp_path / "list.json").write_text(json.dumps({"07.Red_Fox/001.RT0.png": {}, dataset.train[0].id: {}}))
    listed = draw_discovery(dataset, rule=str(tmp_path / "list.json"))
    assert sorted(photo.id for photo in listed.photos) == sorted([dataset.train[0].id, "train/red fox/rt0.png"])
    (tmp_path / "other.json").write_text(json.dumps(["a.png"]))
    with pytest.raises(DatasetError, match=r"1 of 1 photos are not in the train part .* 'a.png'"):
        draw_discovery(dataset, rule=str(tmp_path / "other.json"))
    (tmp_path / "none.json").write_text("[]")
    with pytest.raises(DatasetError, match="a JSON list of ids of train photos"):
        draw_discovery(dataset, rule=str(tmp_path / "none.json"))
    with pytest.raises(DatasetError, match="expected 'seeded', 'largest'"):
        draw_discovery(dataset, rule="random")


# --- Finders


def test_wordnet_gives_the_nearest_nouns(dictionary, dataset, photos):
    nouns = read_nouns(dictionary)
    assert nouns.names == ("grey wolf", "gray wolf", "oak", "timber wolf", "wood")
    assert nouns.version == "3.0"
    discovery = draw_discovery(dataset)
    found = WordNetFinder(nouns, photos, templates=["a photo of a {}."], guesses=2).find(discovery.photos)
    text = photos.encoder.encode_texts([f"a photo of a {name}." for name in nouns.names])
    for photo in discovery.photos:
        order = (photos([photo])[0] @ text.T).argsort(descending=True)
        assert found[photo.id] == [nouns.names[i] for i in order[:2]]


def test_dictionaries_that_are_none(tmp_path, dictionary):
    file = dictionary / "dict" / "index.noun"
    with pytest.raises(MissingAssetError, match=r"no index.noun in .*wordnet-base"):
        read_nouns(tmp_path)
    for text, match in (
        (INDEX.replace("{version}", "2.1"), r"WordNet 2.1; expected WordNet 3.x"),
        ("oak n 1 0 1 0 00000200\n", "no version in its first lines"),
        (INDEX.replace("{version}", "3.1").replace(" 00000300  \nt", "  \nt"), "has 1 senses, says 2"),
        (INDEX.replace("{version}", "3.1")[:-30], "is the file whole"),
        ("  1 WordNet 3.0  \n", "holds no nouns"),
    ):
        file.write_text(text)
        with pytest.raises(DatasetError, match=match):
            read_nouns(dictionary)


def test_captions_give_their_words(tmp_path, dataset, photos, dictionary):
    texts = ["A red fox in the snow", "two grey wolves of the timber", "an oak"]
    (tmp_path / "captions.txt").write_text("\n".join(texts))
    file = tmp_path / "captions.safetensors"
    assert write_captions(tmp_path / "captions.txt", photos.encoder, file) == 3
    captions = read_captions(file, photos.encoder)
    assert torch.allclose(captions.vectors, photos.encoder.encode_texts(texts), atol=1e-6)
    discovery = draw_discovery(dataset)
    plain = CaptionFinder(captions, photos, templates=["{}"], nearest=3, guesses=9).find(discovery.photos)
    assert set(plain[discovery.photos[0].id]) == {"red", "fox", "snow", "grey", "wolf", "timber", "oak"}
    nouns = CaptionFinder(captions, photos, templates=["{}"], nouns=read_nouns(dictionary), nearest=3, guesses=9)
    assert set(nouns.find(discovery.photos)[discovery.photos[0].id]) == {"grey wolf", "oak"}
    with pytest.raises(DatasetError, match=r"encoded by fake-16-0, the config's encoder is fake-16-1"):
        read_captions(file, FakeEncoder(seed=1))
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DatasetError, match="is no file of captions"):
        read_captions(file, photos.encoder)
    with pytest.raises(MissingAssetError, match="rar-mmdet names captions"):
        read_captions(tmp_path / "none.safetensors", photos.encoder)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DatasetError, match="holds no captions"):
        write_captions(tmp_path / "empty.txt", photos.encoder, file)


def test_a_model_names_photos_several_ways_and_is_asked_once(dataset, tmp_path):
    def say(words):
        return {"a bird?": "a Red Fox", "three": "1. oak\n2. red fox\n3. wolf"}[words]

    finder = MllmFinder(
        Talker(say, cache=tmp_path / "a.sqlite"),
        RegionCropper(window="pad"),
        kind="bird",
        questions=["a {kind}?", "three"],
    )
    photos = draw_discovery(dataset).photos
    found = finder.find(photos[:4])
    assert found[photos[0].id] == ["Red Fox", "oak", "wolf"]  # named by both questions, then by place
    assert finder.talker.asked == 8
    again = MllmFinder(
        Talker(say, cache=tmp_path / "a.sqlite"), RegionCropper(window="pad"), kind="bird", questions=finder.questions
    )
    assert again.find(photos)[photos[0].id] == ["Red Fox", "oak", "wolf"]
    assert again.talker.asked == 2 * (len(photos) - 4)  # a run that was stopped goes on


def test_blip2_replies_are_cut_at_commas(dataset):
    replies = iter(["A fox, in Snow", "fox, Tree", "Red fox", "", " ,", ""])
    finder = Blip2Finder(Talker(lambda words: next(replies)), RegionCropper(window="pad"), guesses=4)
    photos = draw_discovery(dataset).photos[:2]
    found = finder.find(photos)
    assert found == {photos[0].id: ["red fox", "fox", "tree", "a fox"], photos[1].id: ["object"]}


def test_questions_that_are_none():
    with pytest.raises(ConfigError, match="questions must be a list"):
        MllmFinder(Talker(str), RegionCropper(), questions="what?")
    scores = Talker(str)
    scores.ask = Likelihood()
    with pytest.raises(ConfigError, match="asks for scores and gets no texts"):
        scores.replies([Question(torch.zeros(3, 4, 4, dtype=torch.uint8), ())])
    with pytest.raises(ConfigError, match="Open shows no candidates"):
        Open(prompt="choose")


def test_attributes_are_weighed_by_likelihood(dataset, photos):
    finder = AttributeFinder(
        FakeRanker(),
        photos,
        [RegionCropper(window="pad"), RegionCropper(window="cover")],
        pattern="{colour} {kind}",
        attributes={"colour": ["red", "grey"], "kind": ["fox", "wolf"]},
        templates=["{}"],
        shortlist=4,
        guesses=2,
    )
    assert finder.names == ("red fox", "red wolf", "grey fox", "grey wolf")
    discovery = draw_discovery(dataset)
    for photo in discovery.photos[:3]:
        total = torch.zeros(4, dtype=torch.float64)
        for window in ("pad", "cover"):
            height, width = photo.read().shape[:2]
            crop = RegionCropper(window=window, size=24).crop(photo.read(), [[0, 0, width, height]])
            ids = torch.arange(4)[None]
            total += (
                FakeRanker().rank(crop, Shortlist(ids, torch.full((1, 4), 0.25)), finder.names).log_probs[0].double()
            )
        assert finder.find([photo])[photo.id] == [finder.names[i] for i in total.argsort(descending=True)[:2]]
    with pytest.raises(ConfigError, match="has the parts"):
        AttributeFinder(FakeRanker(), photos, [], pattern="{a}", attributes={"b": ["x"]}, templates=["{}"])


def test_published_guesses(dataset, photos, tmp_path):
    discovery = draw_discovery(dataset)
    file = tmp_path / "guesses.json"
    findr = {
        f"03.X/03.{p.id.split('/')[-1].upper()}": {"guessed_classnames": {"2": "b", "1": "a"}} for p in discovery.photos
    }
    file.write_text(json.dumps(findr))
    assert GuessedFinder(file, photos, templates=["{}"]).find(discovery.photos)[discovery.photos[0].id] == ["a", "b"]
    file.write_text(json.dumps(["red fox", "oak"]))
    row = GuessedFinder(file, photos, templates=["{}"]).find(discovery.photos)[discovery.photos[0].id]
    assert sorted(row) == ["oak", "red fox"]
    file.write_text(json.dumps({"Red Fox_0": '{"red fox": ["It is red."], "oak": []}', "Oak_1": "no JSON"}))
    assert GuessedFinder(file, photos, templates=["{}"]).find(discovery.photos)[discovery.photos[0].id] == row
    file.write_text(json.dumps({"a.png": ["x"]}))
    with pytest.raises(DatasetError, match=r"guesses for 0 of 9 discovery photos.*other photos"):
        GuessedFinder(file, photos, templates=["{}"]).find(discovery.photos)
    for content in ({}, [], {"a": 3}, [1]):
        file.write_text(json.dumps(content))
        with pytest.raises(DatasetError, match="holds no guesses"):
            GuessedFinder(file, photos, templates=["{}"])
    with pytest.raises(MissingAssetError, match="there are no guesses"):
        GuessedFinder(tmp_path / "none.json", photos, templates=["{}"])


# --- The found vocabulary


def found_names(dataset, rows, **rules):
    discovery = draw_discovery(dataset)
    guesses = {photo.id: rows[i % len(rows)] for i, photo in enumerate(discovery.photos)}
    return FoundNames.from_guesses(guesses, discovery, {"finder": "test"}, Merging(**rules))


def test_names_keep_where_they_came_from(dataset, tmp_path):
    found = found_names(dataset, [["Red Fox", "red foxes", "oak"], [], ["狐狸", "???"]], min_support=1)
    assert [(one.name, one.support, one.spellings) for one in found.names] == [
        ("Red Fox", 3, ("Red Fox", "red foxes")),
        ("oak", 3, ("oak",)),
    ]
    assert len(found.unnamed) == 6
    assert found.dropped == {"other script": 3, "no name": 3}
    assert "6 photos without a name" in found.describe()
    assert set(found.names[0].photos) == {photo for photo, row in found.guesses.items() if row}
    write_found(found, tmp_path / "f.json")
    assert read_found(tmp_path / "f.json", dataset) == replace(found, finder=dict(found.finder))
    assert found_names(dataset, [["狐狸"]], any_script=True).vocabulary == ("狐狸",)


def test_rare_names_are_dropped(dataset):
    found = found_names(dataset, [["oak"], ["oak", "elm"], *[["oak"]] * 7], min_support=2)
    assert found.vocabulary == ("oak",)
    assert found.dropped == {"below the support": 1}


def test_an_empty_vocabulary(dataset):
    with pytest.raises(DatasetError, match=r"no name was found by 'test' \(9 other script\)"):
        found_names(dataset, [["狐狸"]])
    with pytest.raises(DatasetError, match="no guesses at all"):
        found_names(dataset, [[]])


def test_files_of_names_that_are_none(dataset, tmp_path):
    file = tmp_path / "f.json"
    with pytest.raises(MissingAssetError, match="rar-mmdet names find"):
        read_found(file, dataset)
    file.write_text("{}")
    with pytest.raises(DatasetError, match="holds no found names"):
        read_found(file, dataset)
    write_found(found_names(dataset, [["oak"]]), file)
    with pytest.raises(DatasetError, match="was found on .* find names on it first"):
        read_found(file, replace(dataset, name="other"))
    content = json.loads(file.read_text())
    for key, value, match in (
        ("guesses", {"test/oak/ot0.png": [0]}, "1 photos are not in the train part"),
        ("guesses", {dataset.train[0].id: [4]}, "outside the 1 found names"),
        ("names", [{}], "is damaged"),
    ):
        file.write_text(json.dumps({**content, key: value}))
        with pytest.raises(DatasetError, match=match):
            read_found(file, dataset)


# --- Ways to use them

UNIT = torch.eye(4)


def known(guesses, votes=None, names=("a", "b", "c")):
    """Discovery photos along the axes; texts of a, b, c along the first three."""
    photos = UNIT[: len(guesses)]
    text = UNIT[:, : len(names)]
    return Known(
        names,
        text,
        photos,
        guesses,
        lambda: text,
        lambda: photos @ text if votes is None else votes,
        lambda: photos[:, None],
    )


def test_released_on_a_hand_worked_example():
    """Four photos; c is guessed only in fourth place, so it is not pooled; photo 3 votes for a by its text."""
    guesses = ((0,), (1, 0), (0, 1, 1, 2), (0,))
    votes = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.1, 0.2, 0.9], [0.5, 0.1, 0.6]])
    assert pooled_names(UNIT, guesses) == [0, 1]
    made = WAYS["released"](known(guesses, votes))
    assert made.names == ("a", "b")
    # Photos 0 and 3 vote for a, photos 1 and 2 for b: 0.7 text + 0.3 mean of the photos, not of unit length.
    expected = torch.tensor([[0.85, 0, 0, 0.15], [0, 0.85, 0.15, 0]])
    assert torch.allclose(made.shortlister.weight.T / 100, expected)
    # FineR itself may choose c.
    assert WAYS["finer"](known(guesses, votes)).names == ("a", "b", "c")


@pytest.mark.parametrize("nearest", [1, 2, 4])
def test_the_release_s_knob_of_neighbours_chooses_nothing(nearest):
    guesses = tuple(tuple(row) for row in np.random.default_rng(0).integers(0, 9, (12, 4)).tolist())
    photos = torch.nn.functional.normalize(torch.randn(12, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    pooled = pooled_names(photos, guesses, nearest, 2)
    assert pooled == sorted({name for row in guesses for name in row[:2]})


def test_the_paper_s_way_lists_the_guesses_of_the_nearest_photos():
    found = NearestGuesses(UNIT, ((2, 0), (0, 1), (), (1,)), 3)
    queries = torch.nn.functional.normalize(torch.tensor([[1.0, 0.5, 2.0, 0.1], [0.1, 0.2, 0.0, 1.0]]), dim=1)
    shortlist = found.search(queries, 5)
    assert shortlist.category_ids.tolist() == [[2, 0, 1], [1, 0, 2]]
    assert (shortlist.probs.diff(dim=1) <= 0).all()
    assert torch.allclose(shortlist.probs.sum(1), torch.ones(2))


def test_ours_drops_names_without_a_vote_and_mixes():
    made = WAYS["ours"](known(((1, 0), (1,), ())))  # photo 2 has no guess: its text says c
    assert made.names == ("b", "c")
    mean = (UNIT[0] + UNIT[1]) / 2**0.5
    assert torch.allclose(made.shortlister.weight.T / 100, torch.stack([(UNIT[1] + mean) / 2, UNIT[2]]))


def test_views_are_the_same_again(dataset):
    photo = draw_discovery(dataset).photos[0]
    first = augmented_views(photo, 16, count=4)
    assert first.shape == (4, 3, 16, 16)
    assert first.dtype == torch.uint8
    assert torch.equal(first, augmented_views(photo, 16, count=4))
    assert not torch.equal(first, augmented_views(photo, 16, count=4, seed=1))


# --- Scores and commands


def test_scores_and_floors():
    def encode(texts):
        return torch.tensor([[float(len(text)), 1.0] for text in texts])

    scorer = Scorer([0, 0, 1], ["Red_Fox", "oak"], encode)
    right = scorer.score(["red fox", "red fox", "oak"])
    assert (right.cacc, right.names) == (1, 2)
    assert right.sacc == pytest.approx(1)
    floors = scorer.floors()
    assert floors[CONSTANT].cacc == pytest.approx(2 / 3)
    assert floors[RANDOM].sacc < floors[CONSTANT].sacc < 1
    assert Scorer([0, 1], ["a", "b"], None).score(["x", "x"]) == Score(0.5, None, 1)


def test_predictions_are_read_from_records():
    record = RegionRecord("x", 0, (0, 0, 1, 1), 1, (3, 5), ("a", "b"), (0.6, 0.4), (0.5, 0.7), "ok", (1, 0))
    assert predictions([record]) == {"": ["a"], "+rar": ["b"], "+rar order": ["b"]}
    assert predictions([replace(record, status="skipped", order=())]) == {"": ["a"]}


def test_the_layout_of_table_1():
    one = NamesTable("birds", {"ours": [Score(0.5, 0.7, 9), Score(0.7, 0.7, 9)], "kmeans": [Score(0.4, None, 3)]})
    assert "60.0 ±14.1" in one.text()
    two = NamesTable("cars", {"ours": [Score(0.2, 0.3, 9)]})
    text = sets_table({"birds": one.summary()["rows"], "cars": two.summary()["rows"]})
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[2:]}
    assert rows == {
        "ours": ["60.0", "70.0", "20.0", "30.0", "40.0", "50.0"],
        "kmeans": ["40.0", "-", "-", "-", "-", "-"],
    }


CONFIG = """
dataset = dict(type="folders", root={root!r})
encoder = dict(type="rar_mmdet.testing.FakeEncoder")
ranker = dict(type="rar_mmdet.testing.FakeRanker")
num_candidates = 2
names = dict(nouns={nouns!r}, sentence_encoder="encoder", guesses=2)
"""


@pytest.fixture
def config(root, dictionary, tmp_path):
    file = tmp_path / "config.py"
    file.write_text(CONFIG.format(root=str(root), nouns=str(dictionary)))
    return file


def test_from_photos_to_table_1_without_the_test_part(config, tmp_path, monkeypatch, capsys):
    out, read = tmp_path / "found", []
    plain = Example.read

    def listed(self):
        read.append(self.id)
        return plain(self)

    monkeypatch.setattr(Example, "read", listed)
    monkeypatch.setattr(DiscoveryPhoto, "read", lambda self: (read.append(self.id), plain(self))[1])
    find = ["names", "find", str(config), "--finder", "wordnet", "--seeds", "1", "2", "--out", str(out)]
    monkeypatch.setenv("RAR_MMDET_CACHE", str(tmp_path / "cache"))
    assert rar_mmdet(find) == 0
    assert read
    assert all(photo.startswith("train/") for photo in read)
    kept = {file.name: file.read_bytes() for file in out.glob("*.json")}
    read.clear()
    assert rar_mmdet(find) == 0
    assert not read
    assert rar_mmdet([*find, "--min-support", "2"]) == 2
    assert "found in another way" in capsys.readouterr().err
    files = [str(out / name) for name in sorted(kept)]
    run = ["classify", str(config), "--names", *files, "--out", str(tmp_path / "run")]
    assert rar_mmdet([*run, "--rows", "ours", "paper+rar"]) == 0
    table = (tmp_path / "run" / "table.txt").read_text()
    rows = {line.partition("  ")[0] for line in table.splitlines()}
    assert {"wordnet", "wordnet, ours", "wordnet, paper+rar order", "upper bound: true names", CONSTANT, RANDOM} <= rows
    assert "wordnet, ours+rar" not in rows
    records = {file.name: file.read_bytes() for file in (tmp_path / "run" / "records").iterdir()}
    read.clear()
    assert rar_mmdet([*run, "--rows", "ours", "paper+rar"]) == 0  # from records
    assert records == {file.name: file.read_bytes() for file in (tmp_path / "run" / "records").iterdir()}
    assert rar_mmdet(["names", "table", str(tmp_path / "run")]) == 0
    assert "average" in capsys.readouterr().out
    assert rar_mmdet([*run, "--rows", "best"]) == 2
    assert "there is no way 'best'" in capsys.readouterr().err
    assert rar_mmdet([*run[:3], files[0], *run[3:]]) == 2
    assert "another file holds 'wordnet' of draw 1" in capsys.readouterr().err
    assert rar_mmdet([*run, "--rows", "all", "--cfg-options", "num_candidates=3"]) == 2
    assert "other settings (num_candidates)" in capsys.readouterr().err
    # Rows of retrieval alone want no weights of a ranker.
    other = ["--cfg-options", "ranker.type=TransformersRanker", f"ranker.model={tmp_path / 'none'}"]
    alone = ["classify", str(config), "--names", *files, "--out", str(tmp_path / "alone"), *other]
    assert rar_mmdet([*alone, "--rows", "ours"]) == 0
    assert rar_mmdet([*alone, "--rows", "ours+rar"]) == 2
    assert "ranker model" in capsys.readouterr().err


def test_runs_that_are_none(tmp_path, capsys):
    assert rar_mmdet(["names", "table", str(tmp_path)]) == 2
    assert "holds no run of found names" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"names": []}, None),
        ({"names": [1]}, "names must be a dict"),
        ({"names": {"gueses": 3}}, "did you mean 'guesses'"),
        ({"names": {"guesses": 0}}, "names.guesses must be a whole number"),
        ({"names": {"pattern": "{a}"}}, "belong together"),
    ],
)
def test_settings_that_are_none(given, match):
    if match is None:
        assert NamesSettings.of(given) == NamesSettings()
        return
    with pytest.raises(ConfigError, match=match):
        NamesSettings.of(given)


@pytest.mark.parametrize(
    ("finder", "said"),
    [
        ("wordnett", "did you mean 'wordnet'"),
        ("captions", "--captions FILE"),
        ("guessed", "--guesses FILE"),
        ("mllm", "'rar_mmdet.testing.FakeRanker' asks no model"),
    ],
)
def test_finders_that_lack_something(config, tmp_path, capsys, finder, said):
    assert rar_mmdet(["names", "find", str(config), "--finder", finder, "--out", str(tmp_path / "o")]) == 2
    assert said in capsys.readouterr().err
