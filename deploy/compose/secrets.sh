#!/usr/bin/env bash
# Makes the files that docker-compose.yml takes as secrets: compose/secrets.sh [FOLDER]
#
# Each is random, and readable only by the user that its container runs as. Nothing that is
# there is changed. Run it as root (files have to be given to users 10001, 999 and 472), and
# keep a copy of master.key elsewhere: without it the vault can't be opened.
set -euo pipefail
umask 077
folder=${1:-$(dirname "$0")/../secrets}
mkdir -p "$folder"
chmod 0711 "$folder"

random() { head -c 32 /dev/urandom | base64 -w 0; }
word() { head -c 24 /dev/urandom | base64 -w 0 | tr '+/' '-_'; }

# make FILE OWNER: what is on standard input, unless the file is there.
make() {
    local path="$folder/$1"
    if [ -e "$path" ]; then
        cat >/dev/null
        echo "$path is there already" >&2
        return
    fi
    cat >"$path.new"
    chown "$2:$2" "$path.new"
    chmod 0400 "$path.new"
    mv "$path.new" "$path"
}

random | make master.key 10001
for role in owner app; do
    word | make "${role}_password" 999
    printf '*:*:apex_creds:apex_%s:%s\n' "$role" "$(cat "$folder/${role}_password")" |
        make "$role.pgpass" 10001
done
word | make postgres_password 999
word | make grafana_password 472
