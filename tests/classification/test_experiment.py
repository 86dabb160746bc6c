"""A few-shot table: every row by the recogniser itself, resumed runs, and the numbers by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rar_mmdet import RegionRecognizer
from rar_mmdet.classification import command, draw_seeded, read_folders
from rar_mmdet.classification.dataset import Example
from rar_mmdet.classification.experiment import FewShotRun, Recipe
from rar_mmdet.classification.released import read_places, share_anywhere, write_lists
from rar_mmdet.classification.results import Places, Table, places_of
from rar_mmdet.classification.shortlisters import SHORTLISTERS, VISION, Vectors, balanced_alpha
from rar_mmdet.classification.vectors import read_descriptions
from rar_mmdet.cli import main as rar_mmdet
from rar_mmdet.components import read_config
from rar_mmdet.errors import ConfigError, DatasetError, ImageReadError
from rar_mmdet.files import read_image
from rar_mmdet.fusion import LogLikFusion, PermuteFusion
from rar_mmdet.memory.classifiers import ReadyMemory
from rar_mmdet.memory.few_shot import TEXT_SCALE, fit_gda
from rar_mmdet.memory.tuning import tune_tip
from rar_mmdet.records import NEVER, RegionRecord, read_records
from rar_mmdet.regions import RegionCropper
from rar_mmdet.testing import FakeEncoder, FakeRanker, make_image

ROOT = Path(__file__).parents[2]
CLASSES = ("grey wolf", "oak, old", "red fox")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes of photos alike within a class; one photo is turned by EXIF."""
    root = tmp_path_factory.mktemp("photos")
    for label, name in enumerate(CLASSES):
        for part, count in (("train", 4), ("val", 2), ("test", 5)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = np.random.default_rng([label, i, len(part)]).normal(0, 60, (48, 64, 3))
                photo = Image.fromarray(np.clip(make_image(48, 64, seed=label) + noise, 0, 255).astype(np.uint8))
                exif = Image.Exif()
                exif[274] = 6 if i == 1 else 1
                photo.save(folder / f"{i}.png", exif=exif)
    return root


@pytest.fixture
def recipe(photos):
    vision = FakeEncoder(dim=24, image_size=16, seed=5)
    return Recipe(read_folders(photos), FakeEncoder(), ranker=FakeRanker(), num_candidates=2, vision_encoder=vision)


def contents(out):
    return {file.name: file.read_bytes() for file in sorted((out / "records").glob("*"))}


@pytest.mark.parametrize("row", [row for row in SHORTLISTERS if row != "descriptions"])
def test_a_row_is_what_the_recogniser_says_of_the_whole_photo(recipe, tmp_path, row):
    run = FewShotRun(recipe, tmp_path)
    found = run.places([row], [row], ["2"], [7])[row]["2"][0]
    dataset, encoder = recipe.dataset, recipe.vision_encoder if row == VISION else recipe.encoder
    cropper = RegionCropper(window="cover", size=encoder.image_size)

    def whole(photo):
        return [[0, 0, photo.shape[1], photo.shape[0]]]

    def encode(examples):
        return torch.cat([encoder.encode_images(cropper.crop(e.read(), whole(e.read()))) for e in examples])

    draw = draw_seeded(dataset, 2, 7).examples
    text = recipe.encoder.encode_texts([f"a photo of a {name}." for name in CLASSES]).T
    labels = torch.tensor([e.label for e in draw])
    scale = encoder.logit_scale if row == VISION else TEXT_SCALE
    shortlister = SHORTLISTERS[row](Vectors(text, encode(draw), labels, scale=scale))
    recognizer = RegionRecognizer(
        cropper=RegionCropper(window="cover"),
        encoder=encoder,
        memory=ReadyMemory(shortlister, encoder.fingerprint, CLASSES),
        category_names=CLASSES,
        ranker=FakeRanker(),
        ranker_cropper=RegionCropper(window="pad"),
        num_candidates=2,
    )
    records = list(read_records(tmp_path / "records" / f"{row}+rar-{'none' if row == 'text' else '2-7'}.jsonl"))
    for i, example in enumerate(dataset.test):
        photo = read_image(example.path)
        one = recognizer(photo, whole(photo))
        assert records[i].image == example.id
        assert records[i].box_xyxy == (0, 0, photo.shape[1], photo.shape[0])
        assert records[i].category_ids == tuple(one.shortlist.category_ids[0].tolist())
        assert records[i].fused == pytest.approx(one.fused[0].tolist(), rel=1e-5)
        assert records[i].order == tuple(one.ranking.order[0].tolist())
        by_probs = one.shortlist.category_ids[0].tolist().index(example.label)
        assert found.retrieval[i] == by_probs
        assert (found.fused[i] == 0) == (one.best_ids[0] == example.label)
        permuted = PermuteFusion()(one.shortlist, one.ranking)[0]
        first = int(one.shortlist.category_ids[0, permuted.argmax()])
        assert (found.reordered[i] == 0) == (first == example.label)


def test_a_stopped_run_goes_on_and_ends_with_the_same_bits(recipe, tmp_path, monkeypatch):
    rows, shots, seeds = ["text", "knn", "gda"], ["1", "2"], [1, 2]
    whole = FewShotRun(recipe, tmp_path / "whole").places(rows, ["knn"], shots, seeds)
    rank, calls = FakeRanker.rank, []

    def dies(self, *args):
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return rank(self, *args)

    monkeypatch.setattr(FakeRanker, "rank", dies)
    with pytest.raises(KeyboardInterrupt):
        FewShotRun(recipe, tmp_path / "stopped").places(rows, ["knn"], shots, seeds)
    assert 0 < len(contents(tmp_path / "stopped")) < len(contents(tmp_path / "whole"))
    resumed = FewShotRun(recipe, tmp_path / "stopped").places(rows, ["knn"], shots, seeds)
    assert len(calls) == 3 + 2  # two of four were whole, the third is asked again
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    assert resumed["knn"]["2"][1].fused.tolist() == whole["knn"]["2"][1].fused.tolist()


def test_each_photo_is_encoded_once_and_kept(recipe, photos, tmp_path, monkeypatch):
    encode, seen = FakeEncoder.encode_images, []
    monkeypatch.setattr(
        FakeEncoder, "encode_images", lambda self, crops: (seen.append(len(crops)), encode(self, crops))[1]
    )
    cache = tmp_path / "cache"
    for out in ("a", "b"):
        FewShotRun(recipe, tmp_path / out, cache_dir=cache).places(["knn", "tip"], [], ["1", "2", "4"], [1, 2, 3])
        if out == "a":
            first = len(seen)
    assert len(seen) == first <= 1 + 12  # a batch of test photos and one for new exemplars; then all from disk
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    for file in cache.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:50])
    FewShotRun(recipe, tmp_path / "c", cache_dir=cache).places(["knn"], [], ["4"], [1])
    assert contents(tmp_path / "c")["knn-4-1.jsonl"] == contents(tmp_path / "a")["knn-4-1.jsonl"]


