# Shape bias of RepLKNet-31B at 224: tools/test.py with this file and trained weights.
#
# Data: the 1280 cue-conflict images of Geirhos et al. (ImageNet-trained CNNs are biased towards
# texture, ICLR 2019), each with the shape of one category and the texture of another, as
# data/cue-conflict/<shape>/<shape>N-<texture>M.png. The answers go to
# <csv_dir>/cue_conflict_<model_name>_session-1.csv, for tools/shape_bias.py. Another network: these
# lines over its config, with a model_name of its own.
_base_ = './replknet31b_imagenet_224.py'

test_dataloader = dict(
    _delete_=True,
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset', data_root='data/cue-conflict', pipeline={{_base_.test_pipeline}}))
test_evaluator = dict(
    _delete_=True,
    type='ShapeBiasMetric',
    csv_dir='work_dirs/shape_bias',
    model_name='replknet31b')
