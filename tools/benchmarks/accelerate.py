"""Time networks of others, stock in both layouts against accelerated in both, in one run.

Prints a table whose last column is the best stock time over the best accelerated one.
"""

import argparse
import copy
import sys

import rows
import timing
import torch

import mmreplk

TIMM = ('convnext_tiny', 'inception_next_tiny', 'mambaout_tiny', 'starnet_s4', 'convmixer_768_32',
        'hgnetv2_b0', 'fastvit_t8', 'repvit_m1_0', 'efficientnet_b0', 'mobilenetv3_large_100')
TORCHVISION = ('mobilenet_v2', 'efficientnet_b0', 'convnext_tiny', 'mnasnet1_0')
MMPRETRAIN = {'ConvNeXt': dict(type='ConvNeXt', arch='tiny'), 'VAN': dict(type='VAN', arch='small'),
              'HorNet': dict(type='HorNet', arch='tiny'),
              'MobileNetV3': dict(type='MobileNetV3', arch='large')}
LAYOUTS = {'NCHW': torch.contiguous_format, 'channels-last': torch.channels_last}
# Largest difference from the stock network, as a share of its largest output.
TOLERANCE = 1e-3


def build(name: str) -> torch.nn.Module:
    """``timm:NAME``, ``torchvision:NAME``, ``mmpretrain:NAME``, ``mmseg:MSCAN-T`` or
    ``mmdet:RTMDet-tiny`` in evaluation mode with random weights."""
    package, _, network = name.partition(':')
    if package == 'timm':
        import timm
        model = timm.create_model(network)
    elif package == 'torchvision':
        import torchvision
        model = getattr(torchvision.models, network)()
    elif package == 'mmpretrain':
        import mmpretrain.models  # noqa: F401  # registers them
        from mmengine.registry import DefaultScope
        from mmpretrain.registry import MODELS
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(MMPRETRAIN[network])
    elif package == 'mmseg':
        from mmseg.models.backbones import MSCAN
        model = MSCAN(embed_dims=[32, 64, 160, 256], depths=[3, 3, 5, 2], drop_path_rate=0.0,
                      norm_cfg=dict(type='BN'))
    else:
        import mmdet.models  # noqa: F401  # registers them
        from mmdet.registry import MODELS
        from mmengine.hub import get_config
        from mmengine.registry import DefaultScope
        cfg = get_config('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py')
        cfg.model.backbone.init_cfg = cfg.model.test_cfg = None
        with DefaultScope.overwrite_default_scope('mmdet'):
            model = MODELS.build(cfg.model)
    model.eval()  # of mmpretrain's it returns nothing
    # Scales of layers that start near zero would hide what a branch computes.
    for parameter in model.parameters():
        if parameter.dim() <= 3 and 0 < parameter.abs().max() < 1e-2:
            parameter.fill_(0.5)
    return model


ALL = (*(f'timm:{name}' for name in TIMM), *(f'torchvision:{name}' for name in TORCHVISION),
       *(f'mmpretrain:{name}' for name in MMPRETRAIN), 'mmseg:MSCAN-T', 'mmdet:RTMDet-tiny')


def flat(out) -> torch.Tensor:
    """All outputs of a network as one vector."""
    if isinstance(out, torch.Tensor):
        return out.flatten()
    return torch.cat([flat(part) for part in out])


def measure(name: str, shape: tuple[int, ...], args, device) -> list[dict]:
    """The rows of one network: each candidate with its times, or why it has none."""
    stock, found, jobs = build(name).to(device), [], {}
    x = torch.randn(shape, device=device)
    expected = flat(stock(x))
    for kind in ('stock', 'accelerated'):
        for layout, memory_format in LAYOUTS.items():
            model = copy.deepcopy(stock).to(memory_format=memory_format)
            image = x.contiguous(memory_format=memory_format)
            table = mmreplk.accelerate(model, image, policy=args.policy,
                                       inference=args.inference) if kind == 'accelerated' else None
            error = ((flat(model(image)) - expected).abs().max() / expected.abs().max()).item()
            row = dict(suite='accelerate', network=name, candidate=kind, layout=layout,
                       batch=shape[0], height=shape[2], width=shape[3], dtype='fp32',
                       policy=args.policy, inference=args.inference, error=error,
                       changed=table and len(table.changed), summary=table and table.summary(),
                       status='ok' if error <= TOLERANCE else 'wrong')
            found.append(row)
            if row['status'] == 'ok':
                jobs[kind, layout] = timing.Job(lambda model=model, image=image: model(image))
    times = timing.interleaved(jobs, device, args.seconds)
    for row in found:
        taken = times.get((row['candidate'], row['layout']))
        if taken is not None:
            row |= dict(median_ms=taken.median, p20_ms=taken.p20, p80_ms=taken.p80,
                        repeats=taken.repeats, calls=taken.calls)
    return found


def line(found: list[dict]) -> tuple[list[str], float | None]:
    """The table's cells of one network, and the best stock time over the best accelerated."""
    cells, best = [found[0]['network']], {}
    for row in found:
        if 'median_ms' in row:
            cells.append(f"{row['median_ms']:.3g} ({row['p20_ms']:.3g} to {row['p80_ms']:.3g})")
            best[row['candidate']] = min(best.get(row['candidate'], row['median_ms']),
                                         row['median_ms'])
        else:
            cells.append(row['status'])
    ratio = best['stock'] / best['accelerated'] if len(best) == 2 else None
    return [*cells, '' if ratio is None else f'{ratio:.2f}'], ratio


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--networks', nargs='+', default=list(ALL), metavar='PACKAGE:NAME',
                        help=f'of: {", ".join(ALL)}; any of timm and torchvision')
    parser.add_argument('--size', type=int, default=224, help='side of the images')
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--policy', choices=('estimate', 'measure', 'all'), default='estimate')
    parser.add_argument('--inference', action='store_true', help='also 1x1 convolutions')
    parser.add_argument('--device', help='by default a GPU if there is one')
    parser.add_argument('--threads', type=int, help='of the CPU')
    parser.add_argument('--seconds', type=float, default=5.0, help='for one candidate')
    parser.add_argument('--out', help='file of rows; by default one in results/; "none" for none')
    parser.add_argument('--append', action='store_true')
    args = parser.parse_args()
    device = timing.prepare(args.device, args.threads)
    path = rows.default_path(device, 'accelerate') if args.out is None else args.out
    file = rows.RowFile(None if path == 'none' else rows.Path(path), args.append)
    columns, lines, ratios = rows.environment(device), [], []
    torch.manual_seed(0)
    with torch.no_grad():
        for name in args.networks:
            found = measure(name, (args.batch, 3, args.size, args.size), args, device)
            for row in found:
                file.write(columns | row)
            cells, ratio = line(found)
            print(' | '.join(cells), flush=True)
            lines.append(cells)
            ratios += [] if ratio is None else [ratio]
    names = [f'{kind} {layout}' for kind in ('stock', 'accelerated') for layout in LAYOUTS]
    print()
    print(rows.markdown(['network, ms', *names, 'best stock / best accelerated'], lines))
    print(f'geometric mean {rows.geometric_mean(ratios):.2f}, least {min(ratios, default=0):.2f}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
