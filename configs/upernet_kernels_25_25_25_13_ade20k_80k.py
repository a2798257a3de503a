# Kernel-size study: UperNet, kernels 25-25-25-13 at the width of 31B, ADE20K, crop 512, 80k
# iterations.
# Published by the authors: 48.68 mIoU single-scale.
#
# Total batch 32, 8 GPUs x 4 images, 80k x 32 = 2.56M samples: the batch, like all but the number of
# iterations, is taken from the run of 160k, since the paper prints no more. How to scale to other
# machines: upernet_replknet31b_ade20k.py.
#
# Starts from the last epoch of replknet_kernels_25_25_25_13_imagenet_120e.py, where tools/train.py
# leaves it. Another file: --cfg-options model.backbone.init_cfg.checkpoint=FILE; from random
# weights: model.backbone.init_cfg=None.
_base_ = [
    '_base_/models/upernet_replknet31b.py', '_base_/datasets/ade20k_512.py',
    '_base_/default_runtime.py', '_base_/schedules/adamw_poly_80k.py'
]

checkpoint = 'work_dirs/replknet_kernels_25_25_25_13_imagenet_120e/epoch_120.pth'
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(
        arch=dict(
            _delete_=True,
            large_kernel_sizes=[25, 25, 25, 13],
            layers=[2, 2, 18, 2],
            channels=[128, 256, 512, 1024],
            small_kernel=5),
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')))

default_hooks = dict(recipe_samples=dict(samples=80000 * 32))
auto_scale_lr = dict(enable=False, base_batch_size=32)
