#!/usr/bin/env bash
# Install what the tests need, lint, and run the suite. With arguments, they go to one pytest run
# instead: bash tools/run_tests.sh tests/test_models -k deploy
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
bash tools/install.sh --with-ops
py=$root/.venv/bin/python

if [ $# -gt 0 ]; then
    exec "$py" -m pytest "$@"
fi
"$py" -m ruff check .
# One thread a worker: the workers share the cores.
OMP_NUM_THREADS=1 "$py" -m pytest -n auto --dist worksteal -m 'not slow'
# The full-size checks have the machine to themselves.
"$py" -m pytest -m slow
