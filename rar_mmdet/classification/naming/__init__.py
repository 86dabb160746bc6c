"""Names without a list: finders that guess them on a few photos, and ways to recognise others by what was found."""

from rar_mmdet.classification.naming.asking import AttributeFinder, Blip2Finder, MllmFinder
from rar_mmdet.classification.naming.discovery import Discovery, DiscoveryPhoto, draw_discovery
from rar_mmdet.classification.naming.finders import CaptionFinder, GuessedFinder, NameFinder, WordNetFinder
from rar_mmdet.classification.naming.found import FoundName, FoundNames, Merging, merge, read_found, write_found
from rar_mmdet.classification.naming.ways import WAYS, Known, NamedClassifier
from rar_mmdet.classification.naming.wordnet import Nouns, read_nouns

__all__ = [
    "WAYS",
    "AttributeFinder",
    "Blip2Finder",
    "CaptionFinder",
    "Discovery",
    "DiscoveryPhoto",
    "FoundName",
    "FoundNames",
    "GuessedFinder",
    "Known",
    "Merging",
    "MllmFinder",
    "NameFinder",
    "NamedClassifier",
    "Nouns",
    "WordNetFinder",
    "draw_discovery",
    "merge",
    "read_found",
    "read_nouns",
    "write_found",
]
