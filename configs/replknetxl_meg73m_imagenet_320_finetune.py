# RepLKNet-XL pre-trained on MegData73M, fine-tuned on ImageNet-1K at 320.
# Published by the authors: 87.8 top-1; MMPretrain measures 87.57 with their weights, normalizing
# with 122.5 where 127.5 is right.
#
# The authors print no recipe for this run. The one here is that of the 31L at 384, which comes
# closest: a starting point, not theirs.
#
# Total batch 512: 8 GPUs x 16 images x 4 accumulated steps. Other machines: keep the total batch
# by optim_wrapper.accumulative_counts, and set custom_hooks.0.interval to the same number; or scale
# the rate with the batch, --auto-scale-lr.
#
# Starting weights: the authors' file of the pre-training on MegData73M, which only they offer
# (Google Drive, from the page of RepLKNet-pytorch). Put it at the path below, as it is or as
# tools/convert_checkpoint.py writes it, or name it with --cfg-options
# model.backbone.init_cfg.checkpoint=FILE. The head starts anew. From random weights:
# model.backbone.init_cfg=None.
_base_ = [
    '_base_/models/classifier_replknet31b.py', '_base_/datasets/imagenet_320.py',
    '_base_/default_runtime_cls.py', '_base_/schedules/adamw_cosine_30e_layer_decay.py'
]

checkpoint = 'checkpoints/replknetxl_meg73m.pth'
model = dict(
    backbone=dict(
        arch='XL',
        drop_path_rate=0.3,
        with_cp=True,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')),
    head=dict(in_channels=2048))

param_scheduler = [
    dict(
        type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=1,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', eta_min_ratio=3e-4 / 4e-4, by_epoch=True, begin=1, end=30,
        convert_to_iter_based=True)
]

default_hooks = dict(recipe_samples=dict(samples=30 * 1281167))
auto_scale_lr = dict(enable=False, base_batch_size=512)
