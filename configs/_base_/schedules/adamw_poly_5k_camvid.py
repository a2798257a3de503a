# CamVid on two CPU cores: 5000 iterations of AdamW, linear warm-up, then polynomial decay to zero.
# What is validated, saved for the test and best is the average of the weights over the last tenth
# of the iterations so far; it makes up for the noise of small batches.
max_iters = 5000
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=200),
    dict(type='PolyLR', eta_min=0.0, power=0.9, by_epoch=False, begin=200, end=max_iters)
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=1000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
custom_hooks = [
    dict(type='EMAHook', ema_type='MomentumAnnealingEMA', momentum=0.002, gamma=10,
         update_buffers=True)
]
randomness = dict(seed=0)
