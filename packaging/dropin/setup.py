"""A wheel of the old name: ``pip install ./packaging/dropin`` beside mmreplk.

Networks whose requirements name ``depthwise-conv2d-implicit-gemm`` find it installed then.
"""

from setuptools import setup

setup(
    name='depthwise-conv2d-implicit-gemm',
    version='0.0.0',  # the version that requirement files of networks ask for
    description='depthwise_conv2d_implicit_gemm, served by mmreplk',
    license='Apache-2.0',
    python_requires='>=3.10',
    install_requires=['mmreplk'],
    package_dir={'': 'modules'},
    packages=['DepthwiseConv2d'],
    py_modules=['depthwise_conv2d_implicit_gemm', '_depthwise_conv2d_implicit_gemm_C'])
