#!/usr/bin/env bash
# Install what the tests need, lint, and run the suite. With arguments, they go to one pytest run
# instead: bash tools/run_tests.sh tests/models -k deploy
# With --set openmmlab first, all of it on OpenMMLab's original packages.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
set=onedl
if [ "${1:-}" = --set ]; then
    set=${2:-}
    shift 2
fi
bash tools/install.sh --set "$set" --with-ops
venv=.venv
[ "$set" = onedl ] || venv=.venv-$set
py=$root/$venv/bin/python

if [ $# -gt 0 ]; then
    exec "$py" -m pytest "$@"
fi
"$py" -m ruff check .
# One thread a worker: the workers share the cores.
OMP_NUM_THREADS=1 "$py" -m pytest -n auto --dist worksteal -m 'not slow' --timeout 400
# The slow checks of single modules and configs, the compilation of every Triton tile for one, share
# it likewise.
modules=(tests/ops tests/models tests/configs)
OMP_NUM_THREADS=1 "$py" -m pytest -n auto --dist worksteal -m slow "${modules[@]}"
# Those at full size, of memory and of whole programs, have the machine to themselves.
"$py" -m pytest -m slow "${modules[@]/#/--ignore=}"
