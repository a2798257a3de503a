# Drawn scenes (tools/dataset/draw_scenes.py) in ADE20K's layout and label numbers, 128 x 128.
# ADE20KDataset maps the labels to the classes named here and ignores the others, so data_root may
# also point to ADE20K itself.
dataset_type = 'ADE20KDataset'
data_root = 'data/scenes'
metainfo = dict(
    classes=('building', 'sky', 'tree', 'road', 'grass', 'sidewalk', 'person', 'mountain', 'car',
             'water', 'fence', 'boat'))
crop_size = (128, 128)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    # Leaves the drawn scenes as they are and shrinks the images of ADE20K. No further distortion:
    # the drawing varies size and light already, and a run of minutes has no time to overfit.
    dict(type='Resize', scale=(512, 128), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(512, 128), keep_ratio=True),
    # After Resize, as the prediction is compared with the label at its own size.
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]

train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        reduce_zero_label=True,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        reduce_zero_label=True,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
