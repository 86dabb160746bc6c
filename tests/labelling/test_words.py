"""Word lists: every form says the same, and what is odd is named."""

import pytest

from rar_mmdet.errors import MissingAssetError, VocabularyError
from rar_mmdet.labelling.words import NEVER_WRITTEN, NO_PARENT, WordList, read_words

TXT = """\
# animals
cat | kitten | tom cat
dog > poodle
dog > boxer, brown
horse
    pony
    mare | filly
! shadow
"""
YAML = """\
words:
  - cat: [kitten, tom cat]
  - poodle
  - boxer, brown
  - pony
  - mare: filly
never: [shadow]
above: {poodle: dog, "boxer, brown": dog, pony: horse, mare: horse}
"""
CSV = """\
word,synonyms,above,never
cat,kitten|tom cat,,
poodle,,dog,
"boxer, brown",,dog,
pony,,horse,
mare,filly,horse,no
shadow,,,yes
"""


def meaning(words: WordList):
    """Phrase -> its class and those above; `None` for what is never written."""
    return {
        phrase: None if row == NEVER_WRITTEN else [words.classes[c] for c in words.ancestors(row)]
        for phrase, row in zip(words.phrases, words.class_of, strict=True)
    }


EXPECTED = {
    "cat": ["cat"], "kitten": ["cat"], "tom cat": ["cat"], "poodle": ["poodle", "dog"],
    "boxer, brown": ["boxer, brown", "dog"], "pony": ["pony", "horse"], "mare": ["mare", "horse"],
    "filly": ["mare", "horse"], "shadow": None,
}  # fmt: skip


@pytest.mark.parametrize(("suffix", "text"), [(".txt", TXT), (".yaml", YAML), (".csv", CSV)])
def test_every_form_says_the_same(tmp_path, suffix, text):
    file = tmp_path / f"words{suffix}"
    file.write_text(text, encoding="utf-8")
    words = read_words(file)
    assert meaning(words) == EXPECTED
    assert not words.is_flat
    assert words.describe() == ("7 classes, 8 phrases, 2 of the classes above others, 1 word that is never written")
    assert set(words.classes) == {"cat", "dog", "poodle", "boxer, brown", "horse", "pony", "mare"}


def test_a_line_of_words_with_commas_is_remarked_on():
    assert "'cat, dog': a comma parts no words, write one a line" in read_words(["cat, dog"]).describe()
    assert read_words(["cat, dog", "boxer, brown"]).describe() == "2 classes, 2 phrases"


def test_plain_words_keep_their_order_and_are_their_own_classes():
    words = read_words(["zebra", "ape  ", "", "# no word", "łoś", "🦊 fox"])
    assert words.classes == words.phrases == ("zebra", "ape", "łoś", "🦊 fox")
    assert words.class_of == (0, 1, 2, 3)
    assert words.parents == (NO_PARENT,) * 4
    assert words.is_flat


def test_a_word_with_synonyms_above_others_is_a_phrase_too():
    words = read_words(["dog | hound", "    poodle"])
    assert meaning(words) == {"dog": ["dog"], "hound": ["dog"], "poodle": ["poodle", "dog"]}
    assert meaning(read_words(["dog", "dog > poodle"])) == {"dog": ["dog"], "poodle": ["poodle", "dog"]}


def test_deep_indents():
    words = read_words(["a", "  b", "    c", "  d", "e"])
    assert meaning(words) == {"c": ["c", "b", "a"], "d": ["d", "a"], "e": ["e"]}
    assert meaning(read_words(["a > b > c", "a > d", "e"])) == meaning(words)


