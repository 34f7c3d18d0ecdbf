#!/bin/sh
# Have the programs that the tests talk to: test-servers.sh servers|machine|all
#
# `servers`: an MQTT broker with its clients, an OCI registry and skopeo; `machine`: also what boots a Debian under
# systemd; `all`: also a Kubernetes API server and oras, which are built (kubernetes-servers.sh, oras-cli.sh). Missing ones are installed on Debian and
# its relatives, as root or through a sudo that asks for no password; elsewhere one line says how to get them and their
# tests are skipped. With CI set that is an error. The distribution's services of these packages are neither started nor
# enabled; what was installed before is not touched.
set -eu

wanted=${1:-servers}
kubernetes=$(dirname "$0")/kubernetes-servers.sh
oras=$(dirname "$0")/oras-cli.sh
if [ "$wanted" = all ]; then # they tell why they cannot
    "$kubernetes" >/dev/null || [ -z "${CI:-}" ] || exit 1
    "$oras" >/dev/null || [ -z "${CI:-}" ] || exit 1
elif [ -z "${CI:-}" ]; then # CI builds them meanwhile
    "$kubernetes" find >/dev/null || true
    "$oras" find >/dev/null || true
fi

missing=
need() { # PROGRAM PACKAGE
    command -v "$1" >/dev/null 2>&1 || case " $missing " in *" $2 "*) ;; *) missing="$missing $2" ;; esac
}

need mosquitto mosquitto
need mosquitto_pub mosquitto-clients
need docker-registry docker-registry
need skopeo skopeo
if [ "$wanted" != servers ]; then
    need mmdebstrap mmdebstrap
    need systemd-nspawn systemd-container
    need systemd-analyze systemd
fi
[ -n "$missing" ] || exit 0

give_up() {
    if [ -n "${CI:-}" ]; then
        echo "not all tests can run: $1; needed: apt-get install$missing" >&2
        exit 1
    fi
    echo "some tests will be skipped: $1; to have them all: apt-get install$missing" >&2
    exit 0
}

command -v apt-get >/dev/null 2>&1 || give_up "this is not a Debian"
as_root=
if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null || give_up "installing packages needs root"
    as_root="sudo -n"
fi

# dpkg asks this program before it starts a service; one that exists is the administrator's and stays.
policy=/usr/sbin/policy-rc.d
ours=
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
    ours=yes
fi
log=$(mktemp)
done_with_it() {
    rm -f "$log"
    [ -z "$ours" ] || $as_root rm -f "$policy"
}
trap done_with_it EXIT
trap 'exit 1' INT TERM HUP

echo "installing$missing"
install() {
    # shellcheck disable=SC2086  # a list of packages
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends $missing \
        </dev/null >>"$log" 2>&1
}
# Package lists may be missing (fresh images) or old; updating them takes long on a Pi, so only when needed.
if ! install && ! { $as_root apt-get update --quiet=2 </dev/null >>"$log" 2>&1 && install; }; then
    grep '^E: ' "$log" | head -n 2 >&2
    give_up "apt-get failed"
fi

# Not at the next boot either. An image without systemctl still gets its services enabled, by deb-systemd-helper.
for package in $missing; do
    case $package in mosquitto | docker-registry)
        if command -v systemctl >/dev/null 2>&1; then
            $as_root systemctl disable --quiet "$package.service" 2>/dev/null || true
        else
            $as_root deb-systemd-helper disable "$package.service" >/dev/null 2>&1 || true
        fi
        ;;
    esac
done
