"""What reaches a terminal: shown texts and warnings, nothing else."""

import io
import logging

from rar_mmdet.terminal import TerminalFormatter, belongs_in_the_terminal, show


def test_shown_texts_and_warnings_alone():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(belongs_in_the_terminal)
    handler.setFormatter(TerminalFormatter())
    logger = logging.Logger("test", logging.DEBUG)
    logger.addHandler(handler)
    logger.info("the whole config")
    show(logger, "\n| a table |\n")
    logger.warning("%d boxes are odd", 3)
    assert stream.getvalue() == "| a table |\nwarning: 3 boxes are odd\n"
