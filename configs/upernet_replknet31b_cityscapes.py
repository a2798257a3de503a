# UperNet, RepLKNet-31B pre-trained on ImageNet-1K, Cityscapes, crop 769.
# Published by the authors: 83.1 mIoU single-scale, 83.5 multi-scale with flip (--tta).
#
# Total batch 16, 8 GPUs x 2 images, 80k iterations; the authors: 32 GPUs x 2 x 20k with 400
# iterations of warm-up. Both see 80k x 16 = 1.28M samples, and both warm up for 2% of them. The
# authors' rate is 2e-4 in all their segmentation runs, at total batches of 32 to 128.
#
#   GPUs x images | max_iters | warm-up | learning rate
#   ------------- | --------- | ------- | -------------
#   32 x 2 = 64   |    20k    |   400   | 2e-4 (the authors)
#    8 x 2 = 16   |    80k    |  1600   | 2e-4 (this file)
#    4 x 2 = 8    |   160k    |  3200   | 1e-4
#    1 x 2 = 2    |   640k    | 12800   | 2.5e-5
#
# --auto-scale-lr scales the rate with the total batch; the iterations are set in
# train_cfg.max_iters and in begin/end of both param_scheduler entries.
_base_ = [
    '_base_/models/upernet_replknet31b.py', '_base_/datasets/cityscapes_769.py',
    '_base_/default_runtime.py', '_base_/schedules/adamw_poly_80k.py'
]

# Hosted by mmpretrain, converted by them from the authors' file. Without a connection give a local
# copy, --cfg-options model.backbone.init_cfg.checkpoint=FILE, or start from random weights,
# --cfg-options model.backbone.init_cfg=None.
checkpoint = ('https://download.openmmlab.com/mmclassification/v0/replknet/'
              'replknet-31B_3rdparty_in1k_20221118-fd08e268.pth')
model = dict(
    data_preprocessor=dict(size=(769, 769)),
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')),
    decode_head=dict(num_classes=19, align_corners=True),
    auxiliary_head=dict(num_classes=19, align_corners=True))

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1600),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=1600, end=80000)
]
default_hooks = dict(recipe_samples=dict(samples=80000 * 16))
auto_scale_lr = dict(enable=False, base_batch_size=16)
