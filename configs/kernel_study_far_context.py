# Kernel study on drawn data (tools/kernel_study.py): a narrow RepLKNet (an eighth of 31B) whose
# kernels are all of one size, under a head that sees one pixel of the feature maps at a time.
#
# Two stages, of strides 4 and 8: with the four of RepLKNet-31B, the map of stride 32 would reach
# across these small images with 3x3 kernels. The head is 1x1 convolutions: UperNet's pyramid
# pooling would show every pixel the whole image, whatever the kernels. A 3x3 kernel has no room
# for a small one beside it; the others have the 5x5 of the paper.
_base_ = ['_base_/datasets/far_context_ade20k.py', '_base_/default_runtime.py']

channels = [16, 32]
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    _scope_='mmseg',
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(192, 192)),
    backbone=dict(
        type='mmreplk.RepLKNet',
        arch=dict(
            large_kernel_sizes=[31, 31], layers=[2, 2], channels=channels, small_kernel=5),
        drop_path_rate=0.0,
        norm_cfg=norm_cfg),
    decode_head=dict(
        type='FCNHead',
        in_channels=channels,
        in_index=[0, 1],
        input_transform='resize_concat',
        channels=64,
        num_convs=1,
        kernel_size=1,
        concat_input=False,
        dropout_ratio=0.0,
        num_classes=4,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))

max_iters = 700
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-3, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=40),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=40, end=max_iters)
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

default_hooks = dict(
    logger=dict(interval=40),
    # Two, for MMEngine removes the older one before it has written the new one.
    checkpoint=dict(interval=100, max_keep_ckpts=2, save_best=None))
randomness = dict(seed=0)
