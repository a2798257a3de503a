# Kernel study on CamVid: upernet_replknet_narrow_camvid.py with 7x7 kernels in every stage;
# width, schedule and data are the same. Beside each stands the 5x5 kernel of the paper.
# Total batch 8. No figure is published; tools/kernel_study.py --data camvid trains it.
_base_ = './upernet_replknet_narrow_camvid.py'

model = dict(
    backbone=dict(arch=dict(large_kernel_sizes=[7, 7, 7, 7], small_kernel=5)))
