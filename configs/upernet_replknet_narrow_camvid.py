# UperNet on a narrow RepLKNet for CamVid, from random weights: the kernels and the blocks of
# RepLKNet-31B at a quarter of its width and a quarter of its depth, so that two CPU cores train it
# in about an hour.
#
# Total batch 8, 5000 x 8 = 0.04M samples (109 times the training images). The classes are weighted
# by the square root of the median frequency over the class's own (frequencies of the pixels of the
# images that show the class, training split), so that the rare ones count and the common ones stay.
_base_ = [
    '_base_/models/upernet_replknet31b.py', '_base_/datasets/camvid_480_360.py',
    '_base_/default_runtime.py', '_base_/schedules/adamw_poly_5k_camvid.py'
]

channels = [32, 64, 128, 256]
unlabelled = 11
weights = [0.53, 0.45, 2.19, 0.39, 1.0, 0.65, 1.96, 1.41, 0.89, 2.52, 2.98]
model = dict(
    data_preprocessor=dict(size=(192, 256), seg_pad_val=unlabelled),
    backbone=dict(
        arch=dict(
            _delete_=True,
            large_kernel_sizes=[31, 29, 27, 13],
            layers=[1, 1, 2, 1],
            channels=channels,
            small_kernel=5,
            dw_ratio=1),
        drop_path_rate=0.05),
    decode_head=dict(
        in_channels=channels,
        channels=64,
        num_classes=11,
        ignore_index=unlabelled,
        loss_decode=dict(class_weight=weights)),
    auxiliary_head=dict(
        in_channels=128,
        channels=64,
        num_classes=11,
        ignore_index=unlabelled,
        loss_decode=dict(class_weight=weights)))

default_hooks = dict(
    # Two, for MMEngine removes the older one before it has written the new one.
    checkpoint=dict(interval=250, max_keep_ckpts=2), recipe_samples=dict(samples=5000 * 8))
auto_scale_lr = dict(enable=False, base_batch_size=8)
