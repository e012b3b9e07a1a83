"""What a detector finds in a whole data set: each rank on its share, test-time views and averaged weights included."""

import itertools
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from tood.data.coco import CocoData
from tood.data.loaders import eval_loader
from tood.detector import Detector
from tood.errors import StoppedError
from tood.precision import mixed_precision
from tood.ranks import place
from tood.recipe import Recipe
from tood.results import Detections, merge, results_from_predictions
from tood.views import View


def detect_all(
    model: Detector,
    data: CocoData,
    recipe: Recipe,
    device: torch.device,
    weights: dict[str, Tensor] | None = None,
    told_to_stop: Callable[[], bool] = lambda: False,
) -> Detections | None:
    """Detections of the whole data set, each rank on its share; merged on rank 0, None elsewhere.

    `weights`: evaluate these instead of the model's own, which come back afterwards. `told_to_stop`: asked between
    batches; StoppedError if so.
    """
    rank, world = place()
    own = None
    if weights is not None:
        own = {name: t.detach().clone() for name, t in model.state_dict().items()}
        model.load_state_dict(weights)
    was_training, searching = model.training, torch.backends.cudnn.benchmark
    model.eval()
    torch.backends.cudnn.benchmark = False  # batches are as large as their images, and cuDNN would search anew for each size
    batch_size = max(1, recipe.train.batch_size // world // recipe.train.accumulate)
    found, scales = [], recipe.predict.tta.scales
    batches = iter(eval_loader(data, recipe.data, batch_size=batch_size, rank=rank, world=world, scales=scales))
    try:
        with torch.no_grad(), mixed_precision(recipe.train.precision, device.type):
            while same_images := list(itertools.islice(batches, len(scales))):
                views = [View(*(t.to(device, non_blocking=True) for t in (b.images, b.sizes, b.scales))) for b in same_images]
                found.append(results_from_predictions(same_images[0].image_ids, model.detect_views(views), data.category_ids))
                if told_to_stop():
                    raise StoppedError("stopped as told, while evaluating")
    finally:
        model.train(was_training)
        torch.backends.cudnn.benchmark = searching
        if own is not None:
            model.load_state_dict(own)
    mine = merge(found)
    if world == 1:
        return mine
    gathered: list[Detections] | None = [mine] * world if rank == 0 else None
    dist.gather_object(mine, gathered)
    return merge(gathered) if rank == 0 else None
