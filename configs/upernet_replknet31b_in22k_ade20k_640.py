# UperNet, RepLKNet-31B pre-trained on ImageNet-22K, ADE20K, crop 640.
# Published by the authors: 51.5 mIoU single-scale, 52.3 multi-scale with flip (--tta).
#
# Total batch 32, 8 GPUs x 4 images; the authors: 64 GPUs x 2 x 40k iterations. Both see 160k x 32 =
# 5.12M samples. How to scale to other machines: upernet_replknet31b_ade20k.py.
#
# Starting weights: mmpretrain hosts this network only after its fine-tuning on ImageNet-1K at 224;
# that file is the default. For the pre-training on ImageNet-22K itself name the authors' file,
# --cfg-options model.backbone.init_cfg.checkpoint=FILE, as they offer it or as
# tools/convert_checkpoint.py writes it. From random weights: --cfg-options
# model.backbone.init_cfg=None.
_base_ = [
    '_base_/models/upernet_replknet31b.py', '_base_/datasets/ade20k_640.py',
    '_base_/default_runtime.py', '_base_/schedules/adamw_poly_160k.py'
]

checkpoint = ('https://download.openmmlab.com/mmclassification/v0/replknet/'
              'replknet-31B_in21k-pre_3rdparty_in1k_20221118-54ed5c46.pth')
model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')),
    test_cfg=dict(mode='slide', crop_size=(640, 640), stride=(426, 426)))

default_hooks = dict(recipe_samples=dict(samples=160000 * 32))
auto_scale_lr = dict(enable=False, base_batch_size=32)
