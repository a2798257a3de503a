"""Segmentors and detectors from picture to prediction, for network.py."""

import copy

import torch
import torch.nn.functional as F
from network_models import Candidate, randomize
from networks import build, resized_first, with_plain_convolutions
from torch import nn

# Config, and height and width of the image: those at which the papers count.
DENSE = {
    'UperNet-31B 512': ('mmreplk::upernet_replknet31b_ade20k.py', (512, 512)),
    'UperNet-31B': ('mmreplk::upernet_replknet31b_ade20k.py', (512, 2048)),
    'Cascade-31B': ('mmreplk::cascade_mask_rcnn_replknet31b_coco.py', (800, 1280)),
}
# Detections of an image that are compared: as many as COCO counts.
DETECTIONS = 100


class Predictor(nn.Module):
    """A model of the mm packages on prepared images, up to the predictions that are saved.

    Args:
        model (nn.Module): A segmentor or detector.
        shape (tuple[int, int]): Height and width of the images, also of the originals.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, int]):
        super().__init__()
        self.model, self.shape = model, shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(N, classes, H, W)`` of a segmentor, highest scores ``(N, 100)`` of a detector.

        Scores alone, in order: rounding may exchange boxes of nearly the same score.
        """
        found = self.model(x, self._samples(len(x)), mode='predict')
        if hasattr(found[0], 'seg_logits'):
            # Without a copy of one image's: it would take longer than a convolution.
            return (found[0].seg_logits.data[None] if len(found) == 1 else
                    torch.stack([sample.seg_logits.data for sample in found]))
        scores = [sample.pred_instances.scores.sort(descending=True).values[:DETECTIONS]
                  for sample in found]
        return torch.stack([F.pad(each, (0, DETECTIONS - len(each))) for each in scores])

    def _samples(self, count: int) -> list:
        if hasattr(self.model, 'decode_head'):
            from mmseg.structures import SegDataSample as Sample
        else:
            from mmdet.structures import DetDataSample as Sample
        meta = dict(img_shape=self.shape, ori_shape=self.shape, pad_shape=self.shape,
                    batch_input_shape=self.shape, scale_factor=(1.0, 1.0), padding_size=[0] * 4)
        return [Sample(metainfo=dict(meta)) for _ in range(count)]


def spread_scores(predictor: Predictor) -> Predictor:
    """Give a cascade of box heads with random weights scores as uneven as trained ones, in place.

    Untrained, every class of every box has about the same score, below the threshold of the config:
    there would be no box and no mask to compute. So that some of a thousand boxes stand out, logits
    get a mean of 0 and a standard deviation of 2 over the boxes of a small image, and those of the
    background 6 more.
    """
    if not hasattr(predictor.model, 'roi_head'):
        return predictor

    def rescale(layer, inputs, logits):
        factor = 2 / logits.std(0).mean()
        layer.weight *= factor
        layer.bias.copy_((layer.bias - logits.mean(0)) * factor)
        layer.bias[-1] += 6

    hooks = [head.fc_cls.register_forward_hook(rescale)
             for head in predictor.model.roi_head.bbox_head]
    training = predictor.training
    with torch.no_grad():
        Predictor(predictor.model.eval(), (256, 256))(
            torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)))
    predictor.train(training)
    for hook in hooks:
        hook.remove()
    return predictor


def cases(args):
    """Cases for network.py, one image at a time."""
    nchw, last = torch.contiguous_format, torch.channels_last
    for name in args.networks:
        config, shape = DENSE[name]
        for dtype in args.dtype:
            _, model = build(config, shape)
            model = spread_scores(Predictor(randomize(model), shape))

            def deployed(model=model):
                model = copy.deepcopy(model)
                model.model.backbone.switch_to_deploy()
                return model

            ways = {
                'ours': (deployed, nchw),
                'ours channels_last': (deployed, last),
                'ours not deployed': (lambda model=model: copy.deepcopy(model), nchw),
            }
            if hasattr(getattr(model.model, 'decode_head', None), 'resize_last'):
                ways['ours resize first'] = lambda make=deployed: resized_first(make()), nchw
            for way, layout in (('conv2d', nchw), ('conv2d channels_last', last)):
                ways[way] = lambda make=deployed: with_plain_convolutions(make()), layout
            makes = {way: (lambda make=make, layout=layout: Candidate(make(), layout, 'dense'))
                     for way, (make, layout) in ways.items() if way in args.candidates}
            yield makes, (1, 3, *shape), 'inference', dtype, dict(suite='dense', network=name)
