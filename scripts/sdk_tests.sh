#!/usr/bin/env bash
# The tests of apex_creds/sdk with heavy SDKs as well (group sdk-all), in .venv-sdk. They are run
# when something they depend on has changed since they passed, and it says so when they are not:
# the adapters, what is below them, the tests, what is installed.
#
#   scripts/sdk_tests.sh            if something changed
#   scripts/sdk_tests.sh --always
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv-sdk
passed=$venv/.passed
key=$(find apex_creds/sdk apex_creds/leases apex_creds/redaction apex_creds/rotators apex_creds/isolation tests/sdk tests/rotators tests/isolation tests/faults/test_rotators_kill.py tests/faults/scenarios/rotators.py pyproject.toml scripts/sdk_tests.sh \
    -type f ! -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -d ' ' -f 1)

if [ "${1:-}" != --always ] && [ "$(cat "$passed" 2>/dev/null)" = "$key" ]; then
    echo "sdk tests: skipped, nothing they depend on has changed since they passed (${key:0:12})"
    exit 0
fi
[ -x "$venv/bin/python" ] || .venv/bin/python -m venv "$venv"
.venv/bin/uv pip install --quiet --python "$venv/bin/python" --group test --group sdk-all \
    --editable '.[sql]'
"$venv/bin/python" -m pytest -n auto -q tests/sdk tests/rotators/test_aws_access_key.py \
    'tests/faults/test_rotators_kill.py::test_a_rotation[aws]' \
    tests/isolation/test_sdks_behind_the_wall.py
echo "$key" >"$passed"
