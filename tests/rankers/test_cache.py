import gc
import logging
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import socket
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rar_mmdet.errors import RankerError
from rar_mmdet.rankers.cache import AnswerCache, answer_files, hash_parts, open_answers

FORK = multiprocessing.get_context("fork")


@pytest.mark.parametrize("in_memory", [True, False])
def test_round_trip(tmp_path, in_memory):
    cache = open_answers(None if in_memory else tmp_path / "deep" / "answers.sqlite")
    assert cache.get(["a"]) == {}
    assert cache.put({"a": "1", "b": "ü\n"}) == {"a": "1", "b": "ü\n"}
    assert cache.put({"a": "2"}) == {"a": "1"}  # the first text stays
    assert cache.get(["b", "a", "c"]) == {"a": "1", "b": "ü\n"}
    assert cache.put({}) == cache.get([]) == {}
    again = pickle.loads(pickle.dumps(cache))
    assert again.get(["a"]) == {"a": "1"}


def test_more_keys_than_sqlite_takes_in_one_query(tmp_path):
    cache = AnswerCache(tmp_path / "a.sqlite")
    texts = {str(i): str(-i) for i in range(2345)}
    cache.put(texts)
    assert cache.get(list(texts)) == texts


def test_pickles_and_reopens(tmp_path):
    cache = AnswerCache(tmp_path / "a.sqlite")
    cache.put({"a": "1"})
    assert pickle.loads(pickle.dumps(cache)).get(["a"]) == {"a": "1"}
    cache.close()
    assert cache.get(["a"]) == {"a": "1"}


def test_keys_do_not_collide_over_splits():
    assert hash_parts([b"ab", b"c"]) != hash_parts([b"a", b"bc"]) != hash_parts([b"abc"])


def _garbage(path):
    path.write_bytes(b"this is no database, but it is long enough to look like one " * 200)


def _truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _header(path):
    data = bytearray(path.read_bytes())
    data[:100] = bytes(100)
    path.write_bytes(data)


def _flipped_answer(path):
    data = path.read_bytes()
    assert data.count(b"answer-7!") == 1
    path.write_bytes(data.replace(b"answer-7!", b"answer-8!"))


def _no_text(path):
    data = path.read_bytes()
    path.write_bytes(data.replace(b"answer-7!", b"answer-\xff!"))


def _no_table(path):
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE answers")
    connection.close()


def _foreign(path):
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, sum TEXT, text TEXT)")


@pytest.mark.parametrize("damage", [_garbage, _truncated, _header, _flipped_answer, _no_text, _no_table, _foreign])
def test_damaged_file_is_set_aside(tmp_path, caplog, damage):
    path = tmp_path / "a.sqlite"
    cache = AnswerCache(path)
    texts = {str(i): f"answer-{i}!" + "x" * 50 for i in range(500)}
    cache.put(texts)
    cache.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    damage(path)
    with caplog.at_level(logging.WARNING):
        assert AnswerCache(path).get(list(texts)) == {}
    assert "is damaged" in caplog.text
    assert (tmp_path / "a.sqlite.damaged-0").exists()
    fresh = AnswerCache(path)
    fresh.put({"a": "1"})
    assert fresh.get(["a"]) == {"a": "1"}


def test_file_of_a_process_killed_before_it_made_the_table_is_no_damage(tmp_path):
    path = tmp_path / "a.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    assert path.stat().st_size > 0
    cache = AnswerCache(path)
    cache.put({"a": "1"})
    assert AnswerCache(path).get(["a"]) == {"a": "1"}
    assert not list(tmp_path.glob("*.damaged-*"))


def _write(path, name, count):
    cache = AnswerCache(path)
    for i in range(count):
        cache.put({f"{name}-{i}": str(i), f"shared-{i}": name})


