# Guideline study: DeepLabv3+ on MobileNetV2 with 9x9 kernels, Cityscapes, crop 512x1024, 80k
# iterations.
# Published by the authors: 76.11 mIoU.
#
# The recipe is that of deeplabv3plus_mobilenetv2_kernels_3_cityscapes_80k.py; total batch 8. The
# kernels are not dilated where MMSegmentation dilates 3x3 ones.
#
# Starts from the last epoch of mobilenetv2_kernels_9_imagenet_100e.py, where tools/train.py leaves
# it. Another file: --cfg-options model.backbone.init_cfg.checkpoint=FILE; from random weights:
# model.backbone.init_cfg=None.
_base_ = './deeplabv3plus_mobilenetv2_kernels_3_cityscapes_80k.py'

checkpoint = 'work_dirs/mobilenetv2_kernels_9_imagenet_100e/epoch_100.pth'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmreplk.EnlargedBackbone',
        backbone=dict(
            type='mmseg.MobileNetV2',
            widen_factor=1.0,
            strides=(1, 2, 2, 1, 1, 1, 1),
            dilations=(1, 1, 1, 2, 2, 4, 4),
            out_indices=(1, 2, 4, 6),
            norm_cfg=dict(type='SyncBN', requires_grad=True)),
        kernel_size=9,
        small_kernel=None,
        keep_output=False,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')))
