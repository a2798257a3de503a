"""Packaging of mmreplk. The configs and tools travel inside the wheel, under ``mmreplk/.mim``."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithMim(build_py):
    """Copy ``configs`` and ``tools`` to where MIM and ``mmreplk::NAME.py`` look for them."""

    def run(self):
        super().run()
        if self.editable_mode:
            return  # a checkout is read in place, see mmreplk/config_scope.py
        for folder in ('configs', 'tools'):
            target = Path(self.build_lib, 'mmreplk', '.mim', folder)
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(
                ROOT / folder, target, ignore=shutil.ignore_patterns('__pycache__', 'results'))


setup(
    name='mmreplk',
    version=re.search(r"__version__ = '(.+)'", (ROOT / 'mmreplk/version.py').read_text())[1],
    description='RepLKNet, kernels up to 31x31, for MMSegmentation, MMDetection and MMPretrain',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['mmreplk', 'mmreplk.*']),
    # The mm packages exist under two sets of names that must not be mixed, so none is required
    # here: the user's environment has one of them. requirements/onedl.txt pins the tested one.
    install_requires=['torch>=2.1'],
    cmdclass=dict(build_py=BuildWithMim))
