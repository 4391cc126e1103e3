#!/usr/bin/env bash
# Brings .venv in line with requirements*.txt and the packaging files; returns at once when it already is.
# PYTHON=/path/to/python chooses the interpreter of a new .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "setup_venv: $*" >&2; exit 1; }

supported() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.12 python3.13 python3}; do
        if supported "$candidate"; then echo "$candidate"; return; fi
    done
    fail "no Python >= 3.12 among: ${PYTHON:-python3.12 python3.13 python3}." \
        "Megatron-LM needs it from 0.17 on. Install one (apt-get install python3.12 python3.12-venv, or pyenv" \
        "install 3.12), or name it: PYTHON=/path/to/python3.12 make ..."
}

stamp=.venv/.installed
wanted=$(cat requirements.txt requirements-tasks.txt requirements-dev.txt setup.py pyproject.toml | sha256sum | cut -d' ' -f1)
if [[ -x .venv/bin/python && -f $stamp && $(<"$stamp") == "$wanted" ]]; then exit 0; fi

for tool in g++ make; do
    command -v "$tool" >/dev/null || fail "$tool was not found. A Megatron-LM checkout compiles its dataset helpers" \
        "with it. Install it (apt-get install build-essential) and run the command again."
done

if [[ ! -x .venv/bin/python ]] || ! supported .venv/bin/python; then
    python=$(find_python)
    "$python" -m venv --clear .venv ||
        fail "'$python -m venv' failed. On Debian and Ubuntu: apt-get install python3.12-venv."
fi
echo "Installing the pinned requirements into .venv (the first time torch alone is some 3 GB; later runs skip this)"
rm -f "$stamp"
.venv/bin/python -m pip install -qq --disable-pip-version-check -r requirements-dev.txt ||
    fail "pip could not install requirements-dev.txt; its message is above. The next run continues from here."
.venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable . ||
    fail "pip could not install this repository itself (pip install --editable .); its message is above."
echo "$wanted" > "$stamp"