def test_a_photo_that_is_gone_is_named(recipe, tmp_path):
    gone = replace(recipe.dataset.test[0], path=str(tmp_path / "gone.png"))
    dataset = replace(recipe.dataset, test=(gone, *recipe.dataset.test[1:]))
    with pytest.raises(ImageReadError, match="gone.png"):
        FewShotRun(replace(recipe, dataset=dataset), tmp_path, cache_dir=tmp_path).places(["text"], [], ["1"], [1])


def test_the_truth_is_always_among_the_offered_names(recipe, tmp_path):
    run = FewShotRun(recipe, tmp_path)
    assert set(run.offered([2, 3])) == {2, 3}
    for record in read_records(tmp_path / "records" / "offered-2.jsonl"):
        assert len(record.category_ids) == 2
        assert record.truth in record.category_ids
        assert len(record.order) == 2
    with pytest.raises(ConfigError, match="4 offered names: expected 2 to 3"):
        run.offered([4])


def test_the_ranker_alone_sees_every_name(recipe, tmp_path):
    found = FewShotRun(recipe, tmp_path).unaided()
    seen = list(read_records(tmp_path / "records" / "mllm.jsonl"))
    assert all(sorted(one.order) == [0, 1, 2] for one in seen)
    assert found.reordered.tolist() == [one.order.index(one.truth) for one in seen]
    recipe.ranker.max_candidates = 2
    with pytest.raises(ConfigError, match="row 'mllm': 3 names, but this ranker can tell at most 2 apart"):
        FewShotRun(recipe, tmp_path / "other").unaided()


