# MMEngine's FlexibleRunner with FSDP: each block of RepLKNet is a unit, all else is the outer one.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='ResumableFSDPStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        use_orig_params=True,
        auto_wrap_policy='wrap_replknet_blocks'),
    state_dict_cfg='full')