def test_twenty_thousand_words():
    words = read_words([f"word {i}" for i in range(20_000)])
    assert len(words.classes) == len(words.phrases) == 20_000


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "hold no word that may be written"),
        (["# only", ""], "hold no word that may be written"),
        (["! shadow"], "hold no word that may be written"),
        (["cat", "", "Cat"], r"line 3: 'Cat' is there twice, first in line 1; each word may be given once"),
        (["cat", "! cat"], "line 2: 'cat' is there twice, first in line 1"),
        (["cat", "tiger_cat", "tiger cat"], "'tiger cat' is there twice"),
        (["cat | | kitten"], "line 1: a synonym of 'cat' is empty"),
        (["dog >"], "has no word behind the last '>'"),
        (["a > b", "b > a"], "the taxonomy runs in a circle: .* > .*"),
        (["a > c", "b > c"], "'c' stands below 'b' here and below 'a' elsewhere; a word has one place"),
        (["ok", 3], "entry 1 is 3, expected a word as text"),
    ],
)
def test_odd_lists(lines, message):
    with pytest.raises(VocabularyError, match=message):
        read_words(lines)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("words.doc", "", r"end in '.doc'; expected one of .txt, .yaml, .yml, .csv"),
        ("words.yaml", "a: [", "are not YAML"),
        ("words.yaml", "words: []", "hold no words; expected a list of words"),
        ("words.yaml", "- yes", "True: None should be a word .* put them into quotes"),
        ("words.yaml", "words: [a]\nsyn: {}", "unknown key 'syn'; known are words, never, above"),
        ("words.yaml", "words: [a]\nabove: {b: a}", "`above` names 'b', which is not among the words"),
        ("words.yaml", "words: [a]\nabove: [b]", "`above` must be a mapping"),
        ("words.csv", "name,other\na,b", "have the columns name, other; expected one called word"),
        ("words.csv", "word,above\na,b\nb,a", "runs in a circle"),
    ],
)
def test_odd_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(VocabularyError, match=message):
        read_words(tmp_path / name)


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".txt", "cat | kitten @ like/cats\ndog > poodle @ like/poo dles\n! shadow\n"),
        (".yaml", "words: [{cat: kitten}, poodle]\nabove: {poodle: dog}\nnever: [shadow]\n"
                  "exemplars: {cat: like/cats, poodle: like/poo dles}\n"),
        (".csv", "word,synonyms,above,never,exemplars\ncat,kitten,,,like/cats\npoodle,,dog,,like/poo dles\n"
                 "shadow,,,yes,\n"),
    ],
)  # fmt: skip
def test_folders_of_exemplars_in_every_form(tmp_path, suffix, text):
    for name in ("cats", "poo dles"):
        (tmp_path / "like" / name).mkdir(parents=True)
    (tmp_path / f"words{suffix}").write_text(text, encoding="utf-8")
    words = read_words(tmp_path / f"words{suffix}")
    assert meaning(words) == {"cat": ["cat"], "kitten": ["cat"], "poodle": ["poodle", "dog"], "shadow": None}
    found = {words.classes[row]: folder.name for row, folder in words.exemplars}
    assert found == {"cat": "cats", "poodle": "poo dles"}
    assert words.describe().endswith("2 classes with exemplar photos")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "w.txt",
            "cat @ nowhere",
            "line 1: the exemplars of 'cat' should be a folder of photos; .* at .*nowhere",
        ),
        ("w.txt", "cat @ ", "the exemplars of 'cat' should be a folder"),
        ("w.yaml", "words: [cat]\nexemplars: [x]", "`exemplars` must be a mapping, word: a folder"),
        ("w.yaml", "words: [cat]\nexemplars: {dog: x}", "`exemplars` names 'dog', which is not among the words"),
        ("w.csv", "word,exemplars\ncat,nowhere", "line 2: the exemplars of 'cat' should be a folder"),
    ],
)
def test_odd_exemplars(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(VocabularyError, match=message):
        read_words(tmp_path / name)


def test_words_that_are_in_no_file_reach_no_folder(tmp_path):
    """Lines may come from a browser."""
    with pytest.raises(VocabularyError, match=r"exemplar photos \('cat' @ ...\) need words in a file"):
        read_words([f"cat @ {tmp_path}"])


def test_a_missing_file(tmp_path):
    with pytest.raises(MissingAssetError, match="nowhere.txt"):
        read_words(tmp_path / "nowhere.txt")
