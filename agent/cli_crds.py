"""``proplet crds``: prints the custom resource definitions that are installed with this program.

They are files, made of the manager's vocabulary and kept beside the code; reading them costs no YAML parser.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from proplet.agent.cli import OK, CliError
from proplet.agent.cli_parser import CRD_GROUPS


def crds(options: argparse.Namespace) -> int:
    """Print the definitions of one API group or of all, as one YAML text for `kubectl apply -f -`."""
    groups = CRD_GROUPS[:-1] if options.group == CRD_GROUPS[-1] else (options.group,)
    for path in (path for group in groups for path in definitions(group)):
        sys.stdout.write("---\n")
        sys.stdout.write(path.read_text(encoding="utf-8"))
    return OK


def definitions(group: str) -> list[Path]:
    """Return the files of one group, in the order of their names.

    Raises:
        CliError: the installation lacks them.
    """
    package = find_spec("proplet.crds")
    assert package is not None
    assert package.origin is not None
    found = sorted((Path(package.origin).parent / group).glob("*.yaml"))
    if not found:
        raise CliError(f"the definitions of {group} are not installed with this program; install it again")
    return found
