# UperNet, RepLKNet-31B pre-trained on ImageNet-1K, ADE20K, crop 512.
# Published by the authors: 49.9 mIoU single-scale, 50.6 multi-scale with flip (--tta).
#
# For 8 GPUs: tools/dist_train.sh configs/upernet_replknet31b_ade20k.py 8
#
# The recipe sees 160k x 32 = 5.12M samples, twice the usual 160k x 16. The authors ran it as 64
# GPUs x 2 images x 40k iterations with 400 of warm-up; this file spreads the same samples as 8 GPUs
# x 4 images x 160k, with the 1500 warm-up iterations that they use at batch 32. On other machines
# keep the samples. Below a batch of 32 scale the rate with it; above, the authors keep 2e-4:
#
#   GPUs x images | max_iters | warm-up | learning rate
#   ------------- | --------- | ------- | -------------
#   64 x 2 = 128  |    40k    |   400   | 2e-4 (the authors)
#    8 x 4 = 32   |   160k    |  1500   | 2e-4 (this file)
#    8 x 2 = 16   |   320k    |  3000   | 1e-4
#    1 x 4 = 4    |  1280k    | 12000   | 2.5e-5
#
# --auto-scale-lr scales the rate with the total batch, upwards too; the iterations are set in
# train_cfg.max_iters and in begin/end of both param_scheduler entries. Halving the GPUs alone
# halves the samples that the network sees, and costs mIoU.
_base_ = [
    '_base_/models/upernet_replknet31b.py', '_base_/datasets/ade20k_512.py',
    '_base_/default_runtime.py', '_base_/schedules/adamw_poly_160k.py'
]

# Hosted by mmpretrain, converted by them from the authors' file. Without a connection give a local
# copy, --cfg-options model.backbone.init_cfg.checkpoint=FILE, or start from random weights,
# --cfg-options model.backbone.init_cfg=None.
checkpoint = ('https://download.openmmlab.com/mmclassification/v0/replknet/'
              'replknet-31B_3rdparty_in1k_20221118-fd08e268.pth')
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')))

default_hooks = dict(recipe_samples=dict(samples=160000 * 32))
auto_scale_lr = dict(enable=False, base_batch_size=32)
