"""Whole photos with one label each: the paper's sets and one's own, and lists of exemplars."""

from rar_mmdet.classification.catalogue import CATALOGUE, SetSpec
from rar_mmdet.classification.dataset import SPLITS, Example, PhotoDataset
from rar_mmdet.classification.draws import (
    Draw,
    draw_first,
    draw_seeded,
    read_draw,
    stratified_sample,
    whole_train,
    write_draw,
)
from rar_mmdet.classification.own_data import from_torchvision, read_csv, read_folders
from rar_mmdet.classification.readers import read_dataset

__all__ = [
    "CATALOGUE",
    "Draw",
    "Example",
    "PhotoDataset",
    "SPLITS",
    "SetSpec",
    "draw_first",
    "draw_seeded",
    "from_torchvision",
    "read_csv",
    "read_dataset",
    "read_draw",
    "read_folders",
    "stratified_sample",
    "whole_train",
    "write_draw",
]
