"""The sets we know by name: where their files lie, how many photos they hold, which sentence describes a class.

Folders are those of CoOp's DATASETS.md (KaiyangZhou/CoOp), so that a root made for CoOp, Tip-Adapter or GDA works.
Counts were taken from the published splits themselves. A count of `None` is not checked.
"""

from __future__ import annotations

from dataclasses import dataclass

from rar_mmdet.errors import DatasetError

__all__ = ["CATALOGUE", "SetSpec", "find_spec"]

COOP_SPLITS = "CoOp's DATASETS.md (github.com/KaiyangZhou/CoOp) has the link"
COOP_TEMPLATE = "CoOp, trainers/zsclip.py, CUSTOM_TEMPLATES"


@dataclass(frozen=True)
class SetSpec:
    """One set."""

    name: str
    layout: str  # which reader reads it
    folder: str  # under the root
    photos: str  # folder of the photos, under `folder`
    split_files: tuple[str, ...]  # under `folder`: what says which photo is in which part
    classes: int
    counts: tuple[int | None, int | None, int | None]  # train, val, test
    template: str
    template_source: str = COOP_TEMPLATE
    where: str = COOP_SPLITS  # where the split files come from
    note: str = ""


def _coop(
    name: str, folder: str, photos: str, split: str, classes: int, counts: tuple[int, int, int], template: str
) -> SetSpec:
    files = (f"split_zhou_{split}.json",)
    return SetSpec(name, "coop", folder, photos, files, classes, counts, template)


_FLOWER = "a photo of a {}, a type of flower."

_SPECS = (
    _coop(
        "caltech101", "caltech-101", "101_ObjectCategories", "Caltech101", 100, (4128, 1649, 2465), "a photo of a {}."
    ),
    _coop(
        "oxford_pets",
        "oxford_pets",
        "images",
        "OxfordPets",
        37,
        (2944, 736, 3669),
        "a photo of a {}, a type of pet.",
    ),
    _coop("stanford_cars", "stanford_cars", "", "StanfordCars", 196, (6509, 1635, 8041), "a photo of a {}."),
    _coop("flowers102", "oxford_flowers", "jpg", "OxfordFlowers", 102, (4093, 1633, 2463), _FLOWER),
    _coop("food101", "food-101", "images", "Food101", 101, (50500, 20200, 30300), "a photo of {}, a type of food."),
    _coop("sun397", "sun397", "SUN397", "SUN397", 397, (15880, 3970, 19850), "a photo of a {}."),
    _coop("dtd", "dtd", "images", "DescribableTextures", 47, (2820, 1128, 1692), "{} texture."),
    _coop("eurosat", "eurosat", "2750", "EuroSAT", 10, (13500, 5400, 8100), "a centered satellite photo of {}."),
    _coop("ucf101", "ucf101", "UCF-101-midframes", "UCF101", 101, (7639, 1898, 3783), "a photo of a person doing {}."),
    SetSpec(
        "imagenet",
        "imagenet",
        "imagenet",
        "images",
        ("classnames.txt",),
        1000,
        (None, 0, 50000),  # the train part is 1,281,167 photos; parts of it are in use too
        "a photo of a {}.",
        note="the official validation set is the test part, as in CoOp; there is no val part",
    ),
    SetSpec(
        "fgvc_aircraft",
        "fgvc_aircraft",
        "fgvc_aircraft",
        "images",
        ("variants.txt", "images_variant_train.txt", "images_variant_val.txt", "images_variant_test.txt"),
        100,
        (3334, 3333, 3333),
        "a photo of a {}, a type of aircraft.",
        where="the `data` folder of fgvc-aircraft-2013b.tar.gz (robots.ox.ac.uk/~vgg/data/fgvc-aircraft) has them",
    ),
    SetSpec(
        "flowers102_official",
        "flowers_official",
        "oxford_flowers",
        "jpg",
        ("setid.mat", "imagelabels.mat", "cat_to_name.json"),
        102,
        (1020, 1020, 6149),
        _FLOWER,
        where="robots.ox.ac.uk/~vgg/data/flowers/102 has the .mat files, CoOp's DATASETS.md the link of the names",
        note="the split of the authors, used by FineR and torchvision; `flowers102` is CoOp's",
    ),
    SetSpec(
        "raf_db",
        "raf_db",
        "raf-db",
        "Image/aligned",
        ("EmoLabel/list_patition_label.txt",),  # spelt so in the release
        7,
        (12271, 0, 3068),
        "a photo of a face that shows {}.",
        template_source="ours; no published one is in common use",
        where="the `basic` folder of RAF-DB, given out by its authors on request (whdeng.cn/RAF), has it",
        note="aligned faces; the paper does not say which it used",
    ),
    SetSpec(
        "cub200",
        "cub",
        "CUB_200_2011",
        "images",
        ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"),
        200,
        (5994, 0, 5794),
        "a photo of a {}, a type of bird.",
        template_source="OpenAI's CLIP, data/prompts.md, Birdsnap",
        where="CUB_200_2011.tgz (data.caltech.edu/records/65de6-vp158) has them",
    ),
    SetSpec(
        "stanford_dogs",
        "dogs",
        "stanford_dogs",
        "Images",
        ("train_list.mat", "test_list.mat"),
        120,
        (12000, 0, 8580),
        "a photo of a {}, a type of dog.",
        template_source="ours, after CLIP's for pets",
        where="lists.tar (vision.stanford.edu/aditya86/ImageNetDogs) has them",
        note="photos of ImageNet, which pre-training may have seen",
    ),
)

CATALOGUE = {spec.name: spec for spec in _SPECS}


def find_spec(name: str) -> SetSpec:
    """The set of that name.

    Raises:
        DatasetError: there is none.
    """
    if name not in CATALOGUE:
        import difflib

        near = difflib.get_close_matches(name, CATALOGUE, n=3) or list(CATALOGUE)
        raise DatasetError(
            f"no data set {name!r}; did you mean {', '.join(near)}? For photos of your own: read_folders, read_csv, "
            "from_torchvision"
        )
    return CATALOGUE[name]
