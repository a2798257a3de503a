# RepLKNet-XL pre-trained on MegData73M, fine-tuned on ImageNet-1K at 320, sharded over the GPUs by
# FSDP.
# Published by the authors, who trained without FSDP: 87.8 top-1.
#
# The recipe, not the authors', its total batch of 512 and its starting weights are those of
# replknetxl_meg73m_imagenet_320_finetune.py, without EMA: MMEngine's EMAHook copies the model,
# which a sharded one does not allow. Weights, gradients and optimizer state, 16 bytes for each of
# 335M parameters, are spread over the GPUs; the blocks recompute their activations. Checkpoints
# are whole and load without FSDP. Tests: use the config without FSDP.
_base_ = ['./replknetxl_meg73m_imagenet_320_finetune.py', '_base_/fsdp.py']

custom_hooks = []
