#!/usr/bin/env bash
# Unpacks the releases of requirements-megatron.txt (or those named as arguments) into .cache/megatron/<version>/,
# each complete or not there, so that tests can put any of them on PYTHONPATH before the installed one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

releases=("$@")
if [[ ${#releases[@]} -eq 0 ]]; then
    mapfile -t releases < <(sed -n 's/^megatron-core==\([^ ]*\).*/\1/p' requirements-megatron.txt)
fi

mkdir -p .cache/megatron
for release in "${releases[@]}"; do
    target=.cache/megatron/$release
    if [[ -d $target ]]; then continue; fi
    pinned=$(grep "^megatron-core==$release " requirements-megatron.txt) || {
        echo "setup_megatron: release $release is not pinned in requirements-megatron.txt; add it with its hashes." >&2
        exit 1
    }
    echo "Unpacking megatron-core $release into $target"
    unfinished=$(mktemp -d .cache/megatron/unfinished.XXXXXX)
    trap 'rm -rf "$unfinished"' EXIT
    .venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps --require-hashes \
        --only-binary :all: --target "$unfinished/site" -r <(echo "$pinned")
    mv -T "$unfinished/site" "$target"
    rm -rf "$unfinished"
done
