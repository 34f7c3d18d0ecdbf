#!/bin/sh
# Verify the service unit and hold its sandbox to the promised score, without a running systemd.
set -eu

unit=$(dirname "$0")/../systemd/proplet.service
if ! command -v systemd-analyze >/dev/null 2>&1; then
    echo "the service unit is not checked: needs systemd-analyze (Debian: apt-get install systemd)" >&2
    [ -z "${CI:-}" ] || exit 1
    exit 0
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# The program is not installed where the unit expects it; any existing one does for the syntax.
sed 's|^ExecStart=/opt/proplet/bin/proplet |ExecStart=/bin/true |' "$unit" >"$scratch/proplet.service"
systemd-analyze verify --recursive-errors=no --man=no "$scratch/proplet.service"
systemd-analyze security --offline=true --threshold=15 "$unit" >"$scratch/score" || { cat "$scratch/score"; exit 1; }
sed -n 's/^→ //p' "$scratch/score"
