"""A ranker's report as a table that people read at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["report_table"]

_REGIONS = {
    "ok": "ranked completely",
    "partial": "ranked in part",
    "fallback": "no usable answer",
    "skipped": "not asked",
}
_QUESTIONS = {
    "asked": "put to the model",
    "cached": "known from before",
    "deduped": "equal to another",
    "null_asked": "about a blank crop",
}


def report_table(report: Mapping[str, Any]) -> str:
    """A few lines from `Ranker.report()`, added up over processes or not; a report without counts is one line.

    >>> print(report_table({"ask": "letter", "regions": 10, "ok": 8, "skipped": 2, "asked": 5, "cached": 3}))
    ranker, asked by letter: 10 regions
      ranked completely          8   80.0 %
      not asked                  2   20.0 %
    questions: 8
      put to the model           5   62.5 %
      known from before          3   37.5 %
    """
    ask, prompt, regions = report.get("ask", "?"), report.get("prompt"), int(report.get("regions", 0))
    title = f"ranker, asked by {ask}" + (f" with prompt {prompt!r}" if prompt else "")
    if not regions:
        return f"{title}: no regions"
    lines = [f"{title}: {regions} regions", *_rows(report, _REGIONS, regions)]
    questions = sum(int(report.get(name, 0)) for name in _QUESTIONS if name != "null_asked")
    if questions:
        lines += [f"questions: {questions}", *_rows(report, _QUESTIONS, questions)]
    seconds = float(report.get("seconds", 0.0))
    if seconds > 0:
        lines.append(f"seconds: {seconds:.1f}, {regions / seconds:.1f} regions/s")
    if cost := report.get("cost"):
        lines.append(
            f"cost: {cost['spent']:.4g} for {cost['requests']:,} requests, {cost['input_tokens']:,} input and "
            f"{cost['output_tokens']:,} output tokens"
        )
    return "\n".join(lines)


def _rows(report: Mapping[str, Any], names: Mapping[str, str], total: int) -> list[str]:
    counts = [(text, int(report.get(name, 0))) for name, text in names.items()]
    return [f"  {text:20s}{count:8d}  {100 * count / total:5.1f} %" for text, count in counts if count]
