"""The command `forerun`: exit codes, error sentences and Ctrl-C; the commands are in `tools`.

0 success · 1 a check failed · 2 usage, model or machine error, one sentence on stderr · 130 Ctrl-C.
Imports nothing before it has to: most of what is felt as start-up is imports.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import NoReturn

USAGE_ERROR, INTERRUPTED = 2, 130
_AGAIN_S = 0.01  # until a Ctrl-C that nobody could hear is raised again


def main() -> NoReturn:
    """Entry point of the console script."""
    try:
        _raise_again_what_is_dropped()
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader has gone; point stdout at nothing so that the final flush cannot fail too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    # All is given back; a late Ctrl-C must not turn the interpreter's own exit into a traceback.
    for number in (signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    if code == INTERRUPTED:
        _restore_terminal()
    sys.exit(code)


def _raise_again_what_is_dropped() -> None:
    """Let no Ctrl-C get lost where the interpreter drops exceptions.

    It does so in callbacks of weak references, of which importing makes one a module, and in
    finalizers: a traceback would be printed, and the command would go on.
    """
    report = sys.unraisablehook

    def hear(dropped: sys.UnraisableHookArgs) -> None:
        if dropped.exc_type is KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        else:
            report(dropped)

    signal.signal(signal.SIGALRM, signal.default_int_handler)
    sys.unraisablehook = hear


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; forerun's own errors become sentences."""
    import typer

    from forerun.errors import ForerunError
    from forerun.tools.commands import app

    # typer brings its own click or uses the package: its public name leads to the base in both.
    usage_error: type[Exception] = typer.BadParameter.__mro__[1]
    try:
        code = app(arguments, prog_name="forerun", standalone_mode=False)
    except usage_error as error:
        # Without a message it is the help that was asked for by giving nothing; it is printed.
        return _fail(_usage_sentence(error)) if str(error) else USAGE_ERROR
    except typer.Abort:
        raise KeyboardInterrupt from None
    except BrokenPipeError:
        raise
    except (ForerunError, OSError) as error:
        return _fail(str(error))
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _fail(sentence: str) -> int:
    sys.stderr.write(f"forerun: {sentence}\n")
    return USAGE_ERROR


def _usage_sentence(error: Exception) -> str:
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "forerun"
    return f"{message.strip().rstrip('.')}; see `{command} --help`"


def _restore_terminal() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream.isatty():
            stream.write("\x1b[0m\x1b[?25h")
            stream.flush()


if __name__ == "__main__":
    main()
