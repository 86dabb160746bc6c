"""Words read from files and lists, and the one place where labels are decided."""

import json
import logging
import os
import random
import re
import time
import unicodedata

import pytest

from rar_mmdet.errors import AnnotationFileError, MissingAssetError, VocabularyError
from rar_mmdet.files import vocabulary
from rar_mmdet.files.text import decode_text, parse_json
from rar_mmdet.files.vocabulary import (
    check_same_vocabulary,
    clean_name,
    label_order,
    read_vocabulary,
    vocabulary_hash,
)


@pytest.fixture(autouse=True)
def _nothing_was_warned_of():
    vocabulary._warn_once.cache_clear()


def categories_of(*names, first_id=10, step=-3):
    return [{"id": first_id + step * i, "name": name} for i, name in enumerate(names)]


# Labels


def test_without_classes_labels_follow_the_file():
    assert label_order(categories_of("b", "a", "c")) == [10, 7, 4]


@pytest.mark.parametrize("seed", range(5))
def test_any_order_and_any_part_of_the_file_is_right(seed):
    rng = random.Random(seed)
    names = [f"thing_{i}" for i in range(30)]
    categories = categories_of(*names)
    rng.shuffle(categories)
    classes = rng.sample(names, rng.randint(1, 30))
    name_of = {category["id"]: category["name"] for category in categories}
    assert [name_of[i] for i in label_order(categories, classes)] == classes
    assert [name_of[i] for i in label_order(categories, [c.replace("_", "  ") for c in classes])] == classes


def test_exact_names_come_before_cleaned_ones():
    categories = categories_of("cat x", "cat_x", "dog")
    assert label_order(categories, ["cat_x", "dog", "cat x"]) == [7, 4, 10]
    assert label_order(categories, ["cat_x", "cat  x"]) == [7, 10]  # only one is left for the other spelling


def test_composed_and_decomposed_letters_are_one_name():
    nfd = unicodedata.normalize("NFD", "crème_brûlée")
    assert label_order(categories_of(nfd, "x"), ["x", "crème brûlée"]) == [7, 10]


def test_names_that_the_file_repeats_keep_its_order():
    categories = categories_of("bow", "cat", "bow", "hot_dog", "hot dog")
    assert label_order(categories, ["bow", "cat", "bow", "hot_dog", "hot dog"]) == [10, 7, 4, 1, -2]
    assert label_order(categories, ["cat", "bow", "bow"]) == [7, 10, 4]
    assert label_order(categories, ["hot dog", "hot dog"]) == [1, -2]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        pytest.param(
            ["cat", "dgo", "brid"],
            "2 of 3 classes are not among the 4 categories of a.json: 'dgo' (did you mean 'dog'?), 'brid' (did you "
            "mean 'bird'?). Write them as the file does",
            id="misspelt",
        ),
        pytest.param(["Cat"], "'Cat' (did you mean 'cat'?)", id="another-case"),
        pytest.param(["zebra"], "1 of 1 classes are not among the 4 categories of a.json: 'zebra'. Write", id="unlike"),
        pytest.param(
            ["cat", "cat"],
            "'cat' is there 2 times in `classes`, and 1 category of a.json may be meant: 'cat'",
            id="repeated",
        ),
        pytest.param(["cat", "cat "], "name each class once", id="repeated-in-another-spelling"),
        pytest.param([], "classes holds no names", id="empty"),
        pytest.param("cat", "classes is the text 'cat', expected a list of names", id="text"),
        pytest.param({"cat", "dog"}, "expected names in an order", id="set"),
        pytest.param(["cat", None], "classes: entry 1 is nothing (null)", id="null"),
        pytest.param(["cat", 3], "classes: entry 1 is 3 (int)", id="number"),
    ],
)
def test_classes_that_do_not_fit_are_refused_by_name(classes, message):
    with pytest.raises(VocabularyError, match=re.escape(message)):
        label_order(categories_of("cat", "dog", "bird", "bow"), classes, where="a.json")


@pytest.mark.parametrize(
    ("names", "classes", "message"),
    [
        (
            ["bow", "bow", "cat"],
            ["bow", "cat"],
            "'bow' is there 1 time in `classes`, and 2 categories of x may be meant: 'bow'",
        ),
        (["a_b", "a b"], ["a  b"], "2 categories of x may be meant: 'a b', 'a_b' (so for 1 of 1 classes)"),
        (["a_b", "a b"], ["a  b", " a b"], "Labels would be a guess: repeat the name as often as the file does"),
    ],
)
def test_what_can_mean_several_categories_is_refused(names, classes, message):
    with pytest.raises(VocabularyError, match=re.escape(message)):
        label_order(categories_of(*names), classes, where="x")


