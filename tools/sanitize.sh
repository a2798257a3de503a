#!/usr/bin/env bash
# The compiled CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer.
#
#   tools/sanitize.sh [--minutes 5] [--build DIR] [--only NAME]
#
# Builds the kernels with GCC into a folder of its own (default: build/sanitize; the installed ones
# are left alone), runs the native tests and the random campaign on them, and fails if a test fails
# or a sanitizer reports anything. PYTHON names the interpreter, CC the compiler.
set -euo pipefail
cd "$(dirname "$0")/.."

minutes=5 only='' build=build/sanitize
while (($#)); do
  case $1 in
    --minutes) minutes=$2; shift 2 ;;
    --build) build=$2; shift 2 ;;
    --only) only=$2; shift 2 ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done
python=${PYTHON:-python} cc=${CC:-gcc}
# The tests run in another folder.
[[ $python == */* ]] && python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")

mkdir -p "$build"
build=$(cd "$build" && pwd)
rm -rf "$build"/{mmreplk,tests,reports,objects}
mkdir -p "$build"/{reports,objects}
# Python takes the package from the folder, so that the sanitized module lies beside its sources.
cp -r mmreplk tests "$build"
rm -f "$build"/mmreplk/ops/cpu/_native*.so
include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
flags=(-O1 -g -std=gnu11 -ffp-contract=fast -fno-math-errno -fPIC -fno-omit-frame-pointer
       -fsanitize=address,undefined -fno-sanitize-recover=undefined)
jobs=()
for source in mmreplk/ops/cpu/csrc/*.c; do
  case $source in *.inc.c) continue ;; esac
  # A pool that keeps blocks would hide what is used after it was given back.
  "$cc" "${flags[@]}" -DMMREPLK_NO_POOL -I "$include" -c "$source" \
    -o "$build/objects/$(basename "$source" .c).o" &
  jobs+=($!)
done
for job in "${jobs[@]}"; do wait "$job"; done
"$cc" -shared "${flags[@]}" "$build"/objects/*.o -lm -lpthread \
  -o "$build/mmreplk/ops/cpu/_native.abi3.so"

# Python itself is not sanitized, so the runtime has to come first. What Python and PyTorch never
# free is none of ours. A report goes to a file too, for tests run processes of their own.
export LD_PRELOAD PYTHONPATH=$build PYTHONMALLOC=malloc PYTHONDONTWRITEBYTECODE=1
export ASAN_OPTIONS="detect_leaks=0:allocator_may_return_null=1:log_path=$build/reports/asan"
export UBSAN_OPTIONS="print_stacktrace=1:log_path=$build/reports/ubsan"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
LD_PRELOAD="$("$cc" -print-file-name=libasan.so) $("$cc" -print-file-name=libubsan.so)"
cd "$build"

# A fault made on purpose has to be found, or nothing found means nothing.
if "$python" - >/dev/null 2>&1 <<'END'
import mmreplk.ops.cpu.kernels as native
assert native._native.__file__.startswith(__import__('os').environ['PYTHONPATH'])
block = native.torch.zeros(16)
native._native.same(1, (block.data_ptr(), 1 << 12), (block.data_ptr() + 4, 1 << 12))
END
then
  echo 'sanitize: a read beyond a block was not noticed: the sanitizer does not work here' >&2
  exit 1
fi
grep -ql 'AddressSanitizer: heap-buffer-overflow' reports/* || {
  echo 'sanitize: the fault made on purpose was not reported' >&2; cat reports/* >&2; exit 1; }
rm -f reports/*

status=0
# Left out: a test that needs freed addresses to be handed out again, which AddressSanitizer delays.
"$python" -m pytest -q -p no:cacheprovider tests/ops/cpu/test_kernels.py \
  tests/ops/test_defaults.py tests/ops/test_low_level.py \
  tests/ops/cpu/test_kept_spectra.py -k 'not test_weights_that_come_and_go' || status=1
"$python" tests/ops/attack_campaign.py --minutes "$minutes" --only "$only" || status=1
if compgen -G 'reports/*' >/dev/null; then
  cat reports/* >&2
  status=1
fi
((status)) && echo 'sanitize: FAILED' || echo 'sanitize: no report, no failure'
exit "$status"
