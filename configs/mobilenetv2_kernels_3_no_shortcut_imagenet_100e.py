# Guideline study: MobileNetV2 with 3x3 kernels and no shortcuts, ImageNet-1K at 224, 100 epochs.
# Published by the authors: 68.67 top-1.
#
# The recipe is that of mobilenetv2_kernels_3_imagenet_100e.py; total batch 256. The blocks keep
# everything but the identity that is added to them.
_base_ = './mobilenetv2_kernels_3_imagenet_100e.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmreplk.EnlargedBackbone',
        backbone=dict(type='mmpretrain.MobileNetV2', widen_factor=1.0),
        kernel_size=3,
        small_kernel=None,
        shortcut=False,
        keep_output=False))