ODD_CATEGORIES = [
    pytest.param({"name": "dog"}, "categories[1] = {'name': 'dog'}: it has no `id`", id="no-id"),
    pytest.param({"id": "2", "name": "dog"}, "its id is '2' (str), expected a whole number", id="id-as-text"),
    pytest.param({"id": 2.5, "name": "dog"}, "its id is 2.5 (float)", id="id-as-float"),
    pytest.param({"id": True, "name": "dog"}, "its id is True (bool)", id="id-as-bool"),
    pytest.param({"id": None, "name": "dog"}, "its id is nothing (null)", id="id-null"),
    pytest.param(
        {"id": 10, "name": "dog"}, "categories[0] ('cat') and categories[1] ('dog') have the same id 10", id="twin-id"
    ),
    pytest.param({"id": 2}, "it has no `name`", id="no-name"),
    pytest.param({"id": 2, "name": None}, "its name is nothing (null)", id="name-null"),
    pytest.param({"id": 2, "name": 7}, "its name is 7 (int)", id="name-as-number"),
    pytest.param({"id": 2, "name": " _ "}, "its name is empty", id="name-blank"),
    pytest.param("dog", "categories[1] = 'dog': expected a record", id="no-record"),
    pytest.param(None, "categories[1] = None: expected a record", id="null-record"),
]


@pytest.mark.parametrize(("record", "message"), ODD_CATEGORIES)
def test_odd_categories_are_refused_by_record(record, message, tmp_path):
    categories = [*categories_of("cat"), record]
    with pytest.raises(VocabularyError, match=re.escape(message)):
        label_order(categories)
    (tmp_path / "a.json").write_text(json.dumps({"categories": categories}))
    with pytest.raises(VocabularyError, match=r"(?s)a\.json.*" + re.escape(message)):
        read_vocabulary(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("categories", "message"),
    [(None, "`categories` is nothing (null)"), ({"1": "cat"}, "expected a list of records"), ([], "is empty")],
)
def test_categories_that_are_no_list(categories, message):
    with pytest.raises(VocabularyError, match=re.escape(message)):
        label_order(categories)


# Comparing


def test_the_same_names_in_any_spelling_are_the_same():
    check_same_vocabulary(
        ["bell pepper", "crème", "cat"], ("bell_pepper", unicodedata.normalize("NFD", "crème"), " cat")
    )
    check_same_vocabulary(["anything"], None)


@pytest.mark.parametrize(
    ("names", "classes", "message"),
    [
        (
            ["a", "b", "c"],
            ["a", "b"],
            "vocabulary has 3 names, the dataset 2 classes; 'c' is in the recognizer's vocabulary alone",
        ),
        (["a", "c"], ["a", "b", "c"], "has 2 names, the dataset 3 classes; label 1 is 'c' here and 'b' there"),
        (
            ["b", "a", "c"],
            ["a", "b", "c"],
            "in another order than the dataset: 2 of 3 labels differ; label 0 is 'b' here and 'a' there",
        ),
        (["cat x", "dog", "bird"], ["dog", "cat_x", "bird"], "in another order than the dataset: 2 of 3"),
        (
            ["a", "x"],
            ["a", "b"],
            "has other names than the dataset: 1 of 2 labels differ; label 1 is 'x' here and 'b' there",
        ),
    ],
)
def test_other_names_and_other_orders_are_refused(names, classes, message):
    with pytest.raises(VocabularyError, match=re.escape(message) + ".*Point `recognizer.vocabulary` at"):
        check_same_vocabulary(names, classes)
    assert vocabulary_hash(names) != vocabulary_hash(classes)


def test_the_hash_is_of_cleaned_names_in_their_order():
    assert vocabulary_hash(["bell_pepper", "cat"]) == vocabulary_hash(("bell  pepper", "cat "))
    assert len({vocabulary_hash(n) for n in (["a", "b"], ["b", "a"], ["a b"], ["a"], [])}) == 5


# Reading


