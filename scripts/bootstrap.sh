#!/usr/bin/env bash
# Makes a virtual environment with apex-creds in it, and what it needs from Debian.
#
#   scripts/bootstrap.sh VENV PROFILE     PROFILE: core | test | dev | bench
#
# Does nothing, quickly, when that was done for this pyproject.toml. Python: $PYTHON, else the
# first of 3.11, 3.12, 3.13 that is here. As root it installs missing Debian packages; as
# another user it says in one line what to install.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${1:-.venv}
profile=${2:-core}
stamp="$venv/.apex-creds-$profile"

say() { echo "bootstrap: $*" >&2; }

debian_packages() {
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        return 1
    fi
    say "apt-get install $*"
    export DEBIAN_FRONTEND=noninteractive
    local log
    if ! log=$({ apt-get -qq update && apt-get -qq install -y --no-install-recommends "$@"; } 2>&1); then
        echo "$log" >&2
        return 1
    fi
}

# The real keyring of the end-to-end tests and of `make demo MASTER=keyring:`.
keyring_packages() {
    [ "$(uname -s)" = Linux ] || return 0
    command -v gnome-keyring-daemon >/dev/null && command -v dbus-daemon >/dev/null && return 0
    debian_packages gnome-keyring dbus ||
        say "the tests of a real keyring will be skipped; to run them: sudo apt-get install gnome-keyring dbus"
}

# The real browser of the dashboard's tests; playwright brings none of its own.
browser_package() {
    [ "$(uname -s)" = Linux ] || return 0
    command -v chromium >/dev/null && return 0
    debian_packages chromium ||
        say "the dashboard's tests in a browser will fail; to run them: sudo apt-get install chromium"
}

# The real Prometheus of the end-to-end tests: its programs only, so that no service starts.
prometheus_programs() {
    [ "$(uname -s)" = Linux ] && ! command -v promtool >/dev/null || return 0
    [ -x "$venv/bin/promtool" ] && return 0
    local folder
    folder=$(mktemp -d)
    if fetch_prometheus "$folder" >/dev/null 2>&1; then
        cp "$folder/usr/bin/prometheus" "$folder/usr/bin/promtool" "$venv/bin/"
    else
        say "the tests of a real Prometheus will fail; to run them: sudo apt-get install prometheus"
    fi
    rm -rf "$folder"
}

# The real PostgreSQL of the tests of the SQL storage: its programs only; no cluster is made.
postgresql_programs() {
    [ "$(uname -s)" = Linux ] || return 0
    ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 && return 0
    # Else the package makes a cluster and starts it.
    if [ "$(id -u)" = 0 ] && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
        mkdir -p /etc/postgresql-common
        echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
    fi
    debian_packages postgresql ||
        say "the tests with a real PostgreSQL will fail; to run them: sudo apt-get install postgresql"
}

fetch_prometheus() (
    cd "$1" && chmod 755 .
    apt-get -qq download prometheus || {
        [ "$(id -u)" = 0 ] && apt-get -qq update && apt-get -qq download prometheus
    } && dpkg-deb -x prometheus_*.deb .
)

find_python() {
    local first
    if [ -n "${PYTHON:-}" ]; then
        echo "$PYTHON"
    else
        read -r _ first < <(scripts/pythons.sh) || true
        echo "${first:-}"
    fi
}

make_venv() {
    local python minor
    python=$(find_python)
    if [ -z "$python" ]; then
        say "no Python 3.11, 3.12 or 3.13 here; install one: sudo apt-get install python3 python3-venv"
        exit 1
    fi
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        minor=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        debian_packages "python$minor-venv" || {
            say "Python's venv module is missing; install it: sudo apt-get install python$minor-venv"
            exit 1
        }
    fi
    say "making $venv with $python"
    "$python" -m venv --clear "$venv"
}

# What the stamp is about: an environment moved or made for another checkout is not this one.
signature() { { pwd && cat pyproject.toml; } | cksum; }

[ "$profile" = core ] || keyring_packages
[ "$profile" != dev ] || browser_package
[ "$profile" = core ] || postgresql_programs
if [ -x "$venv/bin/python" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    for done in "$stamp" "$venv/.apex-creds-dev"; do
        [ "$profile" = bench ] && [ "$done" != "$stamp" ] && continue
        [ "$(cat "$done" 2>/dev/null)" = "$(signature)" ] && exit 0
    done
else
    make_venv
fi

case $profile in
    core) what=. ;;
    # The tests of deploy/ run once, in the environment that make makes by itself.
    dev) what=.[dev] && [ "$venv" != .venv ] || what=.[dev,deploy] ;;
    *) what=".[$profile]" ;;
esac
say "installing $what into $venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
    --root-user-action=ignore --editable "$what"
[ "$profile" != dev ] || prometheus_programs
signature >"$stamp"
