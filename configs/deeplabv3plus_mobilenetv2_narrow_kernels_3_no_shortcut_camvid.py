# Guideline study on CamVid: deeplabv3plus_mobilenetv2_narrow_kernels_3_camvid.py with no
# shortcuts.
# No figure is published for this; total batch 8.
_base_ = './deeplabv3plus_mobilenetv2_narrow_kernels_3_camvid.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmreplk.EnlargedBackbone',
        backbone=dict(
            type='mmseg.MobileNetV2',
            widen_factor=0.25,
            strides=(1, 2, 2, 1, 1, 1, 1),
            dilations=(1, 1, 1, 2, 2, 4, 4),
            out_indices=(1, 2, 4, 6),
            norm_cfg=dict(type='SyncBN', requires_grad=True)),
        kernel_size=3,
        small_kernel=None,
        shortcut=False,
        keep_output=False))
