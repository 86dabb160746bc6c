"""From the records of a few-shot run to its numbers, its table, one sentence and two figures. No model runs here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rar_mmdet.records import RegionRecord
from rar_mmdet.scoring.accuracy import accuracy, compare_accuracy

__all__ = ["Places", "Table", "draw_offered", "draw_top_k", "places_of"]

RANKED, REORDERED = "+rar", "+rar order"  # LogLikFusion (ours), PermuteFusion (the paper's)
UNAIDED = "mllm"  # the row of the ranker alone, over all names


@dataclass(frozen=True)
class Places:
    """Where the truth of each of Q photos stands, 0 being first: by retrieval, fused, and in the ranker's own order."""

    retrieval: NDArray[np.int64]
    fused: NDArray[np.int64]
    reordered: NDArray[np.int64]
    asked: NDArray[np.bool_]  # whether a ranker gave an opinion


def places_of(records: Iterable[RegionRecord]) -> Places:
    """The places of the truth, from the records of one row, draw and seed."""
    rows = [(*record.truth_places(), record.has_opinion) for record in records]
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    return Places(table[:, 0], table[:, 1], table[:, 2], table[:, 3].astype(bool))


@dataclass(frozen=True)
class Table:
    """Shares of photos whose truth is among the first `top`, by row and shots, over seeds."""

    correct: Mapping[str, Mapping[str, Sequence[NDArray[np.bool_]]]]  # row -> shots -> (Q,) for each seed
    top: int = 1

    @staticmethod
    def from_places(places: Mapping[str, Mapping[str, Sequence[Places]]], top: int = 1) -> Table:
        """Every row of retrieval, followed by what ranking makes of it where a ranker was asked."""
        correct: dict[str, dict[str, list[NDArray[np.bool_]]]] = {}
        for row, by_shots in places.items():
            for shots, seeds in by_shots.items():
                correct.setdefault(row, {})[shots] = [one.retrieval < top for one in seeds]
                if any(one.asked.any() for one in seeds):
                    correct.setdefault(row + RANKED, {})[shots] = [one.fused < top for one in seeds]
                    correct.setdefault(row + REORDERED, {})[shots] = [one.reordered < top for one in seeds]
        return Table(correct, top)

    @property
    def shots(self) -> list[str]:
        """The columns."""
        return list(dict.fromkeys(shots for row in self.correct.values() for shots in row))

    def mean(self, row: str, shots: str) -> float:
        """The mean share over seeds."""
        return float(np.mean([seed.mean() for seed in self.correct[row][shots]]))

    def spread(self, row: str, shots: str) -> float | None:
        """The standard deviation over seeds (n - 1); `None` for a single one."""
        shares = [seed.mean() for seed in self.correct[row][shots]]
        return float(np.std(shares, ddof=1)) if len(shares) > 1 else None

    def text(self) -> str:
        """The layout of the paper's Tables 2 and 8: a row a method, a column a number of shots, in percent."""
        width = max(map(len, self.correct)) + 2
        head = f"top-{self.top} in percent"
        lines = [f"{head:{max(width, len(head) + 2)}s}" + "".join(f"{_column(s):>14s}" for s in self.shots)]
        width = max(width, len(head) + 2)
        for row, by_shots in self.correct.items():
            cells = []
            for shots in self.shots:
                if shots not in by_shots:
                    cells.append(f"{'-':>14s}")
                    continue
                spread = self.spread(row, shots)
                cell = f"{100 * self.mean(row, shots):.1f}" + ("" if spread is None else f" ±{100 * spread:.1f}")
                cells.append(f"{cell:>14s}")
            lines.append(f"{row:{width}s}" + "".join(cells))
        return "\n".join(lines)

    def verdict(self, shots: str) -> str:
        """One sentence: what ranking adds to the best row without a ranker, on the photos of the first seed."""
        models = (RANKED, REORDERED, UNAIDED)
        plain = {row: by for row, by in self.correct.items() if not row.endswith(models) and shots in by}
        if not plain:
            return ""
        best = max(plain, key=lambda row: self.mean(row, shots))
        where = "with the whole train part" if shots == "train" else f"at {_column(shots)}"
        said = f"{where.capitalize()} {best} is the best row without a ranker ({100 * self.mean(best, shots):.1f} %)"
        ranked = best + RANKED
        if ranked not in self.correct or shots not in self.correct[ranked]:
            return f"{said}; no ranker was put on it."
        pair = compare_accuracy(self.correct[ranked][shots][0], self.correct[best][shots][0])
        added = 100 * (self.mean(ranked, shots) - self.mean(best, shots))
        if pair.p_value >= 0.05:
            judged = "a difference that chance may explain"
        else:
            judged = "an improvement" if pair.difference > 0 else "a loss"
        return (
            f"{said}; ranking changes it by {added:+.1f} points ({judged}: 95 % interval {100 * pair.low:+.1f} to "
            f"{100 * pair.high:+.1f}, McNemar p = {pair.p_value:.2g}, {pair.only_first} photos gained, "
            f"{pair.only_other} lost, first seed)."
        )

    def summary(self) -> dict[str, Any]:
        """For summary.json: fractions, means over seeds; spread and a bootstrap interval of the first seed beside."""
        details: dict[str, dict[str, Any]] = {}
        for row, by_shots in self.correct.items():
            for shots, seeds in by_shots.items():
                interval = accuracy(seeds[0])
                details.setdefault(row, {})[shots] = {
                    "seeds": [float(seed.mean()) for seed in seeds],
                    "sd": self.spread(row, shots),
                    "interval_first_seed": [interval.low, interval.high],
                    "photos": len(seeds[0]),
                }
        rows = {row: {shots: self.mean(row, shots) for shots in by} for row, by in self.correct.items()}
        return {"top": self.top, "rows": rows, "details": details, "verdicts": [self.verdict(s) for s in self.shots]}


