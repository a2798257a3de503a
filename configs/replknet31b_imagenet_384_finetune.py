# RepLKNet-31B, ImageNet-1K at 224, fine-tuned at 384 for 30 epochs.
# Published by the authors: 84.8 top-1; MMPretrain measures 84.84 with their weights.
#
# Total batch 1024: 8 GPUs x 32 images x 4 accumulated steps. Other machines: keep the total batch
# by optim_wrapper.accumulative_counts, and set custom_hooks.0.interval to the same number; or scale
# the rate with the batch, --auto-scale-lr.
#
# Starting weights: hosted by mmpretrain, converted by them from the authors' file; the head is
# kept. Weights of your own: --cfg-options model.init_cfg.checkpoint=FILE. From random weights:
# model.init_cfg=None.
_base_ = [
    '_base_/models/classifier_replknet31b.py', '_base_/datasets/imagenet_384.py',
    '_base_/default_runtime_cls.py', '_base_/schedules/adamw_cosine_30e_layer_decay.py'
]

checkpoint = ('https://download.openmmlab.com/mmclassification/v0/replknet/'
              'replknet-31B_3rdparty_in1k_20221118-fd08e268.pth')
model = dict(
    init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    backbone=dict(drop_path_rate=0.8, with_cp=True))
train_dataloader = dict(batch_size=32)

default_hooks = dict(recipe_samples=dict(samples=30 * 1281167))
auto_scale_lr = dict(enable=False, base_batch_size=1024)