def test_the_released_list_by_hand(tmp_path):
    def example(label, name):
        return Example(name, name, label, CLASSES[label], CLASSES[label])

    exemplars = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    labels = torch.tensor([1, 1, 0, 0])
    queries = torch.tensor([[0.96, 0.28], [0.0, 1.0], [1.0, 0.0]])  # nearest to exemplar 1, 3, 0
    write_lists(tmp_path / "a.jsonl", [example(0, "x"), example(0, "y"), example(2, "z")], queries, exemplars, labels)
    lists = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert lists == [
        {"image": "x", "truth": 0, "labels": [1, 1, 0, 0]},  # cosines 0.936, 0.96, 0.8, 0.28
        {"image": "y", "truth": 0, "labels": [0, 0, 1, 1]},
        {"image": "z", "truth": 2, "labels": [1, 1, 0, 0]},
    ]
    places = read_places(tmp_path / "a.jsonl")
    assert places.tolist() == [2, 0, NEVER]  # a list without repetition has the class of x at place 1
    assert share_anywhere(places) == pytest.approx(2 / 3)


def test_the_released_row_is_1_nn_and_repeats_classes(recipe, tmp_path):
    run = FewShotRun(recipe, tmp_path)
    released = run.released(["1", "4"], [1, 2])
    knn = run.places(["knn"], [], ["1", "4"], [1, 2])["knn"]
    for shots in ("1", "4"):
        for lists, row in zip(released[shots], knn[shots], strict=True):
            assert ((lists == 0) == (row.retrieval == 0)).all()
            assert (lists >= row.retrieval).all()  # equal where a class has one photo
    assert all((a == b.retrieval).all() for a, b in zip(released["1"], knn["1"], strict=True))


def test_two_classes_of_one_name_are_told_apart_by_exemplars(recipe, photos, tmp_path):
    """ImageNet has two such pairs; no text can tell them apart, and labels are what counts."""
    dataset = recipe.dataset
    shared = ("fox", 'oak, "old"', "fox")
    parts = {
        part: tuple(replace(e, display_name=shared[e.label], prompt_name=shared[e.label]) for e in dataset.part(part))
        for part in ("train", "val", "test")
    }
    twins = replace(dataset, display_names=shared, prompt_names=shared, **parts)
    run = FewShotRun(replace(recipe, dataset=twins, num_candidates=3), tmp_path / "twins")
    found = run.places(["text", "knn", "mean"], ["knn"], ["2"], [1])
    apart = FewShotRun(replace(recipe, num_candidates=3), tmp_path / "apart").places(["knn", "mean"], [], ["2"], [1])
    for row in ("knn", "mean"):
        assert found[row]["2"][0].retrieval.tolist() == apart[row]["2"][0].retrieval.tolist()
    text = found["text"]["2"][0].retrieval
    truth = np.array([example.label for example in dataset.test])
    assert not (text[truth == 2] == 0).any()  # of equal names the first class comes first
    records = list(read_records(tmp_path / "twins" / "records" / "knn+rar-2-1.jsonl"))
    assert all(sorted(one.category_ids) == [0, 1, 2] and sorted(one.order) == [0, 1, 2] for one in records)
    assert {name for one in records for name in one.names} == set(shared)


