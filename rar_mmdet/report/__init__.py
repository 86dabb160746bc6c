"""Tables, figures and one page of what a run did; drawn from records and summaries, no model runs here."""

from rar_mmdet.report.runs import Run, read_run

__all__ = ["Run", "read_run"]
