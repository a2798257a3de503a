# Guideline study: MobileNetV2 with 3x3 kernels of dilation 4, ImageNet-1K at 224, 100 epochs.
# No figure is known for it.
#
# The recipe is that of mobilenetv2_kernels_3_imagenet_100e.py; total batch 256. Their extent is
# that of the dense kernels in mobilenetv2_kernels_9_imagenet_100e.py.
_base_ = './mobilenetv2_kernels_3_imagenet_100e.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmreplk.EnlargedBackbone',
        backbone=dict(type='mmpretrain.MobileNetV2', widen_factor=1.0),
        kernel_size=3,
        small_kernel=None,
        dilation=4,
        keep_output=False))
