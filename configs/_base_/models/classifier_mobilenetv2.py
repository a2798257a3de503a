# Classifier on MobileNetV2, 1000 classes, as MMPretrain builds it.
model = dict(
    _scope_='mmpretrain',
    type='ImageClassifier',
    backbone=dict(type='mmpretrain.MobileNetV2', widen_factor=1.0),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=1280,
        topk=(1, 5),
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
