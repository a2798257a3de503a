"""``--reduce N``: the same run on a narrow, shallow network, to try everything else about it."""

from mmengine.config import Config, ConfigDict

from ..config.edit import leaves
from ..config.model import drop_pretrained
from ..models.arch import parse_arch
from ..models.from_config import check_backbone, has_replknet

# Not of the network: what goes in, and the pictures' statistics.
KEPT = ('backbone', 'data_preprocessor')
# GN's; of transformers, and of their positional encodings, which have half of it.
WIDTHS = ('num_groups', 'embed_dims', 'num_feats')
# The sizes of images in transforms and preprocessors, and what they are divided by at most.
SIZES = ('crop_size', 'scale', 'scales', 'size', 'img_scale', 'random_size')
SHRINKAGE = 4
STEP = 32  # the stride of the last stage, whose multiples the sizes are
BATCH = 2  # the least of which a norm can take statistics


def reduce_model(cfg: Config, divisor: int) -> str:
    """Divide the widths of backbone, necks and heads, and leave one pair of blocks a stage.

    Images to train on are resized and cropped to a quarter (half, with 2) of their side, two to a
    batch. Kernels, classes, losses and the data of the evaluation stay as they are. Weights to
    start from are dropped: they do not fit any more.

    Args:
        cfg (Config): The full config, changed in place.
        divisor (int): What the widths are divided by, rounded down to no less than 1. A power of
            two, so that groups of channels stay whole.

    Returns:
        str: One line for the log.

    Raises:
        ValueError: If ``divisor`` is no power of two from 2, or the backbone is not RepLKNet, or
            one with an impossible argument.
    """
    if divisor < 2 or divisor & (divisor - 1):
        raise ValueError(f'--reduce {divisor}: give a power of two from 2, such as --reduce 16.')
    if not has_replknet(cfg):
        kind = (cfg.model.get('backbone') or {}).get('type')
        raise ValueError(f'--reduce {divisor}: it knows how to reduce RepLKNet, but model.backbone '
                         f'of CONFIG {cfg.filename} is {kind!r}. Leave --reduce out.')
    check_backbone(cfg)
    backbone = cfg.model.backbone
    arch = parse_arch(
        backbone.arch, backbone.pop('small_kernel', 'arch'), backbone.pop('dw_ratio', None),
        backbone.pop('ffn_ratio', None))
    backbone.arch = ConfigDict(
        large_kernel_sizes=list(arch.large_kernel_sizes),
        layers=[1] * len(arch.layers),
        channels=_divided(arch.channels, divisor),
        small_kernel=arch.small_kernel,
        dw_ratio=arch.dw_ratio,
        ffn_ratio=arch.ffn_ratio)
    for name, part in cfg.model.items():
        if name not in KEPT:
            _divide_widths(part, divisor)
    drop_pretrained(cfg.model)
    if not cfg.get('resume'):
        cfg.load_from = None
    images = _reduce_images(cfg, min(divisor, SHRINKAGE))
    return (f'--reduce {divisor}: widths divided by {divisor}, one pair of blocks a stage, random '
            f'weights; {images}. The config in the work dir is the reduced one.')


def _reduce_images(cfg: Config, divisor: int) -> str:
    """Smaller images to train on, and fewer of them at once; says so."""
    for dataset in leaves(cfg.train_dataloader.dataset):
        for step in dataset.get('pipeline') or ():
            _divide_sizes(step, divisor)
    for owner in (cfg, cfg.model):
        _divide_sizes(owner.get('data_preprocessor'), divisor)
    parts = [f'sides of images to train on divided by {divisor}']
    batch = cfg.train_dataloader.get('batch_size')
    if batch is not None and batch > BATCH:
        cfg.train_dataloader.batch_size = BATCH
        parts.append(f'batch {BATCH} in place of {batch}')
    return ', '.join(parts)


def _divide_sizes(node, divisor: int) -> None:
    """Divide the sizes in pixels among the arguments of a transform, at any depth."""
    if isinstance(node, (list, tuple)):
        for item in node:
            _divide_sizes(item, divisor)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in SIZES and _is_size(value):
                node[key] = _smaller(value, divisor)
            else:
                _divide_sizes(value, divisor)


def _is_size(value) -> bool:
    """Whether it is in pixels: whole numbers, of one image or of several to choose from."""
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(map(_is_size, value))
    return isinstance(value, int) and not isinstance(value, bool) and value >= STEP


def _smaller(value, divisor: int):
    if isinstance(value, (list, tuple)):
        return type(value)(_smaller(item, divisor) for item in value)
    return -(-value // (divisor * STEP)) * STEP


def _divided(widths, divisor: int):
    if isinstance(widths, int):
        return max(1, widths // divisor)
    return [_divided(width, divisor) for width in widths]


def _divide_widths(node, divisor: int) -> None:
    """Divide what is called ``...channels``, the widths of transformers, and GN's groups."""
    if isinstance(node, (list, tuple)):
        for item in node:
            _divide_widths(item, divisor)
    elif isinstance(node, dict):
        for key, value in node.items():
            if (key.endswith('channels') or key in WIDTHS) and _is_width(value):
                node[key] = _divided(value, divisor)
            else:
                _divide_widths(value, divisor)


def _is_width(value) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_width, value))
    return isinstance(value, int) and not isinstance(value, bool)
