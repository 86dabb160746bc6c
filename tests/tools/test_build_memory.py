"""`rar-mmdet memory build` and `memory inspect` on a tiny world with a tiny random CLIP."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from rar_mmdet.cli import main as rar_mmdet
from rar_mmdet.memory import EntryKind, load_memory
from rar_mmdet.testing import make_image

ROOT = Path(__file__).parents[2]


def build(*arguments: object) -> int:
    return rar_mmdet(["memory", "build", *map(str, arguments)])


def inspect(*arguments: object) -> int:
    return rar_mmdet(["memory", "inspect", *map(str, arguments)])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, photos, annotations and a config."""
    root = tmp_path_factory.mktemp("world")
    sys.path.insert(0, str(ROOT / "tests" / "encoders"))
    from tiny import write_model

    write_model(root / "clip")
    names = ["red star", "blue cup", "cup_(drink)", "never seen"]
    Image.fromarray(make_image()).save(root / "0.png")
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1 + i % 3, "bbox": [3.0 * i, 4.0, 20.0, 18.0]} for i in range(6)
    ]
    content = {
        "images": [{"id": 1, "file_name": "0.png"}],
        "annotations": annotations,
        "categories": [{"id": 1 + i, "name": name} for i, name in enumerate(names)],
    }
    (root / "ann.json").write_text(json.dumps(content))
    (root / "config.py").write_text(
        "model = dict(recognizer=dict(vocabulary=r'{r}/ann.json', cropper=dict(type='RegionCropper', size=32), "
        "encoder=dict(type='OpenClipEncoder', model=r'local-dir:{r}/clip'), "
        "memory=dict(type='TextMemory', cache_dir=r'{r}/cache')))\n".replace("{r}", str(root))
    )
    return root


@pytest.fixture
def few_shot(world: Path) -> Path:
    out = world / "few_shot"
    given = [str(world / "config.py"), "--out", str(out), "--shots", "1"]
    assert build(*given, "--annotations", str(world / "ann.json"), "--images", str(world)) == 0
    return out


def test_fills_the_cache_once(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(str(world / "config.py")) == 0
    folder = Path(capsys.readouterr().out.split("written to ")[1].strip())
    assert folder.parent == world / "cache"
    written = (folder / "manifest.json").stat().st_mtime_ns
    assert build(str(world / "config.py")) == 0
    assert (folder / "manifest.json").stat().st_mtime_ns == written


def test_exemplars_join_the_texts(few_shot: Path) -> None:
    memory = load_memory(few_shot)
    assert memory.entries.of_kind(EntryKind.TEXT).counts(4).tolist() == [1, 1, 1, 1]
    assert memory.entries.of_kind(EntryKind.IMAGE).counts(4).tolist() == [1, 1, 1, 0]
    assert "up to 1 exemplars per category, seed 0" in memory.info.dataset


def test_update_adds_and_removes(world: Path, few_shot: Path) -> None:
    out = world / "changed"
    given = [str(world / "config.py"), "--update", str(few_shot), "--out", str(out)]
    assert build(*given, "--add", "square", "--remove", "blue cup") == 0
    memory = load_memory(out)
    assert memory.category_names == ("red star", "cup_(drink)", "never seen", "square")
    assert memory.entries.of_kind(EntryKind.IMAGE).counts(4).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ["--update", "{few}", "--remove", "zebra", "--out", "x"], "has 0 categories of that name", id="no-name"
        ),
        pytest.param(["--cfg-options", "model.recognizer"], "is no override; write KEY=VALUE", id="override"),
        pytest.param(["--cfg-options", "model.recognizer.encoder.model.x=1"], "do not fit", id="misfit"),
        pytest.param(["--names", "{few}/no.txt"], "no.txt' does not exist", id="names"),
        pytest.param(["--templates", "sinlge"], "no template set 'sinlge'", id="template"),
        pytest.param(
            ["--cfg-options", "model.recognizer.encoder.model=local-dir:/no/where"], "/no/where", id="weights"
        ),
    ],
)
def test_wrong_use_says_what_to_do(
    world: Path,
    few_shot: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    given = [argument.replace("{few}", str(few_shot)) for argument in arguments]
    assert build(str(world / "config.py"), *given) == 2
    assert message in capsys.readouterr().err


def test_options_that_need_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in [
        (["c.py", "--shots", "4"], "need --shots N --annotations FILE --images FOLDER"),
        (["c.py", "--add", "x"], "name it with --update DIR"),
        (["c.py", "--update", "d", "--add", "x"], "give --out DIR"),
    ]:
        with pytest.raises(SystemExit):
            build(*arguments)
        assert message in capsys.readouterr().err


def test_inspect_shows_contents(few_shot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(str(few_shot)) == 0
    shown = capsys.readouterr().out
    assert "4 categories, vectors of 16" in shown
    assert "1 categories have none: 3 'never seen'" in shown


def test_inspect_finds_neighbours(world: Path, few_shot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(str(few_shot), "--near", "Cup (drink)", "--top", "2") == 0
    assert "cosine 1.0000" in capsys.readouterr().out.splitlines()[1]
    config = ["--config", str(world / "config.py")]
    assert inspect(str(few_shot), "--near", "a photo of a red star", *config, "--top", "1") == 0
    assert "red star" in capsys.readouterr().out
    assert inspect(str(few_shot), "--image", str(world / "0.png"), *config) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert inspect(str(few_shot), "--duplicates", "-1") == 0
    assert "6 pairs of categories" in capsys.readouterr().out


def test_inspect_says_what_is_missing(world: Path, few_shot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in [
        ([str(world / "nothing")], "no memory in"),
        ([str(few_shot), "--near", "zebra"], "'zebra' is no name of this memory"),
        ([str(few_shot), "--image", str(world / "0.png")], "--image needs --config"),
    ]:
        assert inspect(*arguments) == 2
        assert message in capsys.readouterr().err


def test_names_in_another_spelling_find_the_same_memory(
    world: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert build(str(world / "config.py")) == 0
    folder = capsys.readouterr().out.split("written to ")[1]
    (tmp_path / "words.txt").write_bytes(b"\xef\xbb\xbfred_star\r\nblue_cup\r\ncup (drink)\r\nnever seen\r\n")
    assert build(str(world / "config.py"), "--names", str(tmp_path / "words.txt")) == 0
    assert capsys.readouterr().out.split("written to ")[1] == folder


def test_configs_without_a_recognizer_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text("model = dict(type='x')\n")
    for config, message in (
        (tmp_path / "config.py", "expected one `recognizer`"),
        (tmp_path / "no.py", "does not exist"),
    ):
        assert build(str(config)) == 2
        assert message in capsys.readouterr().err


def test_a_ranker_need_not_be_there(world: Path, tmp_path: Path) -> None:
    config = (world / "config.py").read_text().rstrip()[
        :-2
    ] + ", ranker=dict(type='TransformersRanker', model='/no/where')))\n"
    (tmp_path / "config.py").write_text(config)
    assert build(str(tmp_path / "config.py")) == 0


def test_a_stopped_build_says_how_to_go_on(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rar_mmdet.build_memory.save_memory", stop)
    assert build(str(world / "config.py"), "--out", str(tmp_path / "m")) == 130
    assert "stopped; the same command goes on where it was" in capsys.readouterr().err


def test_what_is_no_memory_is_not_replaced(world: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    assert build(str(world / "config.py"), "--out", str(tmp_path)) == 2
    assert "holds something else than a memory" in capsys.readouterr().err
    assert (tmp_path / "photo.jpg").exists()
