# Guideline study: MobileNetV2 with 13x13 kernels and parallel 3x3 kernels, ImageNet-1K at 224, 100
# epochs.
# Published by the authors: 73.24 top-1.
#
# The recipe is that of mobilenetv2_kernels_3_imagenet_100e.py; total batch 256.
_base_ = './mobilenetv2_kernels_3_imagenet_100e.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmreplk.EnlargedBackbone',
        backbone=dict(type='mmpretrain.MobileNetV2', widen_factor=1.0),
        kernel_size=13,
        small_kernel=3,
        keep_output=False))
