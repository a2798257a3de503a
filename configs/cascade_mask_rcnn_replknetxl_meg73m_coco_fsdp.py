# Cascade Mask R-CNN, RepLKNet-XL pre-trained on MegData73M, COCO, 3x schedule, sharded over
# the GPUs by FSDP.
# Published by the authors, who trained without FSDP: 55.5 box AP, 48.0 mask AP.
#
# The recipe, its total batch of 32 and its starting weights are those of
# cascade_mask_rcnn_replknetxl_meg73m_coco.py. Weights, gradients and optimizer state, 16 bytes for
# each of 392M parameters, are spread over the GPUs; the blocks recompute their activations.
# Checkpoints are whole and load without FSDP. Tests: use the config without FSDP.
_base_ = ['./cascade_mask_rcnn_replknetxl_meg73m_coco.py', '_base_/fsdp.py']
