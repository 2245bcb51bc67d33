#!/usr/bin/env bash
# Writes requirements/: every package of a run-time (runtime.txt), of one without extras
# (core.txt) and of a development environment (dev.txt), with the hashes of its files, for Python
# 3.11 to 3.14; and the SBOM of the run-time (sbom.json, CycloneDX). As `make lock` runs it: with the newest versions that
# pyproject.toml allows, without an address of any index.
#
#   scripts/lock.sh            what has to change changes
#   scripts/lock.sh --upgrade  all to their newest
set -euo pipefail
cd "$(dirname "$0")/.."

uv=${UV:-.venv/bin/uv}
mkdir -p requirements
compile() {
    local output=$1
    shift
    "$uv" pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --no-annotate --no-header --output-file "$output" "$@"
}
extras=(--extra dashboard --extra factors --extra otel --extra recovery --extra sql)
compile requirements/runtime.txt "${extras[@]}" "$@"
compile requirements/core.txt --constraint requirements/runtime.txt "$@"
compile requirements/dev.txt "${extras[@]}" --group dev --group deploy --constraint requirements/runtime.txt "$@"
"${uv%/uv}/python" scripts/audit.py --sbom
