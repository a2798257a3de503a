"""An installation without a compiler says so at the first use, once, in words."""

import subprocess
import sys

CODE = '''
import sys, warnings
sys.modules['mmreplk.ops.cpu._native'] = None
from mmreplk.ops.cpu import kernels
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    first, second = kernels.available(), kernels.available()
assert first == second
assert not first[0]
print(len(caught), caught[0].message)
'''


def test_one_warning():
    done = subprocess.run([sys.executable, '-c', CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('1 mmreplk: the compiled kernels')
    assert 'Install gcc or clang' in done.stdout
