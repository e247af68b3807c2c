"""The command `t2l`: one small function per subcommand, and the only place that knows all rooms.

What a user or a file gets wrong becomes one line on stderr, `t2l: <sentence>`, and exit code 2. A traceback appears
only with T2L_DEBUG=1. Everything cheap is checked before anything slow is loaded, and rooms are imported where they are
used.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from . import build, data, pictures, training
from .options import say


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0, 2 for what was refused, 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = _parse(argv)
    debug = os.environ.get("T2L_DEBUG", "") not in ("", "0")
    try:
        args.command(args)
    except KeyboardInterrupt as stopped:
        sentence = str(stopped) or "interrupted; what was finished is kept"
        return _complain(f"{sentence}; go on with: t2l {shlex.join(argv)}" if stopped.args else sentence, 130)
    except (ValueError, OSError, RuntimeError, ImportError, MemoryError) as error:
        if debug:
            raise
        return _complain(_sentence(error), 2)
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    """Options and words may come in any order, which argparse allows for a single command only."""
    parser, commands = _parser()
    if argv and argv[0] in commands:
        return commands[argv[0]].parse_intermixed_args(argv[1:])
    return parser.parse_args(argv)


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The whole command line, and the parser of each command."""
    parser = argparse.ArgumentParser(
        prog="t2l",
        description="Text2Layer: a prompt becomes foreground, background, mask and composite.",
        epilog="`t2l COMMAND --help` tells more. T2L_DEBUG=1 shows tracebacks.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(run: Any, name: str, is_hidden: bool = False) -> Any:
        help = {} if is_hidden else {"help": run.__doc__}
        added = commands.add_parser(name, description=run.__doc__, **help)
        added.set_defaults(command=run)
        return added.add_argument

    pictures.add_commands(command)
    data.add_commands(command)
    build.add_commands(command)
    training.add_commands(command)
    return parser, commands.choices


def _sentence(error: BaseException) -> str:
    """One line that says what is wrong."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = " ".join(str(error).split())
    if isinstance(error, ImportError) and (error.name or "").startswith("torch."):
        return f"this command needs torch 2.3 or newer, which has {error.name}: run `pip install --upgrade torch`"
    if isinstance(error, ImportError) and error.name and text.startswith("No module named"):
        return f"this command needs the package {error.name}: run `pip install 'text2layer[train,data,eval]'`"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a card
        found = text if isinstance(error, MemoryError) else text.split(". ")[0]
        return f"not enough memory: take a smaller --size or --count, --dtype fp16, or --device cpu {found}".rstrip()
    return text or type(error).__name__


def _complain(sentence: str, code: int) -> int:
    say(f"t2l: {sentence}")
    return code
