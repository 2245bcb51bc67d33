#!/usr/bin/env bash
# Pins every image of this folder by digest: name:tag becomes name:tag@sha256:…, in Dockerfile
# and docker-compose.yml. Asks the images' registries, by docker buildx; run it again to renew.
#
#   deploy/pin.sh              writes
#   deploy/pin.sh --check      says what is not pinned, asks nobody; ends with 1 if anything is
set -euo pipefail
cd "$(dirname "$0")"

files=(Dockerfile docker-compose.yml)
images() {
    sed -nE 's/^ARG [A-Z_]*IMAGE=(.+)$/\1/p; s/^ *image: ([^$ ]+)$/\1/p' "${files[@]}" | sort -u
}

failed=0
for image in $(images); do
    if [ "${1:-}" = --check ]; then
        [[ $image = *@sha256:* ]] || { echo "not pinned: $image" && failed=1; }
        continue
    fi
    plain=${image%@*}
    digest=$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$plain")
    [[ $digest =~ ^sha256:[0-9a-f]{64}$ ]] || { echo "no digest for $plain" >&2 && exit 1; }
    sed -i -E "s#(IMAGE=|image: )${image//./\\.}\$#\1$plain@$digest#" "${files[@]}"
    echo "$plain@$digest"
done
exit $failed
