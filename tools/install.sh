#!/usr/bin/env bash
# Set up .venv beside this checkout, from requirements/onedl.txt.
#
#   bash tools/install.sh              everything but mmcv's compiled operators: minutes
#   bash tools/install.sh --with-ops   with them (detection and the tests need them): built once,
#                                      a few minutes on two cores, then kept in a cache
#   bash tools/install.sh --set openmmlab [--with-ops]
#                                      OpenMMLab's original packages instead of the maintained ones,
#                                      from requirements/openmmlab.txt, into .venv-openmmlab
#   bash tools/install.sh --torch 2.15.0
#                                      the maintained packages with another torch, and torchvision as
#                                      it fits, into .venv-torch-2.15.0: to try what is not pinned
#
# A second run changes nothing; an interrupted one can be repeated and goes on where it was, the
# operator build included. PYTHON names the interpreter for a new .venv (3.10 to 3.12),
# MMREPLK_CACHE the folder of built wheels (default: mmreplk in the user's cache folder).
set -euo pipefail

usage() { sed -n '2,16s/^# \{0,1\}//p' "$0"; }
die() { echo "install.sh: error: $*" >&2; exit 1; }
step() { echo "[install] $*"; }

with_ops=0 set=onedl other_torch=
while [ $# -gt 0 ]; do
    case "$1" in
        --with-ops) with_ops=1 ;;
        --set) set=${2:-}; shift ;;
        --torch) other_torch=${2:-}; shift
            [[ $other_torch =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] ||
                die "--torch must be a version such as 2.15.0, not '$other_torch'" ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; die "unknown argument '$1'" ;;
    esac
    shift || break
done
case "$set" in
    onedl) venv=.venv mmcv_name=onedl-mmcv ;;
    openmmlab) venv=.venv-openmmlab mmcv_name=mmcv ;;
    *) die "--set must be onedl or openmmlab, not '$set'" ;;
esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
requirements=requirements/$set.txt
[ -z "$other_torch" ] || venv=.venv-torch-$other_torch
venv=$root/$venv
cache=${MMREPLK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mmreplk}

lock() { # FILE: wait for another run of this script that works on the same thing
    mkdir -p "$(dirname "$1")"
    command -v flock >/dev/null || return 0
    exec {lock_fd}>"$1"
    flock -n "$lock_fd" || { step "waiting for another install that holds $1"; flock "$lock_fd"; }
}

supported() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.11 python3.12 python3.10 python; do
        if command -v "$candidate" >/dev/null && supported "$candidate"; then
            command -v "$candidate"
            return
        fi
        [ "$candidate" != "${PYTHON:-}" ] || die "PYTHON=$PYTHON is not a Python 3.10 to 3.12"
    done
    die "no Python 3.10 to 3.12 found; install one, or name it: PYTHON=/path/to/python3.11 bash tools/install.sh"
}

pinned() { sed -n "s/^$1==\([^ ]*\).*/==\1/p" "$requirements"; } # ==VERSION, or nothing

lock "$venv.lock"

