"""The Triton kernels compiled ahead of time for GPUs that are not there.

Tensor-core instructions must be present, and no register may spill, for every architecture and
dtype. The tiles that the model picks for the authors' maps are always tested, all others are marked
slow.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

# Older ones compile them too, but may spill a few registers.
pytest.importorskip('triton', minversion='3.7')
if os.environ.get('TRITON_INTERPRET') == '1':
    pytest.skip('nothing is compiled under the interpreter', allow_module_level=True)

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from mmreplk.ops.gpu import (
    kernels,  # noqa: E402
    launch,  # noqa: E402
    tiles,  # noqa: E402
)
from mmreplk.ops.problem import Problem  # noqa: E402

CAPABILITIES = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]
NAMES = {torch.float16: 'fp16', torch.bfloat16: 'bf16', torch.float32: 'fp32'}
MODES = [(torch.float16, 'half'), (torch.bfloat16, 'half'), (torch.float32, 'tf32'),
         (torch.float32, 'exact')]
# In PTX: mma.sync up to Ada and on consumer Blackwell, wgmma on Hopper, tcgen05 on Blackwell.
INSTRUCTION = re.compile(r'mma\.sync|wgmma\.mma_async|tcgen05\.mma')
SASS = re.compile(r'\b(HMMA|HGMMA|UTCHMMA|UTCQMMA)\b')
SHARED = {(8, 0): 163, (8, 6): 99, (8, 9): 99, (9, 0): 227, (10, 0): 227, (12, 0): 99}


def problem(dtype, batch=64, channels=384, size=64, kernel=31):
    return Problem(dtype, 'cuda', False, batch, channels, size, size, 1, (kernel, kernel), (1, 1),
                   (kernel // 2, ) * 4, (1, 1), True)


def compiled(kernel, plan, dtypes, capability):
    """What Triton would launch: tensors aligned to 16 bytes, sizes not specialised on."""
    constants = {k: v for k, v in plan.constants.items() if k in kernel.arg_names}
    options = {k: v for k, v in plan.constants.items() if k not in constants}
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = 'constexpr'
        elif name.endswith('_ptr'):
            signature[name] = '*' + dtypes.get(name, dtypes['x_ptr'])
            attributes[(index, )] = [['tt.divisibility', 16]]
        else:
            signature[name] = 'i32'
    source = ASTSource(kernel, signature, constants, attributes)
    target = GPUTarget('cuda', capability[0] * 10 + capability[1], 32)
    return triton.compile(source, target=target, options=options)


def tool(name):
    path = Path(triton.__file__).parent / 'backends/nvidia/bin' / name
    return path if path.exists() else None


def check(binary, capability, tmp_path, products=True):
    assert binary.metadata.shared <= SHARED[capability] << 10
    assert not products or INSTRUCTION.search(binary.asm['ptx'])
    cubin = tmp_path / 'kernel.cubin'
    cubin.write_bytes(binary.asm['cubin'])
    if not tool('cuobjdump') or not tool('nvdisasm'):
        pytest.skip("Triton's package has no cuobjdump and nvdisasm here")
    usage = subprocess.run([tool('cuobjdump'), '-res-usage', cubin], capture_output=True,
                           text=True, check=True).stdout
    registers, stack, local = (
        int(re.search(rf'{what}:(\d+)', usage)[1]) for what in ('REG', 'STACK', 'LOCAL'))
    sass = subprocess.run([tool('nvdisasm'), '-c', cubin], capture_output=True, text=True,
                          check=True).stdout
    assert not products or SASS.search(sass)
    what = f'{registers} registers, spills {stack}+{local}'
    assert stack + local == 0, what
    assert not re.search(r'\b(LDL|STL)\b', sass), what


def check_forward(dtype, mode, tile, capability, tmp_path, **sizes):
    plan = launch.plan_forward(problem(dtype, **sizes), mode, tile)
    check(compiled(kernels.forward_kernel, plan.main, {'x_ptr': NAMES[dtype]}, capability),
          capability, tmp_path)
    return plan


def check_grad(dtype, mode, tile, capability, tmp_path, **sizes):
    plan = launch.plan_weight_grad(problem(dtype, **sizes), mode, tile, tiles.arch(capability))
    check(compiled(kernels.weight_grad_kernel, plan.main,
                   {'x_ptr': NAMES[dtype], 'sums_ptr': 'fp32'}, capability), capability, tmp_path)
    return plan


@pytest.mark.sample
@pytest.mark.parametrize('capability', CAPABILITIES, ids=lambda c: f'sm_{c[0]}{c[1]}')
@pytest.mark.parametrize(('dtype', 'mode'), MODES, ids=['fp16', 'bf16', 'tf32', 'exact'])
def test_chosen_tile(dtype, mode, capability, tmp_path):
    """The tiles that the model picks for the authors' largest map."""
    device = tiles.arch(capability)
    p = problem(dtype)
    plan = check_forward(
        dtype, mode, tiles.choose(p, 'forward', mode, device), capability, tmp_path)
    check(compiled(kernels.toeplitz_kernel, plan.table,
                   {'x_ptr': NAMES[dtype]}, capability), capability, tmp_path, products=False)
    plan = check_grad(
        dtype, mode, tiles.choose(p, 'weight_grad', mode, device), capability, tmp_path)
    check(compiled(kernels.weight_grad_sum_kernel, plan.reduce,
                   {'x_ptr': NAMES[dtype], 'sums_ptr': 'fp32'}, capability), capability, tmp_path,
          products=False)


