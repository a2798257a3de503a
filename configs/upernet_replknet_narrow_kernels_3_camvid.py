# Kernel study on CamVid: upernet_replknet_narrow_camvid.py with 3x3 kernels in every stage;
# width, schedule and data are the same. A 3x3 kernel has no room for a small one beside it.
# Total batch 8. No figure is published; tools/kernel_study.py --data camvid trains it.
_base_ = './upernet_replknet_narrow_camvid.py'

model = dict(
    backbone=dict(arch=dict(large_kernel_sizes=[3, 3, 3, 3], small_kernel=None)))
