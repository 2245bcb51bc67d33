#!/usr/bin/env bash
# Runs the README's commands on a bare Debian 12: Debian's own Python 3.11.2, git, make and
# python3-venv, nothing else; from a clone of the last commit. As root, on any Linux.
#
#   scripts/bare.sh --demo     make demo, as a user and as root
#   scripts/bare.sh            that, then `make check` (before any Debian package is installed),
#                              and the real parts once: a browser, PostgreSQL, a keyring, a kill
#   scripts/bare.sh --all      make demo as a user and as root, then `make test`
#   scripts/bare.sh COMMAND…   any command there, as root, in the clone
#
# Then says what is left outside the clone: nothing may be in a home but pip's cache, and
# nothing in /etc that the tests made. The root is made once, in $APEX_CREDS_BARE
# (/var/cache/apex-creds/bare); every run has a copy. How this machine reaches its package
# sources (apt, pip, proxies, certificates) is copied from it.
set -euo pipefail
cd "$(dirname "$0")/.."

suite=bookworm
cache=${APEX_CREDS_BARE:-/var/cache/apex-creds/bare}
base=$cache/$suite
root=$cache/run

say() { echo "bare: $*" >&2; }

# Variables that say how packages are reached; where they name a file, it comes along.
ways() { compgen -e | grep -iE '^(pip|uv)_|^(https?|ftp|all|no)_proxy$|^ssl_cert_|_ca_bundle$' || true; }

mirror() {
    apt-get indextargets --format '$(LABEL) $(CODENAME) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' \
        2>/dev/null | awk -v suite=$suite '$1 == "Debian" && $2 == suite && $3 == "main" {print $4; exit}'
}

make_base() {
    command -v debootstrap >/dev/null || {
        say "apt-get install debootstrap"
        DEBIAN_FRONTEND=noninteractive apt-get -qq update && apt-get -qq install -y debootstrap
    } >/dev/null
    say "making $base"
    rm -rf "$base" "$base.new"
    debootstrap --variant=minbase --include=git,make,python3,python3-venv,ca-certificates \
        $suite "$base.new" $(mirror) >"$cache/debootstrap.log" || {
        say "debootstrap failed; see $cache/debootstrap.log"
        exit 1
    }
    if [ "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" = $suite ]; then
        cp -a /etc/apt "$base.new/etc/"
    fi
    [ ! -e /etc/pip.conf ] || cp /etc/pip.conf "$base.new/etc/"
    cp -a /usr/local/share/ca-certificates "$base.new/usr/local/share/" 2>/dev/null || true
    chroot "$base.new" update-ca-certificates >/dev/null 2>&1
    chroot "$base.new" useradd --create-home --shell /bin/bash someone
    mv "$base.new" "$base"
}

# What follows runs in namespaces of its own, so that mounts and processes end with it.
inside() {
    local name value
    mount --make-rprivate /
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount --rbind /sys "$root/sys"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    local -a kept=(PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8)
    for name in $(ways); do
        value=${!name}
        kept+=("$name=$value")
        if [[ $value = /* && -e $value && ! -e $root$value ]]; then
            if [ -d "$value" ]; then mkdir -p "$root$value"; else install -D /dev/null "$root$value"; fi
            mount --bind "$value" "$root$value"
        fi
    done
    exec env -i "${kept[@]}" chroot "$root" "$@"
}

in_root() { unshare --mount --pid --fork --kill-child "$0" --inside bash -euc "$1" _ "${@:2}"; }

as_root() { in_root 'export HOME=/root USER=root; cd /root/apex-creds; "$@"' "$@"; }

as_user() {
    in_root 'cd /home/someone/apex-creds
        exec setpriv --reuid someone --regid someone --init-groups env HOME=/home/someone USER=someone "$@"' "$@"
}

step() {
    local name=$1 began=$SECONDS
    shift
    say "$name"
    "$@" || { say "$name: FAILED, $((SECONDS - began)) s"; failed=1; return 0; }
    say "$name: ok, $((SECONDS - began)) s"
}

# What appeared since the mark, beside the clones.
left() {
    local found
    found=$(cd "$root" && find root home/someone ${1:+"$1"} \
        \( -path root/apex-creds -o -path home/someone/apex-creds -o -path '*/.cache/pip' \) -prune -o -newer "$root/mark" ! -type d -print)
    if [ -n "$found" ]; then
        say "left behind:" && echo "$found" >&2
        failed=1
    fi
}

if [ "${1:-}" = --inside ]; then
    shift
    inside "$@"
fi

[ "$(id -u)" = 0 ] || { say "needs root: it makes a root directory and mounts in it"; exit 1; }
mkdir -p "$cache"
exec 9>"$cache/lock"
flock -n 9 || { say "another run is at it; waiting" && flock 9; }
[ -d "$base" ] || make_base
rm -rf "$root"
trap 'rm -rf "$root"' EXIT
cp -a "$base" "$root"
cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
for home in /root /home/someone; do git clone --quiet --no-hardlinks . "$root$home/apex-creds"; done
chroot "$root" chown -R someone: /home/someone/apex-creds
touch "$root/mark"
failed=0

say "$(chroot "$root" python3 --version), $(cat "$root/etc/debian_version"), $(git rev-parse --short HEAD)"
case ${1:-} in
    --all | --demo | "")
        step "make demo, as a user" as_user make demo
        step "make demo, as root" as_root make demo
        [ -n "${1:-}" ] || step "make check" as_root make check
        left etc
        if [ "${1:-}" != --demo ]; then
            step "the environment of the tests" as_root make dev
            touch "$root/mark"
        fi
        if [ "${1:-}" = --all ]; then
            step "make test" as_root make test
        elif [ -z "${1:-}" ]; then
            step "real parts" as_root make test ARGS="-q tests/dashboard/test_browser.py \
                tests/storage/test_sql_postgres.py tests/e2e/test_gnome_keyring.py \
                tests/faults/test_put_kill.py tests/deploy/test_contained.py"
        fi
        left etc
        ;;
    *) step "$*" as_root "$@" ;;
esac
exit $failed