# --- Nothing to do? -------------------------------------------------------------------------------
stamp=$venv/.mmreplk-installed
wanted=$(echo "$other_torch"; cat "$requirements" setup.py tools/install.sh mmreplk/ops/cpu/csrc/*.[ch] | cksum)
py=$venv/bin/python
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    if [ $with_ops = 0 ]; then
        step "up to date"
        exit 0
    elif "$py" -c 'import torch, mmcv._ext' 2>/dev/null; then
        step "up to date, mmcv's operators included"
        exit 0
    fi
fi

# --- Environment and torch ------------------------------------------------------------------------
if ! "$py" -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    step "making $(basename "$venv") with $("$python" --version)"
    "$python" -m venv "$venv"
fi
if [ -n "$other_torch" ]; then
    sed "s/^torch==.*/torch==$other_torch/; s/^torchvision==.*/torchvision/" "$requirements" >"$venv/requirements.txt"
    requirements=$venv/requirements.txt
fi
supported "$py" || die "$venv has $("$py" --version), which is not 3.10 to 3.12; remove it and run this again"
pip() { "$py" -m pip --disable-pip-version-check "$@"; }

# A package whose installation was cut off has metadata without a list of files: pip would take it
# for installed.
"$py" - <<'PY'
import shutil, sysconfig
from pathlib import Path
for info in Path(sysconfig.get_paths()['purelib']).glob('*.dist-info'):
    if not (info / 'RECORD').is_file():
        print(f'[install] removing the incomplete {info.name}')
        shutil.rmtree(info)
PY

step "torch and the build tools (about 2.5 GB on a new machine)"
build_needs=()
for name in torch torchvision numpy setuptools wheel ninja psutil packaging; do
    build_needs+=("$name$(pinned $name)")
done
pip install -q --progress-bar on "${build_needs[@]}"

# --- mmcv -----------------------------------------------------------------------------------------
mmcv=$(pinned $mmcv_name)
mmcv=${mmcv#==}
tag=$("$py" -c 'import platform, sys; print(f"cp{sys.version_info[0]}{sys.version_info[1]}-{platform.machine()}")')
torch=$("$py" -c 'import torch; print(torch.__version__)')

unpack_mmcv() { # DIR: the source tree of mmcv, in DIR/src
    [ ! -d "$1/src" ] || return 0
    rm -rf "$1/sdist" "$1/unpacked"
    # Isolated from .venv: this only reads the metadata.
    pip download -q --no-deps --no-binary "$mmcv_name" -d "$1/sdist" "$mmcv_name==$mmcv"
    mkdir -p "$1/unpacked"
    tar -xf "$1"/sdist/*.tar.gz -C "$1/unpacked"
    mv "$1"/unpacked/* "$1/src"
}

# Each of mmcv's 78 small files reads torch's headers, which is most of the 15 seconds it takes: read
# once, and without debug information, the whole build takes minutes instead of 20. A compiler that
# does not take the precompiled header, or not with its own flags, goes on with the header itself.
precompile_headers() { # DIR FLAG...: torch's headers in DIR
    local header=$1/torch_types.h flags
    # One that is there is of a run that was cut off: written anew, all that was built would be old.
    [ ! -f "$header.gch" ] || return 0
    mkdir -p "$1"
    echo '#include <torch/types.h>' >"$header"
    mapfile -t flags < <("$py" -c 'import torch
from torch.utils.cpp_extension import include_paths
print(*("-I" + path for path in include_paths()), sep="\n")
if not torch.compiled_with_cxx11_abi():  # as of PyPI before 2.6; torch tells the build the same
    print("-D_GLIBCXX_USE_CXX11_ABI=0")')
    flags+=("${@:2}" -fPIC -std=c++17 -DTORCH_API_INCLUDE_EXTENSION_H -DTORCH_EXTENSION_NAME=_ext -w)
    "${CXX:-c++}" "${flags[@]}" -x c++-header "$header" -o "$header.part" &&
        mv "$header.part" "$header.gch" &&
        "${CXX:-c++}" "${flags[@]}" -include "$header" -x c++ -c /dev/null -o /dev/null ||
        rm -f "$header.gch"
}

build_ops() { # DIR: build the wheel with operators in DIR, going on where an earlier run stopped
    local log=$1/build.log jobs pid count flags
    unpack_mmcv "$1"
    # The flags in whole: some versions of setuptools add the variable to Python's, others replace.
    flags="$("$py" -c 'import sysconfig; print(sysconfig.get_config_var("CFLAGS"))') ${CFLAGS:-} -g0"
    if [ "$device" = cpu ]; then
        # shellcheck disable=SC2086
        precompile_headers "$1/headers" $flags 2>/dev/null
        flags+=" -include $1/headers/torch_types.h"
    fi
    jobs=$("$py" -c 'import os, psutil
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
print(max(1, min(cores, int(psutil.virtual_memory().available / 2**31))))')
    step "building mmcv $mmcv with operators for torch $torch ($device), $jobs jobs; log: $log"
    rm -rf "$1/part"
    # Job control gives the build a process group of its own, so that it ends whole with this script.
    set -m
    MAX_JOBS=$jobs CFLAGS=$flags "${build_env[@]}" "$py" -m pip wheel -v --no-deps --no-build-isolation \
        -w "$1/part" "$1/src" >"$log" 2>&1 </dev/null &
    pid=$!
    set +m
    # shellcheck disable=SC2064
    trap "kill -- -$pid 2>/dev/null || true" EXIT
    local begun=$SECONDS reported=$SECONDS
    while kill -0 "$pid" 2>/dev/null; do
        sleep 5
        if ((SECONDS - reported >= 30)); then
            reported=$SECONDS
            count=$(grep -oE '\[[0-9]+/[0-9]+\]' "$log" | tail -n 1 || true)
            step "  ${count:-starting} $(((SECONDS - begun) / 60)) min"
        fi
    done
    trap - EXIT
    wait "$pid" || { tail -n 30 "$log" >&2; die "mmcv did not build; the whole log is $log"; }
    "$py" -c 'import sys, zipfile
sys.exit(not any(name.startswith("mmcv/_ext.") for name in zipfile.ZipFile(sys.argv[1]).namelist()))
' "$1"/part/*.whl ||
        die "mmcv was built without its operators; the log is $log"
    mv "$1"/part/*.whl "$1/"
    rm -rf "$1/part" "$1/src" "$1/sdist" "$1/unpacked" "$1/headers"
}

device=cpu
build_env=(env CUDA_VISIBLE_DEVICES=)
cuda=$("$py" -c 'import torch; print(torch.version.cuda if torch.cuda.is_available() else "")')
if [ -n "$cuda" ]; then
    # Into a variable first: grep -q closes the pipe early, which pipefail takes for a failure.
    nvcc=$(nvcc --version 2>/dev/null || true)
    if grep -q "release ${cuda%%.*}\." <<<"$nvcc"; then
        device=cu${cuda//./}
        build_env=(env FORCE_CUDA=1)
    else
        step "a GPU but no nvcc of CUDA ${cuda%%.*}: mmcv's operators will run on the CPU only"
    fi
fi
ops_dir=$cache/mmcv-$mmcv-torch$torch-$tag-$device
plain_dir=$cache/mmcv-$mmcv-without-ops-$tag

has_wheel() { compgen -G "$1/*.whl" >/dev/null; }

lock "$cache/build.lock"
if [ $with_ops = 1 ] && ! has_wheel "$ops_dir"; then
    build_ops "$ops_dir"
fi
if has_wheel "$ops_dir"; then
    mmcv_dir=$ops_dir
else
    mmcv_dir=$plain_dir
    if ! has_wheel "$plain_dir"; then
        step "mmcv $mmcv without operators (segmentation and classification need none)"
        unpack_mmcv "$plain_dir"
        # Built in isolation, where there is no torch, mmcv leaves its operators out.
        pip wheel -q --no-deps -w "$plain_dir/part" "$plain_dir/src"
        mv "$plain_dir"/part/*.whl "$plain_dir/"
        rm -rf "$plain_dir/part" "$plain_dir/src" "$plain_dir/sdist" "$plain_dir/unpacked"
    fi
fi
has_ops() { "$py" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("mmcv._ext") is None)' 2>/dev/null; }
if [ "$("$py" -c 'from importlib.metadata import version; print(version("'$mmcv_name'"))' 2>/dev/null)" != "$mmcv" ] ||
    { [ "$mmcv_dir" = "$ops_dir" ] && ! has_ops; }; then
    step "installing $(basename "$mmcv_dir")"
    pip install -q --no-deps --force-reinstall "$mmcv_dir"/*.whl
fi

# --- The rest -------------------------------------------------------------------------------------
step "the mm packages, test tools and mmreplk"
pip install -q --progress-bar on -r "$requirements"
pip install -q --no-deps --no-build-isolation -e .

if [ $with_ops = 1 ]; then
    "$py" -c 'import torch, mmcv._ext' || die "mmcv._ext does not import; remove $ops_dir and run this again"
fi
"$py" -c 'import mmseg, mmpretrain, mmreplk' >/dev/null || die "the installation does not import; remove $venv and run this again"
step "$("$py" -c 'from mmreplk.ops.cpu import kernels; print("CPU kernels:", kernels.available()[1])')"
echo "$wanted" >"$stamp"
step "done: $(du -sh "$venv" | cut -f1) in $(basename "$venv")"