def _column(shots: str) -> str:
    return "whole train" if shots == "train" else f"{shots} shot" + ("" if shots == "1" else "s")


def draw_top_k(curves: Mapping[str, NDArray[np.int64]], path: Path, title: str) -> None:
    """Figure 9: how often the truth is among the k best of retrieval, k = 1 to 20.

    Args:
        curves: row -> places of the truth.
        path: of the picture, without suffix; PNG and SVG are written.
        title: what the data and shots are.
    """
    ks = np.arange(1, 21)
    lines = {row: (ks, [float((places < k).mean()) for k in ks]) for row, places in curves.items()}
    _draw(lines, path, title, "k, names in the shortlist", "truth among them")


def draw_offered(curves: Mapping[str, Mapping[int, float]], path: Path, title: str) -> None:
    """Figure 10: how often the ranker finds the truth, which is always among the offered names.

    Args:
        curves: label -> number of offered names -> share of photos.
        path: of the picture, without suffix; PNG and SVG are written.
        title: what the data are.
    """
    lines = {row: (list(points), list(points.values())) for row, points in curves.items()}
    _draw(lines, path, title, "names offered, the true one among them", "ranker's first is right")


def _draw(lines: Mapping[str, tuple[Any, Any]], path: Path, title: str, x_label: str, y_label: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, panel = plt.subplots(figsize=(6, 4), layout="constrained")
    for row, (x, y) in lines.items():
        panel.plot(x, [100 * value for value in y], "o-", markersize=3, label=row)
    panel.set(title=title, xlabel=x_label, ylabel=f"{y_label} (%)")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(alpha=0.3)
    panel.legend(fontsize="small")
    for suffix in (".png", ".svg"):
        figure.savefig(
            path.with_name(path.name + suffix), dpi=120, metadata={"Date": None} if suffix == ".svg" else None
        )
    plt.close(figure)
