"""The CUDA kernels compiled by NVRTC for GPUs that are not there: no register may spill."""

import re
import subprocess
from pathlib import Path

import cases
import pytest

from mmreplk.ops.gpu.cuda import grad_plan, nvrtc, plan, variants

CAPABILITIES = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]
ids = 'sm_{0[0]}{0[1]}'.format
try:
    MISSING = '' if nvrtc.known() else 'NVRTC knows no architecture'
except (nvrtc.Unavailable, nvrtc.CompileError) as error:
    MISSING = str(error)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def usage(kernel, capability, tmp_path):
    """What cuobjdump says each function takes: registers, stack, local memory."""
    triton = pytest.importorskip('triton')  # its package has NVIDIA's tools
    tool = Path(triton.__file__).parent / 'backends/nvidia/bin/cuobjdump'
    if not tool.exists():
        pytest.skip("Triton's package has no cuobjdump here")
    arch = nvrtc.target(capability)
    if arch != f'sm_{capability[0]}{capability[1]}':
        pytest.skip(f'NVRTC {nvrtc.version()} is older than capability {capability}')
    if int(nvrtc.version().split('.')[0]) < 13:
        pytest.skip('NVRTC before 13 may spill a few registers')
    file = tmp_path / 'kernel.cubin'
    file.write_bytes(nvrtc.compiled(kernel.source, kernel.defines, arch))
    text = subprocess.run([tool, '-res-usage', file], capture_output=True, text=True,
                          check=True).stdout
    found = re.findall(r'Function (\w+):\s+REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)', text)
    return {name: tuple(map(int, numbers)) for name, *numbers in found}


def check(kernel, capability, tmp_path, threads):
    """Nothing is spilled, and as many blocks fit as the cost model takes for granted."""
    blocks = dict(kernel.defines)['BLOCKS']
    for name, (used, stack, local) in usage(kernel, capability, tmp_path).items():
        assert (stack, local) == (0, 0), f'{name} {kernel} spills with {used} registers'
        assert used * threads * blocks <= 65536, (name, kernel, used)


def forward_kernel(arithmetic, tile, width):
    p = cases.problem(arithmetic, size=(width, width))
    return plan.plan_forward(p, cases.ARITHMETIC[arithmetic][1],
                             plan.Layout(tile, 1, 1, 16 * tile.tiles * tile.warps, True),
                             (1, 1)).kernel


def grad_kernel(arithmetic, tile, width):
    p = cases.problem(arithmetic, size=(width, width))
    layout = grad_plan.GradLayout(tile, 8, 1, 1, 1)
    return grad_plan.plan_weight_grad(p, cases.ARITHMETIC[arithmetic][1], layout)[0].kernel


def by_parts(arithmetic, capability, tile, width):
    """So that a run has each tile, each width and each capability, with few of all pairs."""
    kind = 'half' if arithmetic in ('fp16', 'bf16') else arithmetic
    return {('tile', kind, tile), ('width', width), ('capability', capability), arithmetic}


@pytest.mark.sample(by=by_parts)
@pytest.mark.parametrize('width', [64, 28, 14, 7])
@pytest.mark.parametrize(('tile', 'capability'), [
    (tile, capability) for capability in CAPABILITIES for tile in plan.tiles_for(capability)],
    ids=str)
@pytest.mark.parametrize('arithmetic', cases.ARITHMETIC)
def test_forward(arithmetic, capability, tile, width, tmp_path):
    check(forward_kernel(arithmetic, tile, width), capability, tmp_path, 32 * tile.warps)


@pytest.mark.sample(by=by_parts)
@pytest.mark.parametrize('width', [64, 28, 14, 7])
@pytest.mark.parametrize('capability', CAPABILITIES, ids=ids)
@pytest.mark.parametrize(('arithmetic', 'tile'), [
    (arithmetic, tile) for arithmetic, (dtype, _) in cases.ARITHMETIC.items()
    for tile in grad_plan.TILES[dtype.itemsize]], ids=str)
def test_weight_grad(arithmetic, capability, tile, width, tmp_path):
    check(grad_kernel(arithmetic, tile, width), capability, tmp_path,
          32 * tile.warps_u * tile.warps_k)


def test_tensor_cores_are_used(tmp_path):
    kernel = variants.kernel_of(cases.problem(size=(64, 64)), 'half', variants.Forward(
        plan.Layout(plan.TILES[0], 32, 4, 1, False), (1, 1)))
    text = nvrtc.compiled(kernel.source, kernel.defines, 'compute_80').decode(errors='replace')
    assert 'mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32' in text
    assert 'ldmatrix' in text
    assert 'cp.async.cg.shared.global' in text


def test_capabilities_to_come():
    """A device that NVRTC is too old for gets the newest machine code of its major version, or
    PTX."""
    newest = max(nvrtc.known())
    assert nvrtc.target((99, 0)) == f'compute_{newest}'
    assert nvrtc.target((8, 7)) in ('sm_87', 'sm_86')
    with pytest.raises(nvrtc.CompileError, match='knows no capability'):
        nvrtc.target((1, 0))


def test_what_nvrtc_says_is_told():
    with pytest.raises(nvrtc.CompileError,
                       match='cannot compile forward.cu for sm_80: (?s:.)*TILES'):
        nvrtc.compiled('forward', (('MODE', 'no_number'), ), 'sm_80')
