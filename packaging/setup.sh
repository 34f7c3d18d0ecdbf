#!/bin/sh
# Make the virtual environment, or bring it up to date: setup.sh DIRECTORY run|GROUP
#
# `run` installs the project itself, editable, with what it needs to run; a GROUP adds one of [dependency-groups] of
# pyproject.toml. Each leaves the stamp DIRECTORY/.ready-NAME, which the Makefile looks at.
set -eu

venv=$1
what=$2
cd "$(dirname "$0")/.."

# Prints why the interpreter $1 does not do; nothing when it does.
unsuitable() {
    "$1" - <<'PYTHON' 2>/dev/null || echo "cannot be started"
import struct, sys
if not (3, 11) <= sys.version_info[:2] < (3, 15):
    print("is version %d.%d, needed is 3.11 to 3.14" % sys.version_info[:2])
elif struct.calcsize("P") != 8:
    print("is a 32-bit program, needed is a 64-bit system (there is no wasmtime for others)")
else:
    try:
        import ensurepip, venv
    except ImportError:
        print("cannot make virtual environments (Debian: apt-get install python3-venv)")
PYTHON
}

if [ "$what" = run ]; then
    python=
    for candidate in "${PYTHON:-python3}" python3 python3.14 python3.13 python3.12 python3.11; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        reason=$(unsuitable "$candidate")
        [ -n "$reason" ] || { python=$candidate; break; }
        first=${first:-"$candidate $reason"}
    done
    if [ -z "$python" ]; then
        echo "make setup: no suitable Python: ${first:-python3 is not installed (Debian: apt-get install python3 python3-venv)}" >&2
        exit 1
    fi
    # A virtual environment whose interpreter is gone (system upgrade, moved directory) cannot be repaired.
    if [ -d "$venv" ] && ! "$venv/bin/python" -c '' 2>/dev/null; then
        rm -rf "$venv"
    fi
    [ -d "$venv" ] || "$python" -m venv "$venv"
    rm -f "$venv"/.ready-*
    echo "installing the project into $venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable .
else
    echo "installing what 'make $what' needs into $venv"
    requirements=$(mktemp)
    trap 'rm -f "$requirements"' EXIT
    # pip learned --group only in 25.1; Debian 12 brings 23.0.
    "$venv/bin/python" -c '
import sys, tomllib
with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["dependency-groups"][sys.argv[1]], sep="\n")
' "$what" >"$requirements"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$requirements"
fi
touch "$venv/.ready-$what"
