# 80k iterations of AdamW: linear warm-up, then polynomial decay of power 1.
_base_ = './adamw_poly_160k.py'
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=750),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=750, end=80000)
]
train_cfg = dict(max_iters=80000, val_interval=8000)
