# Fine-tuning on ImageNet: 30 epochs of AdamW, one of warm-up, cosine down to 1e-6, layer-wise decay
# of the learning rate by 0.7, no mixup and no cutmix, EMA.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='AdamW', lr=4e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-8, fused=True),
    constructor='RepLKNetLayerDecayConstructor',
    paramwise_cfg=dict(
        layer_decay=0.7, norm_decay_mult=0.0, bias_decay_mult=0.0),
    accumulative_counts=4)
# The minimum is a ratio: each layer has a minimum of its own, decayed like its rate.
param_scheduler = [
    dict(
        type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=1,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', eta_min_ratio=1e-6 / 4e-4, by_epoch=True, begin=1, end=30,
        convert_to_iter_based=True)
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=30, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# One update of the averages for each step of the optimizer; running statistics are averaged too,
# as they belong to the averaged weights.
custom_hooks = [
    dict(
        type='EMAHook', momentum=1e-4, interval=4, update_buffers=True, priority='ABOVE_NORMAL')
]
