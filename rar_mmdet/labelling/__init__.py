"""Photos and words in; labels, and a page to review them, out."""

from rar_mmdet.labelling.labeller import Labeller, LabelRun, WholePhoto
from rar_mmdet.labelling.words import WordList, read_words
from rar_mmdet.labelling.writers import FORMATS

__all__ = ["FORMATS", "LabelRun", "Labeller", "WholePhoto", "WordList", "read_words"]
