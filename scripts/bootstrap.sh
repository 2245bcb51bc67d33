#!/usr/bin/env bash
# Makes a virtual environment with apex-creds in it, and what it needs from Debian.
#
#   scripts/bootstrap.sh VENV PROFILE     PROFILE: core | test | dev | bench
#
# Does nothing, quickly, when that was done for this pyproject.toml. Python: $PYTHON, else the
# first of 3.11 to 3.14 that is here. As root it installs missing Debian packages; as
# another user it says in one line what to install. PACKAGES=no: for tests without real parts.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${1:-.venv}
profile=${2:-core}
stamp="$venv/.apex-creds-$profile"

say() { echo "bootstrap: $*" >&2; }

# $1: what a failure leaves missing. The rest is a command, heard only if it fails: in one line
# where there is no network, and by its last lines otherwise.
quietly() {
    local missing=$1 log
    shift
    log=$("$@" 2>&1) && return 0
    if grep -qiE "$no_network" <<<"$log"; then
        say "no network, or no way through it: $missing is missing. Connect, or set the proxy or mirror of apt and pip, and run this again."
    else
        tail -n 20 <<<"$log" >&2
    fi
    return 1
}
no_network='failed to establish|name resolution|could not (resolve|connect)|unable to connect|connection (refused|timed out)|timed? ?out|proxyerror|network is unreachable'

debian_packages() {
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        return 1
    fi
    say "apt-get install $*"
    quietly "$*" apt_install "$@"
}

apt_install() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update || return 1
    if [[ " $* " = *" postgresql "* ]]; then
        apt-get -qq install -y --no-install-recommends postgresql-common && no_cluster || return 1
    fi
    apt-get -qq install -y --no-install-recommends "$@"
}

# Debian's package makes a cluster and starts it, unless this file says not to: it does so
# while apt-get runs, and is then as it was.
no_cluster() {
    local conf=/etc/postgresql-common/createcluster.conf ours='# apex-creds: until apt-get is done'
    trap "sed -i '/$ours/d' $conf" EXIT
    echo "create_main_cluster = false $ours" >>"$conf"
}

# The real parts of the tests (a keyring, a database, a browser) that are not here yet.
missing_packages() {
    command -v gnome-keyring-daemon >/dev/null || echo gnome-keyring
    command -v dbus-daemon >/dev/null || echo dbus
    ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || echo postgresql
    command -v redis-check-rdb >/dev/null || echo redis-tools # the server's program, and no service
    if [ "$profile" = dev ]; then
        command -v chromium >/dev/null || echo chromium
        compgen -G '/usr/lib/*/libatomic.so.1' >/dev/null || echo libatomic1 # Playwright's own Node
    fi
    if [ "$profile" = dev ] && [ "$venv" = .venv ]; then # for the tests of deploy/
        command -v systemd-analyze >/dev/null || echo systemd
        command -v strace >/dev/null || echo strace
        command -v bwrap >/dev/null || echo bubblewrap
    fi
}

real_parts() {
    local missing
    mapfile -t missing < <(missing_packages)
    [ "$(uname -s)" = Linux ] && [ ${#missing[@]} -gt 0 ] || return 0
    debian_packages "${missing[@]}" ||
        say "tests with real parts will fail; to run them: sudo apt-get install ${missing[*]}"
}

# The real Prometheus of the end-to-end tests: its programs only, so that no service starts.
prometheus_programs() {
    [ "$profile" = dev ] && [ "${PACKAGES:-}" != no ] && [ "$(uname -s)" = Linux ] || return 0
    if command -v promtool >/dev/null || [ -x "$venv/bin/promtool" ]; then return 0; fi
    local folder
    folder=$(mktemp -d)
    if fetch_prometheus "$folder" >/dev/null 2>&1; then
        cp "$folder/usr/bin/prometheus" "$folder/usr/bin/promtool" "$venv/bin/"
    else
        say "the tests of a real Prometheus will fail; to run them: sudo apt-get install prometheus"
    fi
    rm -rf "$folder"
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
        say "no Python from 3.11 to 3.14 here; install one: sudo apt-get install python3 python3-venv"
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
signature() { { pwd && cat pyproject.toml requirements/*.txt; } | cksum; }

# The lock that this environment is made from, each file compared with its hash. Environments
# of other Pythons and of the benchmarks have the newest versions, which CI so tries too.
lock=
[ "$venv" != .venv ] || case $profile in core | dev) lock=requirements/$profile.txt ;; esac

# What is installed and not in the lock: of an older lock, or by hand.
not_locked() {
    comm -23 <("$venv/bin/python" -m pip list --format freeze --exclude-editable |
        sed 's/==.*//' | tr 'A-Z_.' 'a-z--' | sort) \
        <({ sed -n 's/^\([a-z0-9-]*\)==.*/\1/p' "$lock" && printf '%s\n' pip setuptools; } | sort)
}

[ "$profile" = core ] || [ "${PACKAGES:-}" = no ] || real_parts
if [ -x "$venv/bin/python" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    for done in "$stamp" "$venv/.apex-creds-dev"; do
        [ "$profile" = bench ] && [ "$done" != "$stamp" ] && continue
        [ "$(cat "$done" 2>/dev/null)" = "$(signature)" ] && prometheus_programs && exit 0
    done
else
    make_venv
fi

# Of work on apex-creds: all extras, and the groups of pyproject.toml (PEP 735).
what=. groups=()
if [ "$profile" != core ]; then
    what='.[dashboard,factors,otel,recovery,sql]' groups=("$profile")
fi
# The tests of deploy/ run once, in the environment that make makes by itself.
[ "$profile" != dev ] || [ "$venv" != .venv ] || groups+=(deploy)
say "installing $what${groups[*]:+, groups ${groups[*]}} into $venv"
pip_install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --root-user-action=ignore "$@"; }
if [ -n "$lock" ]; then
    quietly "what $lock lists" pip_install --require-hashes --requirement "$lock"
    mapfile -t others < <(not_locked)
    if [ ${#others[@]} -gt 0 ]; then
        say "removing what is not in $lock: ${others[*]}"
        "$venv/bin/python" -m pip uninstall --quiet --yes --root-user-action=ignore "${others[@]}"
    fi
    groups=() # the lock has them
elif [ ${#groups[@]} -gt 0 ]; then
    quietly "a pip that knows groups" pip_install 'pip>=25.1'
fi
quietly "$what" pip_install --editable "$what" "${groups[@]/#/--group=}"
signature >"$stamp"
prometheus_programs
