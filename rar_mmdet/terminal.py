"""Which log records people wait for in a terminal, and how they look there. Plain `logging`, nothing else."""

from __future__ import annotations

import logging

__all__ = ["TerminalFormatter", "belongs_in_the_terminal", "show"]

_SHOWN = "shown"  # attribute of the records that `show` makes


def show(logger: logging.Logger, text: str) -> None:
    """Log a text that people wait for: it stands in the log file, and in the terminal without date and level."""
    logger.info(text, extra={_SHOWN: True})


def belongs_in_the_terminal(record: logging.LogRecord) -> bool:
    """A filter of handlers: what `show` logged, and warnings."""
    return record.levelno >= logging.WARNING or getattr(record, _SHOWN, False)


class TerminalFormatter(logging.Formatter):
    """Shown texts as they are, warnings with their level; neither date nor name."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        text = record.getMessage().strip("\n")
        return text if getattr(record, _SHOWN, False) else f"{record.levelname.lower()}: {text}"
