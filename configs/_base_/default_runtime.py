# Runtime of the segmentation experiments: hooks, visualizer, log and environment.
default_scope = 'mmseg'
custom_imports = dict(imports=['mmreplk'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(
        type='mmreplk.SafeLoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmreplk.SafeCheckpointHook',
        by_epoch=False,
        interval=16000,
        max_keep_ckpts=3,
        save_best='mIoU'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
    recipe_samples=dict(type='mmreplk.RecipeSamplesHook'),
    finite_loss=dict(type='mmreplk.FiniteLossHook'),
    guarded_data=dict(type='mmreplk.GuardedDataHook'),
    repeatable_random=dict(type='mmreplk.RepeatableRandomHook'),
    work_dir_lock=dict(type='mmreplk.WorkDirLockHook'))

env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False
