"""What a calibration of the crops says: Table 11, Figure 11 and a config."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rar_mmdet.calibration.crops import COLUMNS

__all__ = ["draw", "put_at", "table_text", "write_config", "write_snippet"]

Rows = Sequence[Mapping[str, Any]]


def _by_policy(rows: Rows) -> dict[tuple[str, float], list[Mapping[str, Any]]]:
    """The rows of each window and blur, in their order."""
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["window"], row["sigma"]), []).append(row)
    return groups


def table_text(rows: Rows) -> str:
    """The layout of the paper's Table 11, once for each window."""
    lines = []
    for (window, sigma), mine in _by_policy(rows).items():
        fixed = [row for row in mine if isinstance(row["scale"], float)]
        best = {name: max(row[name] for row in fixed) for name in COLUMNS}
        blur = f"{window}, blur, sigma {sigma:g} px" if sigma else f"{window}, no blur"
        lines.append(f"\n{blur:28s}" + "".join(f"{name:>9s}" for name in COLUMNS))
        for row in mine:
            is_fixed = isinstance(row["scale"], float)
            label = f"{row['scale']:.1f}" if is_fixed else "by area " + "/".join(f"{s:g}" for s in row["scale"])
            marks = ("*" if is_fixed and row[name] == best[name] else " " for name in COLUMNS)
            lines.append(f"  {label:26s}" + "".join(f"{row[n]:8.2f}{m}" for n, m in zip(COLUMNS, marks, strict=True)))
    return "\n".join(lines)


def draw(rows: Rows, path: Path) -> None:
    """Figure 11: AP over crop scale, overall and by object size, a line per window and blur; dashed: scale by area."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 4, figsize=(16, 3.6), layout="constrained")
    for panel, name in zip(panels, COLUMNS, strict=True):
        for index, ((window, sigma), mine) in enumerate(_by_policy(rows).items()):
            fixed = [row for row in mine if isinstance(row["scale"], float)]
            label = f"{window}, blur, σ = {sigma:g} px" if sigma else f"{window}, no blur"
            panel.plot([r["scale"] for r in fixed], [r[name] for r in fixed], "o-", color=f"C{index}", label=label)
            by_area = [row[name] for row in mine if not isinstance(row["scale"], float)]
            if name == "AP" and by_area:
                panel.axhline(max(by_area), color=f"C{index}", linestyle="--", label=f"{label}, scale by area")
        panel.set(title=name, xlabel="window side / longer box side")
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize="small")
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=120, metadata={"Date": None} if suffix == ".svg" else None)
    plt.close(figure)


def write_snippet(part: Mapping[str, Any], where: str, comment: str, config: Path, file: Path) -> None:
    """A config `file` that inherits `config` and sets a part at the keys `where`."""
    write_config(put_at(where, {**part, "_delete_": True}), comment, config, file)


def write_config(changes: Mapping[str, Any], comment: str, config: Path, file: Path) -> None:
    """A config `file` that inherits `config` and changes it."""
    from mmengine.config import Config

    base = Path(os.path.relpath(config, file.parent)).as_posix()
    text = Config({"_base_": [base], **changes}).pretty_text
    file.write_text(f"# {comment}.\n{text}", encoding="utf-8")


def put_at(where: str, content: Any) -> dict[str, Any]:
    """`content` below the keys 'a.b.c'."""
    for key in reversed(where.split(".")):
        content = {key: content}
    return dict(content)
