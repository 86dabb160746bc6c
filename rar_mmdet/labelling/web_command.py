"""A page in your browser: drop a photo, type words, see what each box is called, change the words.

    rar-mmdet web --embedded                                 # a first try, nothing to fetch
    rar-mmdet web --detector iSEE-Laboratory/llmdet_tiny --prompt 'object . animal . thing' --config CONFIG
    rar-mmdet web --whole --config CONFIG --words words.txt --port 8080

The same models as `rar-mmdet label`, loaded once; words as there. The page shows each box with what it was retrieved as
and ranked to, has the thresholds as sliders and saves the labels in each format. It is for this machine alone unless
--host says otherwise; photos go to this server, and it keeps and sends none. Ctrl-C ends it. (docs/web.md)
"""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from rar_mmdet.errors import ConfigError, HostError, VocabularyError
from rar_mmdet.files.shipped import shipped
from rar_mmdet.files.text import decode_text, read_bytes
from rar_mmdet.labelling.command import add_model_options, build_labeller
from rar_mmdet.labelling.words import read_words

__all__ = ["main"]

NEEDED = ("starlette", "uvicorn", "python_multipart")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_MEGAPIXELS = 178  # Pillow refuses to open more
EXAMPLE, EXAMPLE_WORDS = "photo1.jpg", "words.txt"  # among the demo's photos


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--words", type=Path, help="words that the page begins with, a .txt file")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 for everybody in your network (default: 127.0.0.1, this machine)"
    )
    parser.add_argument("--port", type=int, default=7860, help="(default: 7860)")
    parser.add_argument("--max-mb", type=float, default=20, help="largest file that is taken, in MB (default: 20)")
    parser.add_argument("--max-megapixels", type=float, default=50, help="largest photo that is taken (default: 50)")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Load the models and serve until Ctrl-C.

    Raises:
        RarError: something is missing or wrong, or the port is taken.
    """
    lacking = [name for name in NEEDED if find_spec(name) is None]
    if lacking:
        raise HostError(
            f"rar-mmdet web needs {' and '.join(lacking)}: pip install starlette uvicorn python-multipart   (the extra "
            "[web], 2 MB)"
        )
    import uvicorn

    from rar_mmdet.labelling.web import LabelService, Limits, build_app

    if args.max_mb <= 0 or not 0 < args.max_megapixels <= MOST_MEGAPIXELS:
        raise ConfigError(
            f"--max-mb must be above 0 and --max-megapixels in (0, {MOST_MEGAPIXELS}], got {args.max_mb:g} and "
            f"{args.max_megapixels:g}"
        )
    words = _first_words(args)
    labeller, _ = build_labeller(args, read_words(words.splitlines() or ["object"]))
    with _listen(args.host, args.port) as listener:  # before models are loaded: that takes a while
        print("loading models ...", flush=True)
        labeller.recognizer.load()
        labeller.detector.detect([np.full((64, 64, 3), 127, np.uint8)], ["a grey photo"])
        app = build_app(
            LabelService(labeller, int(args.max_megapixels * 1e6)),
            Limits(args.max_mb, args.max_megapixels),
            words=words,
            min_score=args.min_score,
            min_box_score=args.min_box_score,
            example=shipped("demo") / "photos" / EXAMPLE if args.embedded else None,
            hosts=LOOPBACK if args.host in LOOPBACK else ("*",),
        )
        host = socket.gethostname() if args.host in ("0.0.0.0", "::") else args.host
        host = f"[{host}]" if ":" in host else host
        print(f"open http://{host}:{listener.getsockname()[1]}/ in a browser; Ctrl-C ends it", flush=True)
        if args.host not in LOOPBACK:
            print("whoever reaches this address can use it; there is no password", file=sys.stderr)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=3)).run(
            sockets=[listener]
        )


def _first_words(args: argparse.Namespace) -> str:
    """The text of the words that the page begins with."""
    file = args.words or (shipped("demo") / "photos" / EXAMPLE_WORDS if args.embedded else None)
    if file is None:
        return ""
    origin = f"--words {file}"
    if file.suffix.lower() != ".txt":
        raise VocabularyError(f"{origin}: the page begins with words as text; give a .txt file, one word a line")
    return decode_text(read_bytes(str(file), origin, VocabularyError), origin, VocabularyError)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that is ours, so that a port in use is said before anything else.

    Raises:
        ConfigError: it cannot be had.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--host {host} --port {port} cannot be had: {error}. Does another server run there? Give another --port, "
            "such as 0 for any that is free"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status. Errors and Ctrl-C are the command line's to say."""
    run(parse_args(argv))
    return 0
