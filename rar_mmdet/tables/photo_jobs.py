"""Jobs of whole photos and of crops: `classify`, `names find`, `calibrate regions`, `finetune` and its demo."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rar_mmdet.calibration.command import training_set
from rar_mmdet.classification.command import recipe_of
from rar_mmdet.classification.experiment import WHOLE_TRAIN
from rar_mmdet.classification.metrics import SentenceEncoder
from rar_mmdet.classification.naming.classify import OWN_TEXTS
from rar_mmdet.classification.naming.scores import read_summaries
from rar_mmdet.classification.naming.settings import NamesSettings
from rar_mmdet.classification.results import RANKED, REORDERED
from rar_mmdet.classification.shortlisters import TEXT_ALONE
from rar_mmdet.components import build_component, find_recognizers, read_config
from rar_mmdet.errors import ConfigError, RarError
from rar_mmdet.report.runs import read_summary
from rar_mmdet.tables.jobs import Command

__all__ = ["ClassifyJob", "CropsJob", "FinetuneJob", "NamesJob", "TaughtJob"]

RAR_MMDET = "rar_mmdet"  # python -m rar_mmdet is rar-mmdet


def _is_ranked(rows: Sequence[str]) -> bool:
    return any(RANKED in row for row in rows)


def _classify(
    config: Path, how: Sequence[str], rows: Sequence[str], limit: int | None, folder: Path, options: Sequence[str] = ()
) -> Command:
    """`rar-mmdet classify` for rows as its table names them: all ranked, with options of --cfg-options, or none."""
    is_ranked = _is_ranked(rows)
    bare = dict.fromkeys(row.removesuffix(REORDERED).removesuffix(RANKED) for row in rows)
    argv = ["classify", str(config), *how, "--rows", *(row + RANKED * is_ranked for row in bare)]
    argv += [] if limit is None else ["--limit", str(limit)]
    # Without a ranker the same run serves whichever the config has.
    said = options if is_ranked else ("ranker=None",)
    return Command(RAR_MMDET, (*argv, "--out", str(folder), *(("--cfg-options", *said) if said else ())))


def _missing(config: Mapping[str, Any], folder: Path, *, with_ranker: bool) -> list[str]:
    """What `classify` needs: the data set, the encoder and, if asked, the ranker."""
    lines = []
    try:
        recipe_of({**config, "ranker": None}, folder)
    except RarError as error:
        lines.append(str(error))
    lines += build_component(config["encoder"], "encoder").missing_assets()
    if with_ranker:
        if not config.get("ranker"):
            raise ConfigError("the config has no `ranker`, which this row needs")
        lines += build_component(config["ranker"], "ranker").missing_assets()
    return lines


@dataclass(frozen=True)
class ClassifyJob:
    """`rar-mmdet classify CONFIG` over some rows, shots and seeds.

    Args:
        config: of a data set.
        folder: its --out.
        rows: as they stand in its table: 'knn', 'knn+rar', 'knn+rar order'. All ranked, or none.
        shots: exemplars of each class; `WHOLE_TRAIN` alone: the whole train part.
        seeds: of the draws.
        limit: of test photos.
        needs_gpu: whether it is of no use without a GPU.
        options: of --cfg-options, for ranked rows.
    """

    config: Path
    folder: Path
    rows: tuple[str, ...]
    shots: tuple[str, ...]
    seeds: tuple[int, ...]
    limit: int | None = None
    needs_gpu: bool = False
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    def commands(self) -> list[Command]:
        """One command."""
        memory = ["--memory", WHOLE_TRAIN] if self.shots == (WHOLE_TRAIN,) else ["--shots", *self.shots]
        how = [*memory, "--seeds", *map(str, self.seeds)]
        return [_classify(self.config, how, self.rows, self.limit, self.folder, self.options)]

    def result(self) -> Mapping[str, Any] | None:
        """Its summary, where it has all rows, shots and seeds; else the command goes on from the records.

        Raises:
            ConfigError: the folder is of another sample of photos.
        """
        summary = read_summary(self.folder)
        details = summary.get("details", {})
        if not all(self._has(row, details.get(row, {})) for row in self.rows):
            return None
        claimed = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        if claimed.get("limit") != self.limit:
            raise ConfigError(
                f"{self.folder} holds a run with --limit {claimed.get('limit')}, not {self.limit}; give another "
                "--work-dirs, or remove the folder"
            )
        return summary

    def _has(self, row: str, by_shots: Mapping[str, Any]) -> bool:
        needs_no_draw = row.partition("+")[0] in TEXT_ALONE or self.shots == (WHOLE_TRAIN,)
        wanted = 1 if needs_no_draw else len(self.seeds)
        return all(len(by_shots.get(shots, {}).get("seeds", ())) >= wanted for shots in self.shots)

    def missing(self) -> list[str]:
        """Photos and weights.

        Raises:
            ConfigError: the config has no ranker, and this job wants one.
        """
        return _missing(read_config(self.config), self.folder, with_ranker=_is_ranked(self.rows))


@dataclass(frozen=True)
class NamesJob:
    """`rar-mmdet names find` with one finder, then `rar-mmdet classify --names` with what it found.

    Args:
        config: of a data set.
        found: folder of found names.
        folder: --out of `classify`.
        finder: of `names find`.
        kind: what the set is of, for questions.
        ways: rows of `classify --names`; all ranked, or none.
        seeds: of the draws.
        source: dictionary folder (finder 'wordnet') or file of guesses ('guessed'); `None`: the user gave none.
        limit: of test photos.
        needs_gpu: whether it is of no use without a GPU.
    """

    config: Path
    found: Path
    folder: Path
    finder: str
    kind: str
    ways: tuple[str, ...]
    seeds: tuple[int, ...]
    source: Path | None = None
    limit: int | None = None
    needs_gpu: bool = False

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def _draws(self) -> tuple[int, ...]:
        return self.seeds[:1] if self.finder == "guessed" else self.seeds  # a file of guesses is one draw

    def commands(self) -> list[Command]:
        """Two commands."""
        source = str(self.source or "FOLDER")
        given = {"wordnet": ["--wordnet", source], "guessed": ["--guesses", source, "--draws", source]}
        seeds = [str(seed) for seed in self._draws]
        find = ["names", "find", str(self.config), "--finder", self.finder, *given.get(self.finder, [])]
        find += ["--seeds", *seeds, "--out", str(self.found), "--cfg-options", f"names.kind={self.kind}"]
        files = [str(self.found / f"{self.finder}-{seed}.json") for seed in seeds]
        use = _classify(self.config, ["--names", *files], self.ways, self.limit, self.folder)
        return [Command(RAR_MMDET, tuple(find)), use]

    def result(self) -> Mapping[str, Any] | None:
        """Row -> cACC and sACC, one for each draw.

        Raises:
            ResultFileError: the folder holds something else.
        """
        if not read_summary(self.folder):
            return None
        (rows,) = read_summaries([self.folder]).values()
        wanted = [f"{self.finder}, {way}" for way in self.ways]
        return rows if all(len(rows.get(row, {}).get("cACC", ())) >= len(self._draws) for row in wanted) else None

    def missing(self) -> list[str]:
        """Photos, weights, and what the finder needs.

        Raises:
            ConfigError: the config has no ranker, and this job wants one.
        """
        config = read_config(self.config)
        asks = _is_ranked(self.ways) or self.finder == "mllm"
        lines = _missing(config, self.folder, with_ranker=asks)
        sentences = NamesSettings.of(config).sentence_encoder
        if sentences != OWN_TEXTS:
            lines += [f"{line} (for sACC)" for line in SentenceEncoder(sentences).missing_assets()]
        if self.finder == "wordnet" and self.source is None:
            lines.append("WordNet 3.x: --wordnet FOLDER, such as /usr/share/wordnet of Debian's wordnet-base")
        if self.finder == "guessed" and (self.source is None or not self.source.is_file()):
            where = "" if self.source is None else f" at {self.source}"
            lines.append(
                f"guessed names{where}: --guesses FOLDER, with {self.config.stem}.json: FineR's released file of this "
                "set (github.com/OatmealLiu/FineR, experiments/*/guess/*_llm_gussed_names_3.json)"
            )
        return lines


@dataclass(frozen=True)
class CropsJob:
    """`rar-mmdet calibrate regions`.

    Args:
        config: with a recogniser.
        folder: its --out.
        num_images: only the first so many training images.
        needs_gpu: whether it is of no use without a GPU.
    """

    config: Path
    folder: Path
    num_images: int | None = None
    needs_gpu: bool = True

    @property
    def name(self) -> str:
        """Folder and what is found in it."""
        return f"{self.folder.name} (crops)"

    def commands(self) -> list[Command]:
        """One command."""
        subset = [] if self.num_images is None else ["--num-images", str(self.num_images)]
        argv = ("calibrate", "regions", str(self.config), "--out", str(self.folder), *subset)
        return [Command(RAR_MMDET, argv)]

    def result(self) -> Mapping[str, Any] | None:
        """Its rows.

        Raises:
            ConfigError: table.json is not what the command writes.
        """
        file = self.folder / "table.json"
        if not file.is_file():
            return None
        try:
            rows = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{file} is not JSON: {error}; remove it") from error
        return {"rows": rows}

    def missing(self) -> list[str]:
        """Training images and weights."""
        config = read_config(self.config)
        lines = []
        try:
            training_set(config, None, None)
        except RarError as error:
            lines += [str(error), *(f"how to get it: {line}" for line in config.get("how_to_get", []))]
        for where, recognizer in find_recognizers(config.get("model", {})):
            lines += build_component(recognizer["encoder"], f"{where}.encoder").missing_assets()
        return lines


@dataclass(frozen=True)
class TaughtJob:
    """`rar-mmdet finetune data` in the paper's mode, then `rar-mmdet finetune train` on it.

    Args:
        data: config of the data set that teaches.
        config: of the training.
        records: --out of the data.
        folder: --out of the training.
    """

    data: Path
    config: Path
    records: Path
    folder: Path
    needs_gpu: bool = True

    @property
    def name(self) -> str:
        """The training's name."""
        return f"{self.folder.name} (training)"

    def commands(self) -> list[Command]:
        """Two commands."""
        data = ("finetune", "data", str(self.data), "--mode", "paper", "--out", str(self.records))
        records = f"records={self.records / 'records.jsonl'}"
        train = ("finetune", "train", str(self.config), "--out", str(self.folder), "--cfg-options", records)
        return [Command(RAR_MMDET, data), Command(RAR_MMDET, train)]

    def result(self) -> Mapping[str, Any] | None:
        """Its summary, which a training writes last."""
        return read_summary(self.folder) or None

    def missing(self) -> list[str]:
        """Photos, the retriever's weights and the base."""
        lines = _missing(read_config(self.data), self.records, with_ranker=False)
        return lines + build_component(read_config(self.config)["ranker"], "ranker").missing_assets()


@dataclass(frozen=True)
class FinetuneJob:
    """The fine-tuning demo: a tiny ranker, taught on two sources.

    Args:
        script: demo/run_finetune_demo.py.
        folder: its --work-dir.
    """

    script: Path
    folder: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def needs_gpu(self) -> bool:
        """It runs anywhere."""
        return False

    def commands(self) -> list[Command]:
        """One script."""
        return [Command(str(self.script), ("--work-dir", str(self.folder)))]

    def result(self) -> Mapping[str, Any] | None:
        """Its summary: rank-1 as fractions."""
        return read_summary(self.folder) or None

    def missing(self) -> list[str]:
        """The script itself."""
        return [] if self.script.is_file() else [f"{self.script}: the demo's scripts are in a checkout of rar_mmdet"]
