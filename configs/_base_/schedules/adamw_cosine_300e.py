# Training on ImageNet from random weights: 300 epochs of AdamW at a total batch of 2048 (8 GPUs x
# 64 images x 4 accumulated steps), 10 epochs of warm-up, cosine down to 1e-6, EMA.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='AdamW', lr=4e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05, fused=True),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    accumulative_counts=4)
param_scheduler = [
    dict(
        type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=10,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', eta_min_ratio=1e-6 / 4e-3, by_epoch=True, begin=10, end=300,
        convert_to_iter_based=True)
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=300, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# One update of the averages for each step of the optimizer; running statistics are averaged too,
# as they belong to the averaged weights.
custom_hooks = [
    dict(
        type='EMAHook', momentum=1e-4, interval=4, update_buffers=True, priority='ABOVE_NORMAL')
]
