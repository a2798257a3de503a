# FSDP: each block of RepLKNet is a unit, all else is the outer one. For MMEngine's FlexibleRunner:
# a config with this base sets runner_type = 'mmreplk.SafeFlexibleRunner'.
strategy = dict(
    type='ResumableFSDPStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        use_orig_params=True,
        auto_wrap_policy='wrap_replknet_blocks'),
    state_dict_cfg='full')
