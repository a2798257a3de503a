# FCOS, RepLKNet-31B pre-trained on ImageNet-1K, COCO, 2x schedule.
# Published by the authors: 47.0 box AP.
#
# Total batch 16, 8 GPUs x 2 images, MMDetection's usual one; the authors print the rate, 2e-4, but
# not the total batch. Other machines: keep the 24 epochs and scale the rate with the total batch,
# --auto-scale-lr; with 4 x 2 images, 1e-4.
#
# Starting weights: hosted by mmpretrain, converted by them from the authors' file. Without a
# connection: --cfg-options model.backbone.init_cfg.checkpoint=FILE, or
# model.backbone.init_cfg=None.
_base_ = [
    '_base_/models/fcos_replknet31b.py', '_base_/datasets/coco_detection_640_800.py',
    '_base_/default_runtime_det.py', '_base_/schedules/adamw_step_24e.py'
]

checkpoint = ('https://download.openmmlab.com/mmclassification/v0/replknet/'
              'replknet-31B_3rdparty_in1k_20221118-fd08e268.pth')
model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')))

# 117,266 images of train2017 have boxes.
default_hooks = dict(recipe_samples=dict(samples=24 * 117266))
auto_scale_lr = dict(enable=False, base_batch_size=16)
