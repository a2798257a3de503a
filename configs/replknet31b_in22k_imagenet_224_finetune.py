# RepLKNet-31B pre-trained on ImageNet-22K, fine-tuned on ImageNet-1K at 224 for 30 epochs.
# Published by the authors: 85.2 top-1; MMPretrain measures 85.20 with their weights.
#
# Total batch 512: 8 GPUs x 32 images x 2 accumulated steps. Other machines: keep the total batch
# by optim_wrapper.accumulative_counts, and set custom_hooks.0.interval to the same number; or scale
# the rate with the batch, --auto-scale-lr.
#
# Starting weights: the authors' file of the pre-training on ImageNet-22K, which only they offer
# (Google Drive, from the page of RepLKNet-pytorch). Put it at the path below, as it is or as
# tools/convert_checkpoint.py writes it, or name it with --cfg-options
# model.backbone.init_cfg.checkpoint=FILE. The head starts anew. From random weights:
# model.backbone.init_cfg=None.
_base_ = [
    '_base_/models/classifier_replknet31b.py', '_base_/datasets/imagenet_224.py',
    '_base_/default_runtime_cls.py', '_base_/schedules/adamw_cosine_30e_layer_decay.py'
]

checkpoint = 'checkpoints/replknet31b_in22k.pth'
model = dict(
    backbone=dict(
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')))
train_dataloader = dict(batch_size=32)

optim_wrapper = dict(accumulative_counts=2)
custom_hooks = [
    dict(
        type='EMAHook', momentum=1e-4, interval=2, update_buffers=True, priority='ABOVE_NORMAL')
]
default_hooks = dict(recipe_samples=dict(samples=30 * 1281167))
auto_scale_lr = dict(enable=False, base_batch_size=512)