def test_names_file_keeps_order(tmp_path):
    (tmp_path / "names.txt").write_text("crème brûlée\n  fire hydrant \n\n \n", encoding="utf-8")
    for path in (tmp_path / "names.txt", str(tmp_path / "names.txt")):
        assert read_vocabulary(path) == ["crème brûlée", "fire hydrant"]


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param("café\ndog\n".encode(), id="utf-8"),
        pytest.param(b"\xef\xbb\xbf" + "café\ndog".encode(), id="utf-8-bom"),
        pytest.param("café\r\ndog\r\n\r\n".encode(), id="crlf"),
        pytest.param(unicodedata.normalize("NFD", "café\ndog\n").encode(), id="nfd"),
        pytest.param("café\ndog\n".encode("utf-16"), id="utf-16"),
        pytest.param(b"\xfe\xff" + "café\ndog\n".encode("utf-16-be"), id="utf-16-be"),
        pytest.param("café\ndog\n".encode("utf-32"), id="utf-32"),
    ],
)
def test_encodings_that_are_certain_are_read(tmp_path, raw):
    (tmp_path / "w.txt").write_bytes(raw)
    assert read_vocabulary(tmp_path / "w.txt") == ["café", "dog"]
    (tmp_path / "w.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"categories": categories_of("b", "a")}).encode())
    assert read_vocabulary(tmp_path / "w.json") == ["b", "a"]


@pytest.mark.parametrize("text", ["cat\ndog", "cat\r\ndog\n", "é\n# b\nc, d\n", "a\u2028b\x0cc", "x\n\n\n", "one"])
def test_label_i_is_line_i_of_the_file(tmp_path, text):
    path = tmp_path / "w.txt"
    path.write_text(text, encoding="utf-8", newline="")
    lines = path.read_text(encoding="utf-8").splitlines()
    names = read_vocabulary(path)
    assert names == lines[: len(names)]
    assert not any(lines[len(names) :])


def test_annotation_file_gives_its_categories_in_file_order(tmp_path):
    path = tmp_path / "ann.json"
    path.write_text(json.dumps({"categories": [{"id": 9, "name": "b"}, {"id": 2, "name": "a"}]}))
    assert read_vocabulary(str(path)) == ["b", "a"]


def test_a_list_may_repeat_names():
    assert read_vocabulary(["bow", "bow"]) == ["bow", "bow"]
    assert read_vocabulary(name for name in ("a", "b")) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "error", "match"),
    [
        pytest.param("absent.txt", None, MissingAssetError, r"absent.txt' does not exist \(working", id="missing-file"),
        pytest.param("names.csv", b"a", VocabularyError, r"\.csv.*expected \.txt", id="unknown-suffix"),
        pytest.param("names.tex", b"a", VocabularyError, "did you mean .txt", id="misspelt-suffix"),
        pytest.param("cat", None, VocabularyError, "Names themselves are given as a list", id="no-suffix"),
        pytest.param("empty.txt", b"\n", VocabularyError, "holds no names", id="blank-file"),
        pytest.param("empty.txt", b"", VocabularyError, "holds no names", id="empty-file"),
        pytest.param("empty.json", b"", VocabularyError, "is not JSON, or not complete", id="empty-json"),
        pytest.param(
            "ann.json", b"{}", VocabularyError, "no list `categories`, it holds keys", id="without-categories"
        ),
        pytest.param("ann.json", b'["cat"]', VocabularyError, r"it holds \['cat'\] \(list\)", id="json-list"),
        pytest.param("ann.json", b'{"categories": [', VocabularyError, "ann.json' is not JSON", id="json-cut-short"),
        pytest.param(
            "l.txt",
            "a\ncafé".encode("latin-1"),
            VocabularyError,
            r"l\.txt' is not UTF-8: byte 0xe9 in line 2.*iconv",
            id="latin-1",
        ),
        pytest.param(
            "l.json", b'{"categories": "\xe9"}', VocabularyError, "is not UTF-8: byte 0xe9 in line 1", id="latin-1-json"
        ),
        pytest.param("g.txt", "猫\n狗\n".encode("gbk"), VocabularyError, "g.txt' is not UTF-8", id="gbk"),
        pytest.param(
            "u.txt", "cat".encode("utf-16-le"), VocabularyError, "zero bytes.*may be UTF-16", id="utf-16-without-mark"
        ),
        pytest.param("u.txt", b"\xff\xfec", VocabularyError, "is not UTF-16-LE", id="utf-16-cut-short"),
        pytest.param(
            "b.txt",
            b"cat\n\ndog\n",
            VocabularyError,
            r"line 2 is empty \(1 such line\).*Remove the empty lines",
            id="blank-line",
        ),
        pytest.param("b.txt", b"\n \ncat", VocabularyError, r"line 1 is empty \(2 such", id="blank-lines-before"),
        pytest.param("b.txt", b"cat\n___\ndog", VocabularyError, "line 2 is empty", id="nothing-to-read"),
    ],
)
def test_bad_files(tmp_path, name, content, error, match):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=match):
        read_vocabulary(tmp_path / name)


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "w.txt").mkdir()
    with pytest.raises(VocabularyError, match="cannot be read: Is a directory. Give a file"):
        read_vocabulary(tmp_path / "w.txt")


