# UperNet on a narrow RepLKNet for the drawn scenes of tools/quickstart.sh: the kernels and the
# blocks of RepLKNet-31B at an eighth of its width, so that two CPU cores train it in minutes.
_base_ = [
    '_base_/models/upernet_replknet31b.py', '_base_/datasets/scenes_ade20k.py',
    '_base_/default_runtime.py'
]

channels = [16, 32, 64, 128]
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(
        arch=dict(
            _delete_=True,
            large_kernel_sizes=[31, 29, 27, 13],
            layers=[1, 1, 2, 1],
            channels=channels,
            small_kernel=5,
            dw_ratio=1),
        drop_path_rate=0.05),
    decode_head=dict(in_channels=channels, channels=64, dropout_ratio=0.0, num_classes=12),
    auxiliary_head=dict(in_channels=64, channels=32, dropout_ratio=0.0, num_classes=12))

max_iters = 480
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-3, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=40),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=40, end=max_iters)
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=240)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

default_hooks = dict(
    logger=dict(interval=40),
    checkpoint=dict(interval=240, max_keep_ckpts=2, save_best=None))
randomness = dict(seed=0)
