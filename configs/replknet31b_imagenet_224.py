# RepLKNet-31B on ImageNet-1K at 224, from random weights, 300 epochs.
# Published by the authors: 83.5 top-1; MMPretrain measures 83.48 with their weights.
#
# Total batch 2048: 8 GPUs x 64 images x 4 accumulated steps. Other machines: keep the 300 epochs
# and the total batch, by optim_wrapper.accumulative_counts; 32 GPUs need none (1), 4 GPUs 8, and
# custom_hooks.0.interval, which counts the same steps, follows. Another total batch:
# --auto-scale-lr scales the rate with it.
_base_ = [
    '_base_/models/classifier_replknet31b.py', '_base_/datasets/imagenet_224.py',
    '_base_/default_runtime_cls.py', '_base_/schedules/adamw_cosine_300e.py'
]

model = dict(
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]))

default_hooks = dict(recipe_samples=dict(samples=300 * 1281167))
auto_scale_lr = dict(enable=False, base_batch_size=2048)
