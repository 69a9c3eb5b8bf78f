#!/bin/sh
# Writes requirements.txt: names and versions only, so that no index is recorded.
set -eu
cd "$(dirname "$0")/.."
"$(./scripts/uv.sh)" pip compile pyproject.toml --extra dev --python-version 3.12 --quiet \
    --no-header --no-annotate --no-emit-index-url --no-emit-find-links -o requirements.txt