def test_texts_get_prompt_names_and_the_ranker_display_names(recipe, tmp_path, monkeypatch):
    dataset = recipe.dataset
    shown = tuple(name.title() for name in CLASSES)
    parts = {part: tuple(replace(e, display_name=shown[e.label]) for e in dataset.part(part)) for part in ("train",
        "val", "test")}  # fmt: skip
    texts, names = [], []
    encode, rank = FakeEncoder.encode_texts, FakeRanker.rank
    monkeypatch.setattr(FakeEncoder, "encode_texts", lambda self, given: (texts.extend(given), encode(self, given))[1])
    monkeypatch.setattr(FakeRanker, "rank", lambda self, *args: (names.append(args[2]), rank(self, *args))[1])
    two_forms = replace(dataset, display_names=shown, **parts)
    FewShotRun(replace(recipe, dataset=two_forms), tmp_path).places(["text"], ["text"], ["1"], [1])
    assert set(texts) == {f"a photo of a {name}." for name in CLASSES}
    assert set(names) == {shown}


def test_another_run_in_the_same_folder_is_refused(recipe, tmp_path):
    run = FewShotRun(recipe, tmp_path)
    run.claim({"encoder": "a", "num_candidates": 5})
    run.claim({"encoder": "a", "num_candidates": 5})
    with pytest.raises(ConfigError, match="other settings \\(num_candidates\\): give another --out"):
        run.claim({"encoder": "a", "num_candidates": 4})
    with pytest.raises(ConfigError, match="other settings \\(test\\)"):
        FewShotRun(recipe, tmp_path, limit=6).claim({"encoder": "a", "num_candidates": 5})


def test_knobs_are_chosen_on_the_val_part_alone(recipe, tmp_path):
    tuned = FewShotRun(recipe, tmp_path / "tuned", tune=True).places(["gda", "tip"], [], ["2"], [1])
    assert len(tuned["gda"]["2"][0].retrieval) == 15
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(8)
    exemplars = torch.nn.functional.normalize(torch.randn(24, 6, generator=generator) + torch.eye(6)[labels], dim=1)
    text = torch.nn.functional.normalize(torch.randn(3, 6, generator=generator), dim=1).T
    val_labels = torch.arange(3).repeat(10)
    val = torch.nn.functional.normalize(torch.randn(30, 6, generator=generator) + torch.eye(6)[val_labels], dim=1)
    made = SHORTLISTERS["tip"](Vectors(text, exemplars, labels, val, val_labels))
    assert (made.alpha, made.beta) == tune_tip(val, val_labels, exemplars, labels, text)
    fixed = SHORTLISTERS["tip"](Vectors(text, exemplars, labels))
    assert (fixed.alpha, fixed.beta) == (1.0, 5.5)
    without = replace(recipe.dataset, val=())
    with pytest.raises(ConfigError, match="has no val part to choose knobs on"):
        FewShotRun(replace(recipe, dataset=without), tmp_path / "none", tune=True)


def test_descriptions_are_one_more_text_row(recipe, tmp_path):
    file = tmp_path / "sentences.json"
    sentences = {"Red_Fox": ["a fox.", "a red dog."], "grey wolf": ["a wolf."], "oak, old": ["a tree.", "a big tree."]}
    file.write_text(json.dumps(sentences))
    described = replace(recipe, descriptions=read_descriptions(file, recipe.dataset))
    assert described.descriptions == (("a wolf.",), ("a tree.", "a big tree."), ("a fox.", "a red dog."))
    found = FewShotRun(described, tmp_path / "a").places(["descriptions"], [], ["1", "2"], [1])["descriptions"]
    assert found["1"] is found["2"]
    # One sentence that is the template's own is the row `text`.
    same = replace(recipe, descriptions=tuple((f"a photo of a {name}.",) for name in CLASSES))
    both = FewShotRun(same, tmp_path / "b").places(["text", "descriptions"], [], ["1"], [1])
    assert both["text"]["1"][0].retrieval.tolist() == both["descriptions"]["1"][0].retrieval.tolist()
    with pytest.raises(ConfigError, match="row 'descriptions' needs `descriptions` in the config"):
        FewShotRun(recipe, tmp_path / "c").places(["descriptions"], [], ["1"], [1])
    for text, message in (
        ('{"grey wolf": ["a"]}', "lack 2 of 3 classes, such as oak, old, red fox"),
        ('{"grey wolf": "a"}', "must be an object of class names with lists of sentences"),
        ("no", "cannot be read as JSON"),
    ):
        file.write_text(text)
        with pytest.raises(DatasetError, match=message):
            read_descriptions(file, recipe.dataset)


