# Runtime of the detection experiments: hooks, visualizer, log and environment.
default_scope = 'mmdet'
custom_imports = dict(imports=['mmreplk'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='mmreplk.SafeLoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmreplk.SafeCheckpointHook',
        interval=1,
        max_keep_ckpts=3,
        save_best='coco/bbox_mAP',
        rule='greater'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'),
    recipe_samples=dict(type='mmreplk.RecipeSamplesHook'),
    finite_loss=dict(type='mmreplk.FiniteLossHook'),
    guarded_data=dict(type='mmreplk.GuardedDataHook'),
    repeatable_random=dict(type='mmreplk.RepeatableRandomHook'),
    work_dir_lock=dict(type='mmreplk.WorkDirLockHook'))

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
