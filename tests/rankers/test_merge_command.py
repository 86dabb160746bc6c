"""Answers of machines merged into one file: the union, the first of two, and files that are none."""

import sqlite3

import pytest

from rar_mmdet.cli import main
from rar_mmdet.errors import RankerError
from rar_mmdet.rankers.cache import AnswerCache, open_answers
from rar_mmdet.rankers.merge_command import merge_answers


def write(path, texts):
    cache = AnswerCache(path)
    cache.put(texts)
    cache.close()
    return path


def test_the_union_of_all_and_the_first_of_two(tmp_path, capsys):
    a = write(tmp_path / "answers.a.sqlite", {f"k{i}": f"a{i}" for i in range(2500)})
    b = write(tmp_path / "answers.b.sqlite", {"k0": "a0", "k1": "other", "k9999": "b"})
    out = write(tmp_path / "all" / "answers.sqlite", {"k2": "mine"})
    assert main(["answers", "merge", str(a), str(b), "--out", str(out)]) == 0
    told = "2500 answers added of 2 files, 1 were there, 2 conflicts (the first answer stays), 0 damaged entries"
    assert told in capsys.readouterr().out
    keys = ["k0", "k1", "k2", "k2499", "k9999"]
    assert open_answers(out).get(keys) == {"k0": "a0", "k1": "a1", "k2": "mine", "k2499": "a2499", "k9999": "b"}
    assert merge_answers([a, b], out)["added"] == 0


def test_a_machine_at_work_is_read_as_it_stands(tmp_path):
    working = AnswerCache(tmp_path / "answers.a.sqlite")
    working.put({"k": "text"})  # in its WAL, and the connection stays open
    assert merge_answers([working.path], tmp_path / "out.sqlite")["added"] == 1
    working.put({"k2": "text"})
    assert working.get(["k", "k2"]) == {"k": "text", "k2": "text"}


def test_damaged_entries_are_left_out_and_counted(tmp_path):
    file = write(tmp_path / "answers.a.sqlite", {"k": "text", "m": "more"})
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE answers SET text = 'forged' WHERE key = 'k'")
    assert merge_answers([file], tmp_path / "out.sqlite") == {"added": 1, "same": 0, "conflicts": 0, "damaged": 1}


def test_files_that_are_none(tmp_path, capsys):
    text, other = tmp_path / "notes.sqlite", tmp_path / "other.sqlite"
    text.write_text("no database " * 100)
    sqlite3.connect(other).execute("CREATE TABLE x (y)").connection.close()
    for file, reason in (
        (text, "not a database"),
        (other, "not written by this package"),
        (tmp_path / "no", "No such"),
    ):
        with pytest.raises(RankerError, match=f"cannot be read as answers of a ranker: .*{reason}"):
            merge_answers([file], tmp_path / "out.sqlite")
    assert main(["answers", "merge", str(other), "--out", str(other)]) == 2
    assert "is both a file to merge and --out" in capsys.readouterr().err