def test_balanced_alpha_gives_both_opinions_one_spread():
    unit = torch.nn.functional.normalize
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(5).repeat(8)
    exemplars = unit(torch.randn(40, 12, generator=generator) + 2 * torch.eye(12)[labels], dim=1)
    vectors = Vectors(unit(torch.randn(5, 12, generator=generator), dim=1).T, exemplars, labels)
    gda = fit_gda(exemplars, labels, 5)
    alpha = balanced_alpha(vectors, gda)
    spread = (alpha * (exemplars @ gda.weight + gda.bias)).std(dim=1).mean()
    torch.testing.assert_close(spread, (TEXT_SCALE * exemplars @ vectors.text).std(dim=1).mean())


def record(truth, ids, fused, order=(), status="ok"):
    names = tuple(map(str, ids))
    probs = tuple(1 / (i + 2) for i in range(len(ids)))
    return RegionRecord(
        "p", 0, (0.0, 0.0, 1.0, 1.0), 1.0, tuple(ids), names, probs, tuple(fused), status, order, truth=truth
    )


def test_places_by_hand():
    found = places_of(
        [
            record(4, (9, 4, 7), (0.1, 0.5, 0.2), order=(1, 0)),
            record(7, (9, 4, 7), (0.1, 0.5, 0.2), order=(1, 0)),
            record(9, (9, 4), (0.3, 0.3), order=(1, 0), status="fallback"),
            record(5, (9, 4), (0.3, 0.3), status="skipped"),
        ]
    )
    assert found.retrieval.tolist() == [1, 2, 0, NEVER]
    assert found.fused.tolist() == [0, 1, 0, NEVER]
    assert found.reordered.tolist() == [0, 2, 0, NEVER]
    assert found.asked.tolist() == [True, True, False, False]


def test_the_table_by_hand():
    def places(retrieval, fused):
        return Places(np.array(retrieval), np.array(fused), np.array(fused), np.ones(len(fused), bool))

    table = Table.from_places(
        {"knn": {"1": [places([0, 1, 2, 3], [0, 0, 2, 3]), places([1, 1, 2, 3], [0, 0, 0, 3])]}}, top=1
    )
    assert table.mean("knn", "1") == pytest.approx((0.25 + 0.0) / 2)
    assert table.mean("knn+rar", "1") == pytest.approx((0.5 + 0.75) / 2)
    assert table.spread("knn", "1") == pytest.approx(np.std([0.25, 0.0], ddof=1))
    assert "12.5 ±17.7" in table.text()
    said = table.verdict("1")
    assert said.startswith(
        "At 1 shot knn is the best row without a ranker (12.5 %); ranking changes it by +50.0 points"
    )
    assert "chance may explain" in said
    assert "1 photos gained, 0 lost" in said
    summary = table.summary()
    assert summary["rows"] == {"knn": {"1": 0.125}, "knn+rar": {"1": 0.625}, "knn+rar order": {"1": 0.625}}
    assert summary["details"]["knn"]["1"]["seeds"] == [0.25, 0.0]
    alone = Table.from_places({"knn": {"1": [replace(places([0, 1], [0, 1]), asked=np.zeros(2, bool))]}}, top=2)
    assert alone.mean("knn", "1") == 1.0
    assert alone.verdict("1").endswith("no ranker was put on it.")


