#!/bin/sh
# Makes the environment in the folder given, from the pinned requirements. Safe to run again.
set -eu
cd "$(dirname "$0")/.."
venv=$1
# Debian keeps ldconfig where only root looks.
PATH=$PATH:/usr/sbin:/sbin

missing=
for tool in cmake g++; do
    command -v $tool >/dev/null 2>&1 || missing="$missing $tool"
done
for library in libEGL.so.1:libegl1 libEGL_mesa.so.0:libegl-mesa0 libGL.so.1:libgl1; do
    ldconfig -p 2>/dev/null | grep -q "${library%%:*}" || missing="$missing ${library##*:}"
done
[ -n "$(find /usr/lib /usr/lib64 /usr/local/lib \( -name '*swrast_dri.so' -o -name 'libgallium*.so' \) -print -quit 2>/dev/null)" ] || missing="$missing libgl1-mesa-dri"
if [ -n "$missing" ]; then
    echo "system packages are missing; install them with:" >&2
    echo "    sudo apt-get install$missing" >&2
    exit 1
fi

uv=$(./scripts/uv.sh)
[ -x "$venv/bin/python" ] || "$uv" venv --quiet --python 3.12 "$venv"
# egl-probe builds from source and asks for a CMake older than the one that lerobot brings.
CMAKE_POLICY_VERSION_MINIMUM=3.5 "$uv" pip install --quiet --python "$venv/bin/python" -r requirements.txt
"$uv" pip install --quiet --python "$venv/bin/python" --no-deps -e .
