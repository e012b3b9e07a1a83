"""From dense predictions to detections: threshold, the best pairs of each level, class-wise NMS, the best of the image.

B images, N points, K classes. The order is mmdetection's: rescale to the original image, drop small boxes, then NMS.
"""

import torch
from torch import Tensor
from torchvision.ops import nms

from tood.boxes import clip
from tood.config import PredictConfig
from tood.head import Predictions


@torch.no_grad()
def detections(predictions: Predictions, sizes: Tensor, scales: Tensor, config: PredictConfig) -> list[dict[str, Tensor]]:
    """One dict an image: boxes [D, 4] px of the original image, scores [D] falling, labels int64 [D].

    sizes [B, 2] (height, width) of the network's input before padding, scales [B, 2] (x, y) of input over original.
    Every point takes part, also those beyond a smaller image's own padding. Equal scores are ordered by image, point
    and class.
    """
    scores = predictions.log_scores.exp()
    image, point, label = (scores > config.score_threshold).nonzero(as_tuple=True)
    score, order = scores[image, point, label].sort(descending=True, stable=True)
    image, point, label = image[order], point[order], label[order]
    kept = _best_of_levels(image, point, predictions.priors.counts, config.per_level)
    image, point, label, score = image[kept], point[kept], label[kept], score[kept]
    boxes = predictions.boxes[image, point]
    if config.clip:
        boxes = clip(boxes, sizes[image, 0], sizes[image, 1])
    boxes = boxes / scales[image].repeat(1, 2)
    large = ((boxes[:, 2:] - boxes[:, :2]) > config.min_size).all(1)
    image, label, score, boxes = image[large], label[large], score[large], boxes[large]
    results = []
    for i in range(len(sizes)):
        mine = image == i
        b, s, k = boxes[mine], score[mine], label[mine]
        keep = class_wise_nms(b, s, k, config.nms_iou)[: config.max_detections]
        results.append({"boxes": b[keep], "scores": s[keep], "labels": k[keep]})
    return results


def class_wise_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Indices kept, by falling score: a box goes if its IoU with a better one of its class exceeds `iou`.

    Classes are moved apart in float64: exact for any coordinates, where float32 would round boxes of high classes.
    """
    if not len(boxes):
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    apart = boxes.double()
    span = apart.amax() - apart.amin() + 1
    return nms(apart + (labels * span).unsqueeze(1), scores.double(), iou)


def _best_of_levels(image: Tensor, point: Tensor, counts: tuple[int, ...], limit: int) -> Tensor:
    """Indices of the first `limit` entries of each (image, level), in order; entries come sorted by falling score."""
    ends = torch.tensor(counts, device=point.device).cumsum(0)
    group = image * len(counts) + torch.bucketize(point, ends, right=True)
    sorted_group, order = group.sort(stable=True)
    position = torch.arange(len(group), device=point.device)
    first = torch.searchsorted(sorted_group, sorted_group)
    return order[position - first < limit].sort().values