@pytest.fixture
def config(photos, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        f"encoder = dict(type='OpenClipEncoder', model='local-dir:{ROOT}/demo/weights/clip')\n"
        f"dataset = dict(type='folders', root={str(photos)!r})\n"
        f"ranker = dict(type='TransformersRanker', model='{ROOT}/demo/weights/ranker', batch_size=32,\n"
        f"    ask=dict(type='Likelihood', prompts='{ROOT}/demo/prompts.json'),\n"
        f"    loading=dict(modules=['{ROOT}/demo/tiny_vision.py']))\n"
        "num_candidates = 2\n"
    )
    return file


def test_the_command_with_the_demos_models(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RAR_MMDET_CACHE", str(tmp_path / "cache"))
    line = ["classify", str(config), "--shots", "1", "2", "--seeds", "1", "2", "--out", str(tmp_path / "out")]
    assert rar_mmdet([*line, "--offered", "2", "3", "--limit", "9", "--rows", "all", "mllm", "released"]) == 0
    shown = capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary["rows"]) >= {"gda", "gda+rar", "knn", "knn+rar", "text", "tip+rar order", "mllm", "released"}
    assert summary["released_anywhere"] == {"1": 1.0, "2": 1.0}  # three classes, all in a list of 100
    assert set(summary["rows"]["gda"]) == {"1", "2"}
    assert "is the best row without a ranker" in shown
    assert (tmp_path / "out" / "table.txt").read_text() in shown + "\n"
    for name in ("top_k", "offered"):
        assert Image.open(tmp_path / "out" / f"{name}.png").size[0] > 300
        assert (tmp_path / "out" / f"{name}.svg").is_file()
    before, asked = contents(tmp_path / "out"), summary["ranker"]["asked"]
    assert asked > 0
    assert rar_mmdet([*line, "--offered", "2", "3", "--limit", "9"]) == 0
    assert contents(tmp_path / "out") == before
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["ranker"]["regions"] == 0
    assert rar_mmdet([*line, "--limit", "8"]) == 2
    assert "holds a run with other settings (limit, test)" in capsys.readouterr().err


def test_rows_without_a_ranker_need_none_of_its_weights(config, tmp_path, monkeypatch):
    monkeypatch.setenv("RAR_MMDET_CACHE", str(tmp_path / "cache"))
    line = [str(config), "--shots", "1", "--seeds", "1", "--cfg-options", f"ranker.model={tmp_path / 'none'}"]
    assert rar_mmdet(["classify", *line, "--rows", "knn", "text", "--out", str(tmp_path / "out")]) == 0
    assert "ranker" not in json.loads((tmp_path / "out" / "summary.json").read_text())
    assert rar_mmdet(["classify", *line, "--rows", "knn+rar", "--out", str(tmp_path / "other")]) == 2


