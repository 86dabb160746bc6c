"""Folders per class, tables, and data sets of torchvision's kind."""

import numpy as np
import pytest
import torchvision
from PIL import Image

from rar_mmdet.classification import from_torchvision, read_csv, read_folders
from rar_mmdet.errors import DatasetError, ImageReadError, MissingAssetError


def test_folders(layouts, tmp_path, caplog):
    for part in ("train", "test"):
        for number in range(2):
            layouts.photo(tmp_path / part / "fire_truck" / f"{number}.JPG")
            layouts.photo(tmp_path / part / "bus" / f"{number}.png")
    layouts.photo(tmp_path / "test" / "tram" / "0.jpg")
    layouts.text(tmp_path / "test" / "tram" / "notes.txt", "")
    layouts.text(tmp_path / "test" / "tram" / ".hidden", "")
    dataset = read_folders(tmp_path, name="vehicles")
    assert dataset.prompt_names == ("bus", "fire truck", "tram")
    assert [(e.id, e.label) for e in dataset.test] == [
        ("test/bus/0.png", 0),
        ("test/bus/1.png", 0),
        ("test/fire_truck/0.JPG", 1),
        ("test/fire_truck/1.JPG", 1),
        ("test/tram/0.jpg", 2),
    ]
    assert len(dataset.train) == 4
    assert dataset.val == ()
    assert "1 .txt" in caplog.text
    assert "1 of 3 classes have no exemplars: tram" in caplog.text
    assert dataset.test[0].read().shape == (6, 8, 3)
    before = dataset.split_sha256
    layouts.photo(tmp_path / "test" / "bus" / "2.png")
    assert read_folders(tmp_path).split_sha256 != before


def test_folders_are_never_split(layouts, tmp_path):
    layouts.photo(tmp_path / "bus" / "0.jpg")
    with pytest.raises(MissingAssetError, match="not split here"):
        read_folders(tmp_path)
    (tmp_path / "test").mkdir()
    with pytest.raises(DatasetError):
        read_folders(tmp_path)


def table(layouts, tmp_path, content, photos=("1.jpg", "2.jpg", "3.jpg")):
    for name in photos:
        layouts.photo(tmp_path / "photos" / name)
    file = tmp_path / "table.csv"
    file.write_text(content, encoding="utf-8-sig")
    return file, tmp_path / "photos"


def test_table_with_quotes_commas_and_a_byte_order_mark(layouts, tmp_path):
    content = (
        'Path,Class,Split,prompt_name\n1.jpg,"Ray, ""Electric""",train,electric ray\n'
        '2.jpg,"Ray, ""Electric""",test,electric ray\n3.jpg,Ångström_cat,test,\n'
    )
    dataset = read_csv(*table(layouts, tmp_path, content))
    assert dataset.display_names == ('Ray, "Electric"', "Ångström_cat")
    assert dataset.prompt_names == ("electric ray", "Ångström cat")
    assert [(e.id, e.label) for e in dataset.test] == [("2.jpg", 0), ("3.jpg", 1)]
    assert dataset.name == "table"


def test_table_with_labels_lets_two_classes_share_a_name(layouts, tmp_path):
    content = "path;label;class;split;id\n1.jpg;1;missile;test;first\n2.jpg;0;missile;test;second\n"
    dataset = read_csv(*table(layouts, tmp_path, content))
    assert [(e.id, e.label, e.prompt_name) for e in dataset.test] == [("first", 1, "missile"), ("second", 0, "missile")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,class\n1.jpg,a\n", "no column 'split'.*nothing is split here"),
        ("file,class,split\n1.jpg,a,test\n", "no column 'path'"),
        ("path,class,split\n", "has no rows"),
        ("path,class,split\n1.jpg,a\n", "line 2: another number of cells"),
        ("path,class,split\n1.jpg,,test\n", "line 2: class is empty"),
        ("path,class,split\n1.jpg,a,dev\n", "line 2: split 'dev'"),
        ("path,class,split,label\n1.jpg,a,test,x\n", "label 'x' must be"),
        ("path,class,split,label\n1.jpg,a,test,1\n", "no row of label 0"),
        ("path,class,split,label\n1.jpg,a,test,0\n2.jpg,b,test,0\n", "line 3: class 0 is called"),
        ("path,class,split\n../1.jpg,a,test\n", "leads out of"),
        ("path,class,split\n1.jpg,a,test\n1.jpg,a,train\n", "is in train and in test"),
        ('path,class,split\n"1.jpg,a,test\n', "line"),
    ],
)
def test_odd_tables_are_refused(layouts, tmp_path, content, message):
    with pytest.raises(DatasetError, match=message):
        read_csv(*table(layouts, tmp_path, content))


def test_photos_of_a_table_must_be_there(layouts, tmp_path):
    with pytest.raises(MissingAssetError, match=r"1 of 1 photos are not there, the first is .*4\.jpg"):
        read_csv(*table(layouts, tmp_path, "path,class,split\n4.jpg,a,test\n"))
    with pytest.raises(MissingAssetError, match="does not exist"):
        read_csv(tmp_path / "none.csv", tmp_path)


def test_torchvision(tmp_path):
    fake = torchvision.datasets.FakeData(size=6, image_size=(3, 6, 8), num_classes=3, random_offset=1)
    assert isinstance(fake[0][0], Image.Image)
    dataset = from_torchvision("fake", test=fake, class_names=["a_b", "c", "d"], display_names=["A", "C", "D"])
    assert [e.label for e in dataset.test] == [int(fake[i][1]) for i in range(6)]
    assert dataset.prompt_names == ("a b", "c", "d")
    np.testing.assert_array_equal(dataset.test[4].read(), np.asarray(fake[4][0]))
    assert dataset.test[4].id == "test/4"


def test_torchvision_image_folder(layouts, tmp_path):
    for name in ("b", "a"):
        layouts.photo(tmp_path / name / "0.jpg", 200 if name == "a" else 20)
    folder = torchvision.datasets.ImageFolder(str(tmp_path))
    dataset = from_torchvision("own", test=folder, train=None, class_names=folder.classes, labels={"test": [0, 1]})
    assert [(e.label, int(e.read().mean().round())) for e in dataset.test] == [(0, 200), (1, 20)]


class Pairs(list):
    """A data set that is a list."""


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        pytest.param(Pairs([(None, 2)]), {}, r"test\[0\]: label 2, but there are 2", id="label"),
        pytest.param(Pairs([(None, "cat")]), {}, "label 'cat' is no whole number", id="text-label"),
        pytest.param(Pairs([(None, 0.5)]), {}, "label 0.5 is no whole number", id="half"),
        pytest.param(Pairs([(None, 0)]), {"labels": {"test": [0, 1]}}, "1 photos but 2 labels", id="labels"),
        pytest.param(Pairs([(None, 0)]), {"display_names": ["x"]}, "2 class_names but 1 display_names", id="names"),
        pytest.param(
            torchvision.datasets.FakeData(size=1, transform=torchvision.transforms.ToTensor()),
            {},
            "has transforms; make it without",
            id="transforms",
        ),
    ],
)
def test_odd_data_sets_are_refused(source, options, message):
    with pytest.raises(DatasetError, match=message):
        from_torchvision("odd", test=source, class_names=["a", "b"], **options)


def test_a_photo_that_is_none_is_told_when_it_is_read():
    dataset = from_torchvision("odd", test=Pairs([("nowhere.jpg", 0)]), class_names=["a"])
    with pytest.raises((ImageReadError, MissingAssetError), match=r"nowhere\.jpg"):
        dataset.test[0].read()
