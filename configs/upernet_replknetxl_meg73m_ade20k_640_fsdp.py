# UperNet, RepLKNet-XL pre-trained on MegData73M, ADE20K, crop 640, sharded over the GPUs by FSDP.
# Published by the authors, who trained without FSDP: 55.2 mIoU single-scale, 56.0 multi-scale with
# flip (--tta).
#
# The recipe, its total batch of 32 and its starting weights are those of
# upernet_replknetxl_meg73m_ade20k_640.py. Weights, gradients and optimizer state, 16 bytes for each
# of 374M parameters, are spread over the GPUs; the blocks recompute their activations. Where a GPU
# cannot hold 4 images, optim_wrapper.accumulative_counts does not keep the samples by itself: with
# train_dataloader.batch_size=1 and accumulative_counts=4 the run takes 4 times the iterations.
# Checkpoints are whole and load without FSDP. --tta and tests: use the config without FSDP.
_base_ = ['./upernet_replknetxl_meg73m_ade20k_640.py', '_base_/fsdp.py']
