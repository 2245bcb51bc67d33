#!/usr/bin/env bash
# Follows README.md as a newcomer does: a clone of this repository's last commit, an empty
# HOME, none of the caller's environment, and where bubblewrap is there (apt-get install
# bubblewrap) a container of its own: another user, no file but the system's and the clone.
#
#   scripts/newcomer.sh                  every command but `make test`
#   scripts/newcomer.sh --until TEXT     until a command prints TEXT, for example
#                                        "<CredentialHandle": a plugin has a handle
#   scripts/newcomer.sh --page docs/QUICKSTART.md
#   scripts/newcomer.sh --plain ...      without a container
#
# Says how long each command took.
set -euo pipefail
cd "$(dirname "$0")/.."

contained=yes
if [ "${1:-}" = --plain ]; then
    contained=no
    shift
fi

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
mkdir -m 700 "$place/home"
git clone --quiet --bare . "$place/apex-creds.git"

# $1: where the clone comes from. The rest goes to newcomer.py.
follow='
set -eu
began=$(date +%s)
git clone --quiet "$1" apex-creds
shift
echo "a clone, $(python3 --version)"
python3 apex-creds/scripts/newcomer.py "$@"
echo "from git clone on: $(($(date +%s) - began)) seconds"
'

if [ $contained = yes ] && command -v bwrap >/dev/null && bwrap --unshare-user --ro-bind / / true 2>/dev/null; then
    echo "in a container: another user, nothing but /usr, /etc and the clone"
    exec_in=(
        bwrap --unshare-all --share-net --die-with-parent --uid 1000 --gid 1000 --clearenv
        --ro-bind /usr /usr --ro-bind /etc /etc --ro-bind-try /opt /opt
        --symlink usr/bin /bin --symlink usr/sbin /sbin
        --symlink usr/lib /lib --symlink usr/lib64 /lib64
        --proc /proc --dev /dev --tmpfs /tmp --bind "$place/home" /home/newcomer
        --ro-bind "$place/apex-creds.git" /apex-creds.git --chdir /home/newcomer
        --setenv HOME /home/newcomer --setenv USER newcomer
        --setenv PATH /usr/local/bin:/usr/bin:/bin --setenv LANG C.UTF-8
    )
    source=/apex-creds.git
else
    echo "no container: an empty home and environment"
    exec_in=(
        env -i --chdir "$place/home" HOME="$place/home" USER=newcomer
        PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8
    )
    source=$place/apex-creds.git
fi
"${exec_in[@]}" bash -c "$follow" _ "$source" "$@"