@pytest.mark.parametrize("source", [None, 3, {"cat": 1}, {"cat"}, b"w.txt"])
def test_what_is_neither_a_path_nor_a_list(source):
    with pytest.raises(VocabularyError, match=r"vocabulary \(a list\) is .*expected"):
        read_vocabulary(source)


def test_an_empty_name_is_named_by_its_place():
    with pytest.raises(VocabularyError, match="entry 1 is ' '"):
        read_vocabulary(["cat", " "])


def test_file_backends_of_mmengine(tmp_path):
    (tmp_path / "w.txt").write_text("cat\ndog\n")
    assert read_vocabulary(tmp_path / "w.txt", backend_args={"backend": "local"}) == ["cat", "dog"]
    with pytest.raises(MissingAssetError, match="absent.txt' does not exist"):
        read_vocabulary(str(tmp_path / "absent.txt"), backend_args={"backend": "local"})
    with pytest.raises(
        VocabularyError, match="cannot be read by MMEngine's file backend .*backend_args={'backend': 'x'}"
    ):
        read_vocabulary(tmp_path / "w.txt", backend_args={"backend": "x"})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        pytest.param(
            ["# animals", "cat"], "1 line looking like a comment, taken as a name; .* line 1: '# animals'", id="comment"
        ),
        pytest.param(["cat", "dog, bird"], "1 line with a comma .* line 2: 'dog, bird'", id="commas"),
        pytest.param(["1\tcat", "2\tdog"], "2 lines with a comma or another separator", id="tabs"),
        pytest.param(
            ["Star", "dog", "star"],
            r"1 name given more than once.* 'Star' \(labels 0, 2\).*share their probability",
            id="twins",
        ),
        pytest.param(["hot_dog", "hot dog"], r"'hot_dog' \(labels 0, 1\)", id="twins-in-two-spellings"),
    ],
)
def test_odd_lines_stay_names_and_are_warned_of_once(tmp_path, caplog, lines, message):
    (tmp_path / "w.txt").write_text("\n".join(lines))
    for _ in range(3):
        assert read_vocabulary(tmp_path / "w.txt") == lines
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert re.search(message, warning.getMessage())


def test_ordinary_words_are_not_warned_of(tmp_path, caplog):
    (tmp_path / "w.txt").write_text("cat's eye\nbow_(weapon)\nT-shirt\nAC/DC\n")
    read_vocabulary(tmp_path / "w.txt")
    assert not caplog.records


@pytest.mark.parametrize("age", [0, 100])
def test_an_edited_file_is_noticed(tmp_path, age):
    """Also when size and time of the file stay the same, as they do between two quick writes."""
    text, annotations = tmp_path / "w.txt", tmp_path / "a.json"
    for names in (["cat", "dog"], ["dog", "cat"]):
        text.write_text("\n".join(names))
        annotations.write_text(json.dumps({"categories": categories_of(*names)}))
        for path in (text, annotations):
            os.utime(path, (time.time() - age,) * 2)
            assert read_vocabulary(path) == names


def test_an_unchanged_annotation_file_is_parsed_once(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"categories": categories_of("cat", "dog")}))
    monkeypatch.setattr(vocabulary, "_SETTLED_NS", 0)
    parsed = []
    monkeypatch.setattr(vocabulary, "parse_json", lambda *args: parsed.append(1) or parse_json(*args))
    for _ in range(3):
        assert read_vocabulary(path) == ["cat", "dog"]
    assert len(parsed) == 1
    time.sleep(0.02)
    path.write_text(json.dumps({"categories": categories_of("dog", "cat")}))
    assert read_vocabulary(path) == ["dog", "cat"]


def test_errors_are_of_the_class_asked_for():
    with pytest.raises(AnnotationFileError, match="a.json is not JSON"):
        parse_json(b"{", "a.json", AnnotationFileError)
    with pytest.raises(AnnotationFileError, match="a.json is not UTF-8"):
        decode_text(b"\xe9", "a.json", AnnotationFileError)


# Names


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cup_(drink)", "cup (drink)"),
        ("  fire__hydrant\t", "fire hydrant"),
        (unicodedata.normalize("NFD", "crème"), "crème"),
        ("\ufeffcat", "cat"),
        ("a\u200bb", "a b"),
        ("T-shirt", "T-shirt"),
    ],
)
def test_clean_name(name, shown):
    assert clean_name(name) == shown
    assert clean_name(clean_name(name)) == clean_name(name)


def test_clean_name_without_qualifier_and_empty():
    assert clean_name("bow_(weapon)", keep_qualifier=False) == "bow"
    with pytest.raises(VocabularyError, match="is empty once cleaned"):
        clean_name("__ ")
