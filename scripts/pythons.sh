#!/usr/bin/env bash
# Prints "3.11 /path/to/python", one line for each supported minor version that is here and
# really runs (a pyenv shim may be on PATH for a version that is not selected).
set -u

runs() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2], sys.executable)' 2>/dev/null; }

for minor in 3.11 3.12 3.13 3.14; do
    for candidate in "python$minor" "$HOME/.pyenv/versions/$minor".*/bin/python \
        "${PYENV_ROOT:-/root/.pyenv}/versions/$minor".*/bin/python python3; do
        found=$(runs "$candidate") || continue
        if [ "${found%% *}" = "$minor" ]; then
            echo "$found"
            break
        fi
    done
done
