# Dates, figs and hazelnuts: 18 photographs of 800 x 600 with 165 masks in COCO's format, in one
# file. Every fourth one is for the evaluation: 14 to train on, 4 to score. Half size.
dataset_type = 'CocoDataset'
data_root = 'data/nuts/'
metainfo = dict(classes=('date', 'fig', 'hazelnut'),
                palette=[(220, 120, 40), (120, 60, 180), (60, 160, 90)])
held_out = [3, 7, 11, 15]  # every fourth

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomResize', scale=(400, 300), ratio_range=(0.7, 1.3), keep_ratio=True),
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25],
         direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackDetInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(400, 300), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    # With the instances: the metric takes its truth from them. From the file, it would count the
    # photographs of the training among the missed ones.
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances'))
]

train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        ann_file='trainval.json',
        data_prefix=dict(img='images/'),
        indices=[index for index in range(18) if index % 4 != 3],
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        ann_file='trainval.json',
        data_prefix=dict(img='images/'),
        indices=held_out,
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='CocoMetric', metric=['bbox', 'segm'])
test_evaluator = val_evaluator
