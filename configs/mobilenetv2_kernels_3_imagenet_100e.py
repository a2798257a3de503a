# Guideline study: MobileNetV2 with its own 3x3 kernels, ImageNet-1K at 224, 100 epochs.
# Published by the authors: 71.76 top-1.
#
# Of this recipe the epochs are the authors'. Optimizer, rate, total batch 256 (8 GPUs x 32 images),
# crops and flips are those of MMPretrain for MobileNetV2; the rate falls along a cosine, as in its
# schedules of 100 epochs. Other machines: keep the total batch, or scale the rate with it by
# --auto-scale-lr.
_base_ = [
    '_base_/models/classifier_mobilenetv2.py', '_base_/datasets/imagenet_224_plain.py',
    '_base_/default_runtime_cls.py', '_base_/schedules/sgd_cosine_100e.py'
]

default_hooks = dict(recipe_samples=dict(samples=100 * 1281167))
auto_scale_lr = dict(enable=False, base_batch_size=256)
