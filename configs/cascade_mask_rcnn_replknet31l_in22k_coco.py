# Cascade Mask R-CNN, RepLKNet-31L pre-trained on ImageNet-22K, COCO, 3x schedule.
# Published by the authors: 53.9 box AP, 46.5 mask AP.
#
# Total batch 32, 8 GPUs x 4 images. The authors print the rate, 4e-4, but not the total batch; 32
# is what MMDetection's rule of proportion gives from their FCOS (2e-4 at MMDetection's usual 16).
# Other machines: keep the 36 epochs and scale the rate with the total batch, --auto-scale-lr; with
# 8 x 2 images, 2e-4.
#
# Starting weights: mmpretrain hosts this network only after its fine-tuning on ImageNet-1K at 384;
# that file is the default. For the pre-training on ImageNet-22K itself name the authors' file,
# --cfg-options model.backbone.init_cfg.checkpoint=FILE, as they offer it or as
# tools/convert_checkpoint.py writes it. From random weights: --cfg-options
# model.backbone.init_cfg=None.
_base_ = [
    '_base_/models/cascade_mask_rcnn_replknet31b.py', '_base_/datasets/coco_instance_480_800.py',
    '_base_/default_runtime_det.py', '_base_/schedules/adamw_step_36e.py'
]

checkpoint = ('https://download.openmmlab.com/mmclassification/v0/replknet/'
              'replknet-31L_in21k-pre_3rdparty_in1k-384px_20221118-dc3fc07c.pth')
model = dict(
    backbone=dict(
        arch='31L',
        drop_path_rate=0.7,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')),
    neck=dict(in_channels=[192, 384, 768, 1536]))

# 117,266 images of train2017 have boxes.
default_hooks = dict(recipe_samples=dict(samples=36 * 117266))
auto_scale_lr = dict(enable=False, base_batch_size=32)
