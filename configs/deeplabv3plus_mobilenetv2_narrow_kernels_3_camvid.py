# Guideline study on CamVid: DeepLabv3+ on MobileNetV2 of a quarter of the width with its own 3x3
# kernels, from random weights, for two CPU cores. Its kernels and shortcuts are what the other
# files deeplabv3plus_mobilenetv2_narrow_*_camvid.py change.
# No figure is published for this; total batch 8, 5000 x 8 = 0.04M samples. Data, schedule and class
# weights are those of upernet_replknet_narrow_camvid.py.
_base_ = [
    '_base_/models/deeplabv3plus_mobilenetv2.py', '_base_/datasets/camvid_480_360.py',
    '_base_/default_runtime.py', '_base_/schedules/adamw_poly_5k_camvid.py'
]

unlabelled = 11
weights = [0.53, 0.45, 2.19, 0.39, 1.0, 0.65, 1.96, 1.41, 0.89, 2.52, 2.98]
model = dict(
    data_preprocessor=dict(size=(192, 256), seg_pad_val=unlabelled),
    backbone=dict(widen_factor=0.25),
    decode_head=dict(
        in_channels=80,
        channels=64,
        # Half of the usual ones, for crops of half the usual size.
        dilations=(1, 6, 12, 18),
        c1_in_channels=8,
        c1_channels=16,
        num_classes=11,
        ignore_index=unlabelled,
        loss_decode=dict(class_weight=weights)),
    auxiliary_head=dict(
        in_channels=24,
        channels=32,
        num_classes=11,
        ignore_index=unlabelled,
        loss_decode=dict(class_weight=weights)))

default_hooks = dict(
    # Two, for MMEngine removes the older one before it has written the new one.
    checkpoint=dict(interval=250, max_keep_ckpts=2), recipe_samples=dict(samples=5000 * 8))
auto_scale_lr = dict(enable=False, base_batch_size=8)