def test_the_whole_train_part_and_top_5(config, tmp_path, monkeypatch):
    monkeypatch.setenv("RAR_MMDET_CACHE", str(tmp_path / "cache"))
    out = ["--out", str(tmp_path / "out"), "--rows", "knn", "tip", "--memory", "train", "--top", "2"]
    table = command.run(command.parse_args([str(config), *out]))
    assert table.shots == ["train"]
    assert len(table.correct["knn"]["train"]) == 1
    assert json.loads((tmp_path / "out" / "run.json").read_text())["num_candidates"] == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "gad"], "there is no row 'gad'; did you mean 'gda'\\?"),
        (["--rows", "gda+rar", "--cfg-options", "ranker=None"], "row 'gda\\+rar' needs a `ranker` in the config"),
        (["--offered", "3", "--cfg-options", "ranker=None"], "--offered needs a `ranker`"),
        (["--rows", "mllm", "--cfg-options", "ranker=None"], "row 'mllm' needs a `ranker`"),
        (["--rows", "vision-knn"], "row 'vision-knn' needs a dict `vision_encoder` in the config, such as DINOv2's"),
        (["--top", "0"], "--top must be at least 1"),
        (["--cfg-options", "dataset.type=flowers"], "there is no type 'flowers'; did you mean 'flowers102'\\?"),
        (["--cfg-options", "dataset.rot=x"], "has no key 'rot'"),
        (["--cfg-options", "encoder=None"], "the config needs a dict `encoder`"),
    ],
)
def test_what_a_user_can_get_wrong(config, tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        command.run(command.parse_args([str(config), "--out", str(tmp_path / "out"), *arguments]))


def test_a_server_ranks_a_sample(config, letter_server, tmp_path, monkeypatch):
    """The row of a hosted model: letters of a server that always says B, about a stratified sample."""
    monkeypatch.setenv("RAR_MMDET_CACHE", str(tmp_path / "cache"))
    shipped = dict(read_config(ROOT / "configs" / "classification" / "flowers102_server.py")["ranker"])
    text = config.read_text().split("ranker =")[0] + f"ranker = {shipped | {'base_url': letter_server.url}!r}\n"
    config.write_text(text + "num_candidates = 3\n")
    arguments = [str(config), "--rows", "knn+rar", "mllm", "--shots", "1", "--seeds", "1", "--limit", "6"]
    table = command.run(command.parse_args([*arguments, "--out", str(tmp_path / "out")]))
    records = list(read_records(tmp_path / "out" / "records" / "knn+rar-1-1.jsonl"))
    assert len(records) == 6
    assert sorted(one.truth for one in records) == [0, 0, 1, 1, 2, 2]
    assert {one.order[0] for one in records} == {1}  # B
    second = np.array([one.category_ids[1] == one.truth for one in records])
    assert table.correct["knn+rar order"]["1"][0].tolist() == second.tolist()
    assert table.correct["mllm"]["1"][0].tolist() == [one.truth == 1 for one in records]


def test_a_hosted_row_tells_its_cost_first_and_goes_on_with_more_money(
    config, letter_server, tmp_path, monkeypatch, capsys
):
    """100 tokens a question: two of the probe, and what the budget leaves for photos."""
    monkeypatch.setenv("RAR_MMDET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-secret")
    shipped = dict(read_config(ROOT / "configs" / "classification" / "flowers102_hosted.py")["ranker"])
    text = config.read_text().split("ranker =")[0] + f"ranker = {shipped | {'base_url': letter_server.url}!r}\n"
    config.write_text(text + "num_candidates = 3\n")
    line = ["classify", str(config), "--out", str(tmp_path / "out")]
    line += ["--rows", "knn+rar", "--shots", "1", "--seeds", "1"]
    assert rar_mmdet([*line, "--limit", "9", "--budget", "2.6e-5"]) == 2  # 5e-6 a question
    said = capsys.readouterr().err
    assert "at most 9 questions to the ranker, 900 input tokens: about 4.5e-05 at the prices" in said
    assert "spent 2.5e-05 of a budget of 2.6e-05 on 5 requests" in said
    assert rar_mmdet([*line, "--limit", "9", "--budget", "1"]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["ranker"]["cached"], summary["ranker"]["asked"]) == (3, 6)
    assert summary["ranker"]["cost"]["requests"] == 2 + 6
    capsys.readouterr()
    assert rar_mmdet([*line, "--limit", "9"]) == 0
    assert "questions to the ranker" not in capsys.readouterr().err  # all is on disk
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert not [file for file in files if b"sk-secret" in file.read_bytes()]
    assert rar_mmdet([*line, "--budget", "1", "--cfg-options", "ranker=None"]) == 2
    assert "has no ranker that asks a server" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "classification").glob("*.py")), ids=lambda f: f.stem)
def test_shipped_configs_ask_for_their_data_by_name(file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert rar_mmdet(["classify", str(file)]) == 2
    assert "must lie at" in capsys.readouterr().err


def test_fusion_of_the_config_is_used(recipe, tmp_path):
    plain = replace(recipe, fusion=LogLikFusion(alpha=0.0))
    found = FewShotRun(plain, tmp_path).places(["knn"], ["knn"], ["1"], [1])["knn"]["1"][0]
    assert found.fused.tolist() == found.retrieval.tolist()
