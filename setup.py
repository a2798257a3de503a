"""Packaging of mmreplk. The configs and tools travel inside the wheel, under ``mmreplk/.mim``."""

import os
import re
import shutil
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CSRC = 'mmreplk/ops/cpu/csrc'
VERSION = re.search(r"__version__ = '(.+)'", (ROOT / 'mmreplk/version.py').read_text())[1]
# Such as https://github.com/OWNER/NAME, where a release is to be seen.
REPOSITORY = os.environ.get('MMREPLK_REPOSITORY', '').rstrip('/')
# The maintained set of the mm packages. OpenMMLab's own: requirements/openmmlab.txt.
_MM = ['onedl-mmengine>=0.10.12', 'onedl-mmcv>=2.3.6']
EXTRAS = dict(
    mmseg=[*_MM, 'onedl-mmsegmentation>=1.4.2', 'ftfy', 'regex'],
    mmdet=[*_MM, 'onedl-mmdetection>=3.5.1'],
    timm=['timm>=1.0.15'],
    dev=['pytest', 'pytest-xdist', 'pytest-timeout', 'hypothesis', 'expecttest', 'ruff', 'build'])
# For developers and from a clone alone.
NOT_PACKAGED = ('__pycache__', 'results', 'benchmarks', 'install.sh', 'quickstart.*',
                'run_tests.sh', 'sanitize.sh')


class BuildWithMim(build_py):
    """Copy configs, tools and model index to where MIM, MMEngine's hub and we look for them."""

    def run(self):
        super().run()
        if self.editable_mode:
            return  # a checkout is read in place, through the links in mmreplk/.mim
        for folder in ('configs', 'tools'):
            target = Path(self.build_lib, 'mmreplk', '.mim', folder)
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(
                ROOT / folder, target, ignore=shutil.ignore_patterns(*NOT_PACKAGED))
        shutil.copy(ROOT / 'model-index.yml', Path(self.build_lib, 'mmreplk', '.mim'))


def description() -> str:
    """The README as it stands outside of the checkout.

    Links and images lead to the repository, at the tag of this version, if ``MMREPLK_REPOSITORY``
    names it. Else such images are left out, and of links the text stays.
    """
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    if REPOSITORY:
        text = re.sub(r'(!\[[^\]]*\]\()(?!https?:)', rf'\1{REPOSITORY}/raw/v{VERSION}/', text)
        return re.sub(r'((?<!!)\[[^\]]+\]\()(?!https?:|#)', rf'\1{REPOSITORY}/blob/v{VERSION}/',
                      text)
    text = re.sub(r'^!\[[^\]]*\]\((?!https?:)[^)]*\)\n\n?(\*[^*]+\*\n\n)?', '', text, flags=re.M)
    return re.sub(r'(?<!!)\[([^\]]+)\]\((?!https?:)[^)]*\)', r'\1', text)


def addresses() -> dict[str, str]:
    """The links that an index shows beside the package."""
    own = {'Repository': REPOSITORY, 'Issues': f'{REPOSITORY}/issues',
           'Changelog': f'{REPOSITORY}/blob/v{VERSION}/CHANGELOG.md'} if REPOSITORY else {}
    return {**own, 'Paper': 'https://arxiv.org/abs/2203.06717',
            'Code of the authors': 'https://github.com/DingXiaoH/RepLKNet-pytorch'}


def extensions():
    """The compiled CPU kernels, in the C of GCC and Clang."""
    if sys.platform == 'win32':
        return []
    sources = ('module', 'threads', 'plan', 'plain', 'isa_baseline', 'isa_avx2', 'isa_avx512')
    return [Extension(
        'mmreplk.ops.cpu._native',
        [f'{CSRC}/{name}.c' for name in sources],
        depends=sorted(str(path.relative_to(ROOT)) for pattern in ('*.h', '*.inc.c')
                       for path in (ROOT / CSRC).glob(pattern)),
        extra_compile_args=['-O3', '-std=gnu11', '-ffp-contract=fast', '-fno-math-errno',
                            '-fvisibility=hidden', '-g0'],
        libraries=['m', 'pthread'],
        py_limited_api=True,
        optional=True)]


class BuildKernels(build_ext):
    """Builds them where that is possible, and says so where it is not."""

    def build_extension(self, ext):
        try:
            super().build_extension(ext)
        except Exception as error:
            print('mmreplk: the compiled CPU kernels were left out; they need a C compiler and '
                  f'Python.h ({error}). Everything works, but large kernels on the CPU are slower.',
                  file=sys.stderr)
            # What is left runs anywhere: a wheel of it is not for this platform alone.
            self.distribution.ext_modules = []
            wheel = self.distribution.get_command_obj('bdist_wheel', create=False)
            if wheel is not None:
                wheel.root_is_pure, wheel.py_limited_api = True, False


setup(
    name='mmreplk',
    version=VERSION,
    description='RepLKNet, kernels up to 31x31, for MMSegmentation, MMDetection and MMPretrain',
    long_description=description(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_expression='Apache-2.0',
    project_urls=addresses(),
    license_files=['LICENSE'],
    author='The mmreplk contributors',
    keywords=['RepLKNet', 'large kernels', 'depth-wise convolution', 'OpenMMLab',
              'semantic segmentation', 'object detection', 'PyTorch'],
    classifiers=[
        'Development Status :: 4 - Beta', 'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux', 'Programming Language :: C',
        'Programming Language :: Python :: 3', 'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11', 'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition'],
    python_requires='>=3.10',
    packages=find_packages(include=['mmreplk', 'mmreplk.*']),
    # Modules that networks import by a folder, the tiles that tune_triton.py has measured, and
    # the sources that NVRTC compiles.
    package_data={'mmreplk.ops.dropin': ['modules/*.py', 'modules/*/*.py'],
                  'mmreplk.ops.gpu': ['tiles.json'],
                  'mmreplk.ops.gpu.cuda': ['csrc/*']},
    # The mm packages exist under two sets of names that must not be mixed, so none is required
    # here: the user's environment has one of them. requirements/onedl.txt pins the tested one.
    install_requires=['torch>=2.5'],
    extras_require=EXTRAS,
    ext_modules=extensions(),
    # One binary for every Python from 3.10 on: the module uses the stable ABI alone.
    options=dict(bdist_wheel=dict(py_limited_api='cp310')) if sys.platform != 'win32' else {},
    cmdclass=dict(build_py=BuildWithMim, build_ext=BuildKernels))
