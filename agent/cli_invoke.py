"""``proplet invoke``: a latent task is called, its result comes on standard output, its error on standard error."""

import argparse
import sys
from typing import Any, Final

from proplet.agent.cli import FAILED, OK, USAGE, CliError
from proplet.agent.cli_session import Session, run
from proplet.agent.config_values import parse_duration
from proplet.agent.render import one_line

_LONGEST_S: Final = 30.0
# As `proplet run` says it, where the guest has no status of its own.
_STATUS: Final = {"trap": 134, "timeout": 124, "cpu_limit": 124}


def invoke(options: argparse.Namespace) -> int:
    """Call a latent task; return the guest's own status, 124 after a time limit, 134 after a trap."""
    return run(options, _invoke)


def _invoke(session: Session, options: argparse.Namespace) -> int:
    answer = session.invoke(
        options.namespace, options.name, options.args, dict(map(_variable, options.env)), _timeout(options.timeout)
    )
    results = str(answer.get("results") or "")
    if results:
        sys.stdout.write(results if results.endswith("\n") else f"{results}\n")
        sys.stdout.flush()
    error = answer.get("error")
    if error is None:
        return OK
    sys.stderr.write(f"proplet: error: {one_line(error)}\n")
    return _status(answer)


def _status(answer: dict[str, Any]) -> int:
    own = answer.get("exit_code")
    if isinstance(own, int) and own & 0xFF:
        return own & 0xFF
    return _STATUS.get(str(answer.get("reason")), FAILED)


def _timeout(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise CliError(f"--timeout: {error}", USAGE) from error
    if not 0 < seconds <= _LONGEST_S:
        raise CliError(f"--timeout {text}: an invocation is waited for at most {_LONGEST_S:g} s", USAGE)
    return seconds


def _variable(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise CliError(f"--env {text}: write NAME=VALUE", USAGE)
    return name, value
