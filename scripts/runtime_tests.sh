#!/usr/bin/env bash
# The tests of apex_creds/integrations with the agent runtimes themselves, each in an environment
# of its own, .venv-runtimes/NAME, with the versions of tests/runtimes/locks/NAME.txt. They are
# run when something they depend on has changed since they passed, and it says so when they are not.
#
#   scripts/runtime_tests.sh [--always] [NAME …]
#   scripts/runtime_tests.sh --lock NAME …      resolves the newest versions, and writes the locks
set -euo pipefail
cd "$(dirname "$0")/.."

usual=(langchain fastmcp mcp openai_agents pydantic_ai agent_framework)
uv=.venv/bin/uv
always=
[ "${1:-}" != --always ] || { always=yes; shift; }

if [ "${1:-}" = --lock ]; then
    shift
    for name in "$@"; do
        $uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate \
            --group runtime-test --extra "$name" pyproject.toml -o "tests/runtimes/locks/$name.txt"
    done
    exit 0
fi

run() {
    local name=$1 venv=.venv-runtimes/$1 lock=tests/runtimes/locks/$1.txt key
    key=$(find apex_creds "$lock" tests/runtimes docs/RUNTIMES.md pyproject.toml scripts/runtime_tests.sh -type f \
        ! -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -d ' ' -f 1)
    if [ -z "$always" ] && [ "$(cat "$venv/.passed" 2>/dev/null)" = "$key" ]; then
        echo "$name: skipped, nothing it depends on has changed since it passed (${key:0:12})"
        return 0
    fi
    [ -x "$venv/bin/python" ] || .venv/bin/python -m venv "$venv"
    $uv pip sync --quiet --python "$venv/bin/python" "$lock"
    $uv pip install --quiet --no-deps --python "$venv/bin/python" --editable .
    TESTED_RUNTIME=$name "$venv/bin/python" -m pytest -q -p no:cacheprovider "tests/runtimes/test_$name.py" tests/runtimes/test_page.py
    echo "$key" >"$venv/.passed"
}

[ $# -gt 0 ] || set -- "${usual[@]}"
failed=()
pids=()
mkdir -p .venv-runtimes
for name in "$@"; do # two at a time
    run "$name" >".venv-runtimes/$name.log" 2>&1 &
    pids+=("$!:$name")
    [ "$(jobs -rp | wc -l)" -lt 2 ] || wait -n || true
done
for each in "${pids[@]}"; do
    wait "${each%%:*}" || failed+=("${each#*:}")
    echo "--- ${each#*:}"
    tail -n 40 ".venv-runtimes/${each#*:}.log"
done
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