def test_two_processes_on_one_file(tmp_path):
    path = tmp_path / "a.sqlite"
    writers = [FORK.Process(target=_write, args=(path, name, 60)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(300)
    assert [writer.exitcode for writer in writers] == [0, 0]
    cache = AnswerCache(path)
    for name in "ab":
        assert cache.get([f"{name}-{i}" for i in range(60)]) == {f"{name}-{i}": str(i) for i in range(60)}
    shared = cache.get([f"shared-{i}" for i in range(60)])
    assert len(shared) == 60
    assert set(shared.values()) <= {"a", "b"}


def test_two_processes_find_the_same_damage(tmp_path):
    path = tmp_path / "a.sqlite"
    _garbage(path)
    writers = [FORK.Process(target=_write, args=(path, name, 20)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(300)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1
    assert len(AnswerCache(path).get([f"{n}-{i}" for n in "abc" for i in range(20)])) == 60


def test_who_finds_the_damage_second_keeps_what_the_first_has_begun(tmp_path):
    path = tmp_path / "a.sqlite"
    AnswerCache(path).put({str(i): f"answer-{i}!" for i in range(9)})
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE answers SET text = 'else' WHERE key = '7'")
    connection.close()
    first, second, third = AnswerCache(path), AnswerCache(path), AnswerCache(path)
    for cache in (first, second, third):
        assert cache.get(["1"]) == {"1": "answer-1!"}
    assert first.get(["7"]) == {}
    first.put({"new": "1"})
    assert second.get(["7", "new"]) == {"new": "1"}
    third.put({"newer": "2"})  # without having met the damage
    assert AnswerCache(path).get(["new", "newer"]) == {"new": "1", "newer": "2"}
    assert len(list(tmp_path.glob("*.damaged-[0-9]"))) == 1


def test_file_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "a.sqlite").mkdir()
    with pytest.raises(RankerError, match=r"answers cannot be kept in .*a\.sqlite: unable to open"):
        AnswerCache(tmp_path / "a.sqlite").get(["1"])
    (tmp_path / "file").touch()
    with pytest.raises(RankerError, match=r"answers cannot be kept in .*file/a\.sqlite: .*another file"):
        AnswerCache(tmp_path / "file" / "a.sqlite").put({"a": "1"})


def test_locked_file_is_no_damage(tmp_path, monkeypatch):
    monkeypatch.setattr("rar_mmdet.rankers.cache._BUSY_SECONDS", 0.05)
    path = tmp_path / "a.sqlite"
    cache = AnswerCache(path)
    cache.put({"a": "1"})
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(RankerError, match="database is locked"):
        cache.put({"b": "2"})
    holder.execute("ROLLBACK")
    holder.close()
    cache.put({"b": "2"})
    assert cache.get(["a", "b"]) == {"a": "1", "b": "2"}


def _write_pairs(path):
    cache, i = AnswerCache(path), 0
    while True:
        cache.put({f"left-{i}": str(i), f"right-{i}": str(i)})
        i += 1


def test_kill_at_random_points_leaves_whole_transactions(tmp_path):
    rng = random.Random(0)
    path = tmp_path / "a.sqlite"
    for _ in range(5):
        writer = FORK.Process(target=_write_pairs, args=(path,))
        writer.start()
        time.sleep(rng.uniform(0.0, 0.15))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    cache = AnswerCache(path)
    found = cache.get([f"{side}-{i}" for side in ("left", "right") for i in range(20_000)])
    assert {k[5:] for k in found if k.startswith("left-")} == {k[6:] for k in found if k.startswith("right-")}
    assert not list(tmp_path.glob("*.damaged-*"))


# Several machines.


@pytest.fixture
def on_machine(monkeypatch):
    return lambda name: monkeypatch.setattr("socket.gethostname", lambda: name)


@pytest.mark.parametrize("given", ["answers.sqlite", "."])
def test_every_machine_writes_its_own_file_and_reads_all(tmp_path, on_machine, given):
    path, kept = tmp_path / given, []
    for machine in ("node-1", "node-2", "node.3"):
        on_machine(machine)
        answers = open_answers(path)
        for seen in kept:
            assert answers.get([seen]) == {seen: seen}
        answers.put({machine: machine})
        kept.append(machine)
    names = sorted(file.name for file in tmp_path.glob("*.sqlite"))
    assert names == ["answers.node-1.sqlite", "answers.node-2.sqlite", "answers.node-3.sqlite"]
    assert answers.get(kept) == {name: name for name in kept}


def test_a_machine_that_leaves_while_its_file_is_looked_at(tmp_path, on_machine, monkeypatch):
    """The last connection that closes moves the WAL into the file and removes it."""
    on_machine("node-1")
    open_answers(tmp_path).put({"a": "by node-1"})
    gc.collect()
    at_work = sqlite3.connect(tmp_path / "answers.node-1.sqlite")
    at_work.execute("INSERT INTO answers VALUES ('other', 'sum', 'text')")
    at_work.commit()
    assert (tmp_path / "answers.node-1.sqlite-wal").stat().st_size > 0
    copy = shutil.copyfile

    def copy_too_late(source, target):
        at_work.close()
        return copy(source, target)

    monkeypatch.setattr("rar_mmdet.rankers.cache.shutil.copyfile", copy_too_late)
    on_machine("node-2")
    assert open_answers(tmp_path).get(["a"]) == {"a": "by node-1"}
    assert not (tmp_path / "answers.node-1.sqlite-wal").exists()


def test_files_of_a_path(tmp_path, on_machine):
    on_machine("büro pc")
    for name in ("a.sqlite", "a.old.sqlite", "b.sqlite", "a.x.sqlite.damaged-0", "a.b-ro-pc.sqlite"):
        (tmp_path / name).touch()
    own, others = answer_files(tmp_path / "a.sqlite")
    assert own == tmp_path / "a.b-ro-pc.sqlite"
    assert others == [tmp_path / "a.sqlite", tmp_path / "a.old.sqlite"]
    assert answer_files(tmp_path / "new folder")[0] == tmp_path / "new folder" / "answers.b-ro-pc.sqlite"
    on_machine("")
    assert answer_files(tmp_path / "a.sqlite")[0].name == "a.machine.sqlite"


def _put_and_die(path, machine):
    socket.gethostname = lambda: machine
    open_answers(path).put({"kept": "by a machine that died"})
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_machine_left_in_its_wal_is_read_and_not_touched(tmp_path, on_machine):
    victim = FORK.Process(target=_put_and_die, args=(tmp_path / "a.sqlite", "node-1"))
    victim.start()
    victim.join(300)
    wal = tmp_path / "a.node-1.sqlite-wal"
    before = wal.read_bytes()
    assert before
    on_machine("node-2")
    answers = open_answers(tmp_path / "a.sqlite")
    assert answers.get(["kept"]) == {"kept": "by a machine that died"}
    assert wal.read_bytes() == before
    on_machine("node-1")
    assert open_answers(tmp_path / "a.sqlite").get(["kept"]) == {"kept": "by a machine that died"}


@pytest.mark.parametrize("damage", [_garbage, _truncated, _flipped_answer, _no_table])
def test_another_machines_damaged_file_is_passed_over(tmp_path, on_machine, caplog, damage):
    on_machine("node-1")
    theirs = open_answers(tmp_path / "a.sqlite")
    theirs.put({str(i): f"answer-{i}!" + "x" * 50 for i in range(500)})
    theirs.own.close()
    file = tmp_path / "a.node-1.sqlite"
    damage(file)
    before = file.read_bytes()
    on_machine("node-2")
    ours = open_answers(tmp_path / "a.sqlite")
    ours.put({"b": "2"})
    with caplog.at_level(logging.WARNING):
        assert ours.get(["7", "b"]) == {"b": "2"}
        assert ours.get(["7", "b"]) == {"b": "2"}
    assert caplog.text.count("cannot be read") == 1
    assert file.read_bytes() == before


# Threads.


@pytest.mark.parametrize("in_memory", [True, False])
def test_eight_threads_share_a_file(tmp_path, in_memory):
    answers = open_answers(None if in_memory else tmp_path / "a.sqlite")

    def work(name):
        for i in range(30):
            kept = answers.put({f"{name}-{i}": str(i), f"shared-{i}": str(name)})
            assert answers.get([f"shared-{i}", f"{name}-{i}"]) == kept
        return answers.get([f"shared-{i}" for i in range(30)])

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    assert all(result == results[0] for result in results)
    assert len(answers.get([f"{name}-{i}" for name in range(8) for i in range(30)])) == 240


def test_eight_threads_find_the_same_damage(tmp_path):
    path = tmp_path / "a.sqlite"
    _garbage(path)
    cache = AnswerCache(path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: cache.put({str(i): "x"}), range(8)))
    assert len(cache.get([str(i) for i in range(8)])) == 8
    assert len(list(tmp_path.glob("*.damaged-[0-9]"))) == 1
