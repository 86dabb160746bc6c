"""From shortlists of whole photos to files of records, ranked or not; what few-shot tables and found names share."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from rar_mmdet.classification.dataset import Example, PhotoDataset
from rar_mmdet.classification.vectors import PhotoVectors, whole_photo
from rar_mmdet.encoders.base import Encoder
from rar_mmdet.errors import ConfigError
from rar_mmdet.fusion import Fusion, LogLikFusion
from rar_mmdet.rankers import Ranker
from rar_mmdet.records import RegionRecord, describe_regions, write_records
from rar_mmdet.regions import RegionCropper
from rar_mmdet.structures import Ranking, Recognition, Shortlist

__all__ = ["Recipe", "Recorder", "claim_folder"]

PHOTOS_PER_QUESTION = 256  # ranked together
HELD_BYTES = 1 << 30  # crops for the ranker up to this size are cut once and held for all rows (ours)


@dataclass(frozen=True)
class Recipe:
    """The parts of a run."""

    dataset: PhotoDataset
    encoder: Encoder
    cropper: RegionCropper = dataclasses.field(default_factory=lambda: RegionCropper(window="cover"))
    ranker: Ranker | None = None
    ranker_cropper: RegionCropper = dataclasses.field(default_factory=lambda: RegionCropper(window="pad"))
    fusion: Fusion = dataclasses.field(default_factory=LogLikFusion)
    num_candidates: int = 5  # K (5 in the paper, Table 5)
    descriptions: tuple[tuple[str, ...], ...] | None = None  # sentences of each class, for the row of that name
    vision_encoder: Encoder | None = None  # of photos alone, for the row 'vision-knn'


def claim_folder(out: Path, settings: Mapping[str, Any]) -> None:
    """Write what a run is to `out`/run.json, or check that it is the run that is there.

    Raises:
        ConfigError: it is another one; the settings that differ are named.
    """
    file = out / "run.json"
    wanted = json.loads(json.dumps(settings))
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
        other = [key for key in {**wanted, **found} if wanted.get(key) != found.get(key)]
        if other:
            raise ConfigError(
                f"{out} holds a run with other settings ({', '.join(sorted(other))}): give another --out, or remove "
                "the folder"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"run.json.{os.getpid()}.part")  # several processes may begin one run
    part.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
    os.replace(part, file)


class Recorder:
    """Writes the records of one list of photos.

    Args:
        recipe: ranker, croppers, fusion and K.
        test: the photos.
        photos: their vectors, of which the sizes are used.
    """

    def __init__(self, recipe: Recipe, test: Sequence[Example], photos: PhotoVectors) -> None:
        self.recipe, self.test, self._photos = recipe, list(test), photos
        self._crops: Tensor | None = None

    def write(
        self,
        file: Path,
        shortlist: Shortlist,
        names: Sequence[str],
        *,
        truth: Sequence[int] | None,
        is_ranked: bool,
        num_candidates: int | None = None,
    ) -> None:
        """The records of all photos, ranked a few at a time; the file is there when it is whole.

        Args:
            file: to write.
            shortlist: of all photos.
            names: what the ids of the shortlist mean.
            truth: place of each photo's true name in `names`; `None` where the names were found, and the truth's own
                name is all there is.
            is_ranked: whether the ranker is asked.
            num_candidates: K, where it is not the recipe's.
        """
        self._photos(self.test)  # their sizes stand in the records
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.{os.getpid()}.part")
        part.unlink(missing_ok=True)
        steps = range(0, len(self.test), PHOTOS_PER_QUESTION)
        bar = tqdm(total=len(self.test), desc=file.stem, unit="photo", disable=None, leave=False)
        with bar:
            for start in steps:
                rows = slice(start, start + PHOTOS_PER_QUESTION)
                own = None if truth is None else truth[rows]
                records = list(self._records(rows, shortlist[rows], names, own, is_ranked, num_candidates))
                write_records(part, records, append=True)
                bar.update(len(records))
        os.replace(part, file)

    def _records(
        self,
        rows: slice,
        shortlist: Shortlist,
        names: Sequence[str],
        truth: Sequence[int] | None,
        is_ranked: bool,
        num_candidates: int | None,
    ) -> Iterator[RegionRecord]:
        examples = self.test[rows]
        candidates = shortlist.head(num_candidates or self.recipe.num_candidates)
        ranker = self.recipe.ranker
        if is_ranked and ranker is not None:
            ranking = ranker.rank(self._ranker_crops(rows), candidates, names)
        else:
            ranking = Ranking.identity(len(examples), candidates.category_ids.shape[1])
        fused = self.recipe.fusion(shortlist, ranking)
        sizes = [self._photos.hw(example) for example in examples]
        recognition = Recognition(
            boxes_xyxy=torch.tensor([[0.0, 0.0, width, height] for height, width in sizes]),
            box_scores=torch.ones(len(examples)),
            shortlist=shortlist,
            ranking=ranking,
            fused=fused,
            scores=fused.new_zeros(0),
            category_ids=torch.zeros(0, dtype=torch.int64),
            region_ids=torch.zeros(0, dtype=torch.int64),
            category_names=tuple(names),
        )
        for example, record in zip(examples, describe_regions(recognition, "", truth=truth), strict=True):
            true_name = record.truth_name if truth is not None else example.display_name
            yield dataclasses.replace(record, image=example.id, region=0, file=example.path, truth_name=true_name)

    def _ranker_crops(self, rows: slice) -> Tensor:
        """(B, 3, S, S) uint8; all are cut at once and held where they are few."""
        ranker = self.recipe.ranker
        assert ranker is not None, "asked for by rows that are ranked"
        cropper = self.recipe.ranker_cropper.with_size(ranker.crop_size)
        if len(self.test) * 3 * ranker.crop_size**2 > HELD_BYTES:
            return torch.cat([whole_photo(example, cropper)[0] for example in self.test[rows]])
        if self._crops is None:
            self._crops = torch.cat([whole_photo(example, cropper)[0] for example in self.test])
        return self._crops[rows]
