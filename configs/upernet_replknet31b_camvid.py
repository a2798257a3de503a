# UperNet on RepLKNet-31B, pre-trained on ImageNet-1K, CamVid at 480 x 360, for one GPU.
# No figure is published, and it was not trained here.
#
# Total batch 16, 1 GPU x 16 images, 10k x 16 = 0.16M samples (436 times the training images).
# Whole images at half to twice their size; the rate is that of the authors' Cityscapes runs.
#
# Starting weights: hosted by mmpretrain, converted by them from the authors' file. Without a
# connection: --cfg-options model.backbone.init_cfg.checkpoint=FILE, or
# model.backbone.init_cfg=None.
_base_ = [
    '_base_/models/upernet_replknet31b.py', '_base_/datasets/camvid_480_360.py',
    '_base_/default_runtime.py'
]

checkpoint = ('https://download.openmmlab.com/mmclassification/v0/replknet/'
              'replknet-31B_3rdparty_in1k_20221118-fd08e268.pth')
crop_size = (360, 480)
unlabelled = 11
model = dict(
    data_preprocessor=dict(size=crop_size, seg_pad_val=unlabelled),
    backbone=dict(
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')),
    decode_head=dict(
        num_classes=11, ignore_index=unlabelled, loss_decode=dict(avg_non_ignore=True)),
    auxiliary_head=dict(
        num_classes=11, ignore_index=unlabelled, loss_decode=dict(avg_non_ignore=True)))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(480, 360), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75, ignore_index=unlabelled),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs')
]
train_dataloader = dict(batch_size=16, num_workers=8, dataset=dict(pipeline=train_pipeline))

max_iters = 10000
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    paramwise_cfg=dict(norm_decay_mult=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=500, end=max_iters)
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=1000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

default_hooks = dict(
    checkpoint=dict(interval=1000), recipe_samples=dict(samples=max_iters * 16))
auto_scale_lr = dict(enable=False, base_batch_size=16)
