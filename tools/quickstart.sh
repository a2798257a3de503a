#!/usr/bin/env bash
# From a fresh clone to a trained, evaluated and drawn UperNet-RepLKNet, on a CPU or a GPU.
# Options are those of tools/quickstart.py (--help lists them).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/tools/install.sh"
exec "$root/.venv/bin/python" "$root/tools/quickstart.py" "$@"
