# Classifier on RepLKNet-31B, 1000 classes: norm, average pooling, linear. BN, not SyncBN, as the
# authors train on ImageNet.
model = dict(
    _scope_='mmpretrain',
    type='ImageClassifier',
    backbone=dict(
        type='mmreplk.RepLKNet',
        arch='31B',
        out_indices=(3, ),
        final_norm=True,
        drop_path_rate=0.5),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=1024,
        topk=(1, 5),
        init_cfg=None,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')))
