#!/bin/sh
# Prints the path of uv: the user's own, or one installed into a small environment of its own.
set -eu
if command -v uv >/dev/null 2>&1; then
    command -v uv
    exit
fi
if [ ! -x .uv/bin/uv ]; then
    python3 -m venv .uv >&2
    .uv/bin/python -m pip install --quiet --disable-pip-version-check uv >&2
fi
echo "$PWD/.uv/bin/uv"
