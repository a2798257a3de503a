# Guideline study on CamVid: deeplabv3plus_mobilenetv2_narrow_kernels_3_camvid.py with 9x9
# kernels and no shortcuts.
# No figure is published for this; total batch 8.
_base_ = './deeplabv3plus_mobilenetv2_narrow_kernels_9_camvid.py'

model = dict(backbone=dict(shortcut=False))
