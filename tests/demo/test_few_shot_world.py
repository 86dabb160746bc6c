"""The few-shot world reads as folders, holds only classes the demo models never saw, and a seed fixes every byte."""

import hashlib

import cv2
import make_few_shot_world as script
import numpy as np
import pytest
from make_few_shot_world import held_out_classes, is_complete, make_few_shot_world, place
from make_world import make_world
from ranker_data import render_known
from world import ATTRIBUTES, CLASS_NAMES, draw_photo, train_image_quota

from rar_mmdet.classification import draw_seeded, read_folders

PHOTOS = (3, 1, 2)


def digest(world):
    files = sorted(path for path in world.rglob("*") if path.is_file())
    return {str(path.relative_to(world)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def few_shot_world(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "few_shot"
    assert make_few_shot_world(out, seed=3, photos=PHOTOS, workers=1)
    return out


def test_it_is_read_as_folders(few_shot_world):
    dataset = read_folders(few_shot_world)
    assert dataset.prompt_names == tuple(sorted(CLASS_NAMES[i] for i in held_out_classes()))
    for part, count in zip((dataset.train, dataset.val, dataset.test), PHOTOS, strict=True):
        assert np.bincount([example.label for example in part]).tolist() == [count] * 48
    assert len(draw_seeded(dataset, 2, 1)) == 96
    assert cv2.imread(dataset.test[0].path).shape == (96, 128, 3)


def test_no_class_was_trained_on(monkeypatch):
    shown = set()

    def record(rng, class_index, neighbours, *rest, **settings):
        shown.update([class_index, *np.asarray(neighbours).tolist()])
        return np.zeros((64, 64, 3), np.uint8)

    monkeypatch.setattr("ranker_data.draw_crop", record)
    for seed in range(20):
        render_known(np.random.default_rng(seed))
    train_clip = pytest.importorskip("train_clip")
    monkeypatch.setattr(train_clip, "draw_crop", record)
    for seed in range(20):
        train_clip.render(np.random.default_rng(seed))
    assert len(shown) == 426
    assert not shown & set(held_out_classes())
    # Independently of world.rare_classes: rare is two expected photos or fewer.
    assert train_image_quota()[held_out_classes()].max() <= 2


def test_sources_share_no_class_with_each_other_or_with_what_is_held_out(tmp_path):
    worlds = [set(script.classes_of(name)) for name in ("held-out", "source-a", "source-b")]
    assert [len(world) for world in worlds] == [48, 192, 192]
    assert len(set.union(*worlds)) == 48 + 2 * 192
    for world in worlds:
        assert [len(set(column)) for column in ATTRIBUTES[sorted(world)].T.tolist()] == [10, 5, 12]
    assert make_few_shot_world(tmp_path / "a", seed=0, photos=(1, 1, 1), workers=1, classes="source-a")
    assert is_complete(tmp_path / "a", 0, (1, 1, 1), "source-a")
    assert not is_complete(tmp_path / "a", 0, (1, 1, 1))
    assert set(read_folders(tmp_path / "a").prompt_names) == {CLASS_NAMES[c] for c in worlds[1]}


def test_classes_are_alike_and_cover_the_vocabulary():
    chosen = ATTRIBUTES[held_out_classes()]
    assert len(chosen) == 48
    assert ((chosen[:, None] == chosen[None]).sum(2) == 2).sum(1).mean() > 4
    assert [np.bincount(column).min() for column in chosen.T] == [2, 8, 2]
    assert [len(set(column)) for column in chosen.T] == [10, 5, 12]


def test_objects_are_whole_in_the_middle_square_and_off_centre():
    rng = np.random.default_rng(0)
    for number in range(40):
        thing = place(rng, held_out_classes()[number])
        _, (mask,) = draw_photo(rng, [thing], script.WIDTH, script.HEIGHT)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 >= 0.9 * thing.side  # nothing is cut off
        assert columns[0] >= 16
        assert columns[-1] < 112
        assert np.hypot(thing.cx - 64, thing.cy - 48) >= 0.04 * 96 - 1e-9


def test_a_seed_fixes_every_byte_whatever_the_workers(few_shot_world, tmp_path):
    assert make_few_shot_world(tmp_path / "same", seed=3, photos=PHOTOS, workers=2)
    assert digest(tmp_path / "same") == digest(few_shot_world)
    assert make_few_shot_world(tmp_path / "other", seed=4, photos=(1, 1, 1), workers=1)
    assert not set(digest(tmp_path / "other").values()) & set(digest(few_shot_world).values())


def test_no_photo_is_there_twice(few_shot_world):
    assert len(set(digest(few_shot_world).values())) == 48 * sum(PHOTOS) + 1


def test_nothing_is_done_for_a_world_that_is_there_and_a_damaged_one_is_made_anew(few_shot_world, tmp_path):
    assert not make_few_shot_world(few_shot_world, seed=3, photos=PHOTOS)
    out = tmp_path / "world"
    make_few_shot_world(out, seed=5, photos=(1, 1, 1), workers=1)
    whole = digest(out)
    photo = next(out.glob("test/*/*.jpg"))
    photo.write_bytes(photo.read_bytes()[:-9])
    assert not is_complete(out, 5, (1, 1, 1))
    assert make_few_shot_world(out, seed=5, photos=(1, 1, 1), workers=1)
    assert digest(out) == whole
    (photo.parent / "one_more.jpg").write_bytes(photo.read_bytes())
    assert not is_complete(out, 5, (1, 1, 1))


def test_a_run_that_dies_leaves_nothing_behind(tmp_path, monkeypatch):
    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "digest", die)
    with pytest.raises(KeyboardInterrupt):
        make_few_shot_world(tmp_path / "world", seed=5, photos=(1, 1, 1), workers=1)
    assert list(tmp_path.iterdir()) == []


def test_other_things_are_refused_and_so_is_the_other_world(tiny_world, few_shot_world, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for there in (tmp_path, tmp_path / "thesis.tex", tiny_world):
        before = digest(there)
        with pytest.raises(FileExistsError, match="holds no few-shot world: give another folder with --out"):
            make_few_shot_world(there, seed=0, photos=(1, 1, 1))
        assert digest(there) == before
    before = digest(few_shot_world)
    with pytest.raises(FileExistsError, match="holds no demo world"):
        make_world(few_shot_world, seed=0, photos=(1, 1, 1))
    assert digest(few_shot_world) == before


def test_command_line_refuses_nonsense(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["make_few_shot_world.py", "--photos", "0", "1", "1"])
    with pytest.raises(SystemExit):
        script.main()
    assert "must be at least 1" in capsys.readouterr().err
