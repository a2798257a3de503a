# UperNet, RepLKNet-XL pre-trained on MegData73M, ADE20K, crop 640.
# Published by the authors: 55.2 mIoU single-scale, 56.0 multi-scale with flip (--tta).
#
# Total batch 32, 8 GPUs x 4 images; the authors: 16 GPUs x 2 x 160k iterations. Both see
# 160k x 32 = 5.12M samples. How to scale to other machines: upernet_replknet31b_ade20k.py.
#
# Starting weights: mmpretrain hosts this network only after its fine-tuning on ImageNet-1K at 320;
# that file is the default. For the pre-training on MegData73M itself name the authors' file,
# --cfg-options model.backbone.init_cfg.checkpoint=FILE, as they offer it or as
# tools/convert_checkpoint.py writes it. From random weights: --cfg-options
# model.backbone.init_cfg=None.
_base_ = [
    '_base_/models/upernet_replknet31b.py', '_base_/datasets/ade20k_640.py',
    '_base_/default_runtime.py', '_base_/schedules/adamw_poly_160k.py'
]

checkpoint = ('https://download.openmmlab.com/mmclassification/v0/replknet/'
              'replknet-XL_meg73m-pre_3rdparty_in1k-320px_20221118-88259b1d.pth')
model = dict(
    data_preprocessor=dict(size=(640, 640), mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(
        arch='XL',
        norm_intermediate_features=True,
        drop_path_rate=0.5,
        with_cp=True,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')),
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024),
    test_cfg=dict(mode='slide', crop_size=(640, 640), stride=(426, 426)))

default_hooks = dict(recipe_samples=dict(samples=160000 * 32))
auto_scale_lr = dict(enable=False, base_batch_size=32)
