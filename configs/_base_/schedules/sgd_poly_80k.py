# 80k iterations of SGD with polynomial decay of power 0.9, as MMSegmentation trains on Cityscapes.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4))
param_scheduler = dict(
    type='PolyLR', eta_min=1e-4, power=0.9, by_epoch=False, begin=0, end=80000)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=80000, val_interval=8000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