def test_hopper_uses_its_own_instruction():
    p = problem(torch.float16)
    tile = tiles.choose(p, 'forward', 'half', tiles.arch((9, 0)))
    plan = launch.plan_forward(p, 'half', tile)
    binary = compiled(kernels.forward_kernel, plan.main, {'x_ptr': 'fp16'}, (9, 0))
    assert 'wgmma.mma_async' in binary.asm['ptx']
    assert 'cp.async' in binary.asm['ptx']  # loads run ahead of the products


# Of narrow loads, one capability of each family: a minute each.
EVERY_TILE = [(56, capability) for capability in CAPABILITIES] + [
    (57, capability) for capability in ((8, 0), (9, 0), (12, 0))]


@pytest.mark.sample
@pytest.mark.slow
@pytest.mark.parametrize(
    ('size', 'capability'), EVERY_TILE,
    ids=[f'{"wide_loads" if size % 2 == 0 else "one_by_one"}-sm_{c[0]}{c[1]}'
         for size, c in EVERY_TILE])
@pytest.mark.parametrize(('dtype', 'mode'), [MODES[0], *MODES[2:]], ids=['fp16', 'tf32', 'exact'])
def test_every_tile(dtype, mode, size, capability, tmp_path, some):
    p = problem(dtype, size=size)
    for tile in some(tiles.usable(p, 'forward', mode, capability)):
        check_forward(dtype, mode, tile, capability, tmp_path, size=size)
    for tile in some(tiles.usable(p, 'weight_grad', mode, capability)):
        check_grad(dtype, mode, tile, capability, tmp_path, size=size)


@pytest.mark.sample
@pytest.mark.slow
@pytest.mark.parametrize('size', [7, 14, 25])
@pytest.mark.parametrize('capability', CAPABILITIES, ids=lambda c: f'sm_{c[0]}{c[1]}')
def test_narrow_rows(size, capability, tmp_path):
    """Rows whose length forbids wide loads."""
    for dtype, mode in (MODES[0], *MODES[2:]):
        for sizes in (dict(size=size, kernel=13), dict(size=size, kernel=13, batch=2)):
            p = problem(dtype, **sizes)
            device = tiles.arch(capability)
            check_forward(dtype, mode, tiles.choose(p, 'forward', mode, device), capability,
                          tmp_path, **sizes)
            check_grad(dtype, mode, tiles.choose(p, 'weight_grad', mode, device), capability,
                       tmp_path, **sizes)


@pytest.mark.slow
@pytest.mark.parametrize('capability', CAPABILITIES, ids=lambda c: f'sm_{c[0]}{c[1]}')
def test_more_than_32_bits(capability, tmp_path):
    p = problem(torch.float16, batch=2048)
    assert p.batch * p.channels * p.height * p.width >= 1 << 31
    device = tiles.arch(capability)
    check_forward(torch.float16, 'half', tiles.choose(p, 'forward', 'half', device), capability,
                  tmp_path, batch=2048)
    check_grad(torch.float16, 'half', tiles.choose(p, 'weight_grad', 'half', device), capability,
               tmp_path, batch=2048)
