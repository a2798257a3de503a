#!/usr/bin/env bash
# Install what the tests need, lint, and run the suite.
#
#   bash tools/run_tests.sh [--all] [--set onedl|openmmlab | --torch VERSION] [PYTEST ARGUMENTS]
#
#   --all            every parametrization of the tests that are marked `sample`, of which a run
#                    takes a few otherwise (the Triton kernels for each GPU and dtype, each config
#                    through the tools); MMREPLK_ALL=1 in the environment is the same. When all
#                    pass, tests/ops/gpu/CHECKED says for which files under ops/gpu: commit it,
#                    or .ci/run takes --all until somebody does.
#   --set openmmlab  everything on OpenMMLab's original packages
#   --torch VERSION  another torch under the maintained packages, in an environment of its own and
#                    without mmcv's operators: bash tools/run_tests.sh --torch 2.15.0 tests/ops
#   --digest         only print what tests/ops/gpu/CHECKED would say
#   other arguments  go to one pytest run instead: bash tools/run_tests.sh tests/models -k deploy
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
checked=tests/ops/gpu/CHECKED

# Of the files' names and contents, so that a clone of any depth, or no repository, gives the same.
digest() {
    find mmreplk/ops/gpu tests/ops/gpu -type f ! -path '*/__pycache__/*' ! -path "$checked" -print0 |
        LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -d ' ' -f 1
}

set=onedl torch=
while [ $# -gt 0 ]; do
    case $1 in
        --all) export MMREPLK_ALL=1; shift ;;
        --set) set=${2:-}; shift 2 ;;
        --torch) torch=${2:?--torch needs a version}; shift 2 ;;
        --digest) digest; exit ;;
        -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit ;;
        *) break ;;
    esac
done
venv=.venv
[ "$set" = onedl ] || venv=.venv-$set
if [ -n "$torch" ]; then
    venv=.venv-torch-$torch
    bash tools/install.sh --set "$set" --torch "$torch"
else
    bash tools/install.sh --set "$set" --with-ops
fi
py=$root/$venv/bin/python

if [ $# -gt 0 ]; then
    exec "$py" -m pytest "$@"
fi
before=$(digest)
"$py" -m ruff check .
# One thread a worker: the workers share the cores.
OMP_NUM_THREADS=1 "$py" -m pytest -n auto --dist worksteal -m 'not slow' --timeout 400
# The slow checks share it likewise, but for those at full size: they have the machine to themselves.
alone=(tests/tools/test_full_size.py tests/tools/test_convert_checkpoint.py)
OMP_NUM_THREADS=1 "$py" -m pytest -n auto --dist worksteal -m slow "${alone[@]/#/--ignore=}"
"$py" -m pytest -m slow "${alone[@]}"

# OpenMMLab's set has no Triton that runs the kernels' tests.
if [ "${MMREPLK_ALL:-0}" = 1 ] && [ "$set" = onedl ] && [ -z "$torch" ] && [ "$before" = "$(digest)" ]; then
    echo "$before" > "$checked"
fi
