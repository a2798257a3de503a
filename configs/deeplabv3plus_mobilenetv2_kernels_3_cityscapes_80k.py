# Guideline study: DeepLabv3+ on MobileNetV2 with its own 3x3 kernels, Cityscapes, crop 512x1024,
# 80k iterations.
# Published by the authors: 72.31 mIoU.
#
# Of this recipe network and data are the authors'; the rest is MMSegmentation's for this network:
# total batch 8, 4 GPUs x 2 images, 80k x 8 = 0.64M samples, SGD. Other machines: keep the samples;
# --auto-scale-lr scales the rate with the total batch.
#
# Starts from the last epoch of mobilenetv2_kernels_3_imagenet_100e.py, where tools/train.py leaves
# it. Another file: --cfg-options model.backbone.init_cfg.checkpoint=FILE; from random weights:
# model.backbone.init_cfg=None.
_base_ = [
    '_base_/models/deeplabv3plus_mobilenetv2.py', '_base_/datasets/cityscapes_512_1024.py',
    '_base_/default_runtime.py', '_base_/schedules/sgd_poly_80k.py'
]

checkpoint = 'work_dirs/mobilenetv2_kernels_3_imagenet_100e/epoch_100.pth'
model = dict(
    data_preprocessor=dict(size=(512, 1024)),
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')))

default_hooks = dict(
    checkpoint=dict(interval=8000), recipe_samples=dict(samples=80000 * 8))
auto_scale_lr = dict(enable=False, base_batch_size=8)
