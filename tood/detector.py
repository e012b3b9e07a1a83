"""The detector: images in, losses or detections out. Its parts are chosen in `tood.detectors`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tood.config import PredictConfig
from tood.data.batches import Batch, normalise
from tood.data.targets import Targets
from tood.given_images import listed, pixels_of
from tood.head import DenseHead
from tood.postprocess import detections, found_in_view, merged
from tood.precision import full_precision
from tood.predictions import Predictions
from tood.priors import inside_image
from tood.views import View, views_of, with_mirrored


class Detector(nn.Module):
    """`detector(batch, epoch)` gives losses in train mode and detections in eval mode; `predict(images)` takes plain images.

    Batches are looked at as they are; `predict` and `detect_views` look in all the ways that predict.tta names.
    `objective` owns the assignment and the losses (`tood.objectives`).
    """

    CLASS_LAYERS = ("head.predictor.classes", "head.one_to_one.classes")  # their shapes follow the number of classes

    def __init__(self, backbone: nn.Module, neck: nn.Module, head: DenseHead, objective, predict: PredictConfig):
        super().__init__()
        self.backbone, self.neck, self.head = backbone, neck, head
        self.objective = objective
        self.predict_config = predict
        # what the objective remembers from batch to batch; it is part of the state, so that a resumed run goes on as before
        memory = torch.zeros(objective.MEMORY) if hasattr(objective, "MEMORY") else None
        self.register_buffer("objective_memory", memory)
        self._compiled = None  # `dense` in training, where it was compiled

    def forward(self, batch: Batch, epoch: int = 0):
        images = normalise(batch.images, batch.sizes, self.backbone.pixels)
        if self.training:
            return self.losses(images, batch.sizes, batch.targets, epoch)
        return self.detect(images, batch.sizes, batch.scales)

    def dense(self, images: Tensor) -> Predictions:
        """Normalised images [B, 3, H, W], H and W multiples of 32 -> predictions at every point."""
        features = self.backbone(images)
        return self.head(self.neck(features), features[0])

    def compile_dense(self) -> None:
        """From now on losses come from a compiled `dense`: a whole graph for each shape of batch, of which there should be few."""
        self._compiled = torch.compile(self.dense, dynamic=False, fullgraph=True)

    def losses(self, images: Tensor, sizes: Tensor, targets: Targets, epoch: int) -> dict[str, Tensor]:
        """Scalars {"loss_cls", "loss_box", ...} whose sum is to be minimised; `epoch` decides the objective's phase."""
        predictions = (self._compiled or self.dense)(images)
        memory = () if self.objective_memory is None else (self.objective_memory,)
        with full_precision(images.device.type):
            return self.objective.losses(predictions, targets, inside_image(predictions.priors, sizes), epoch, *memory)

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Tensor, scales: Tensor) -> list[dict[str, Tensor]]:
        """Normalised images -> {"boxes", "scores", "labels"} an image, boxes in px of the original image."""
        predictions = self.dense(images)
        with full_precision(images.device.type):
            return detections(predictions, sizes, scales, self.predict_config, self.objective.FUSION)

    @torch.no_grad()
    def detect_views(self, views: Sequence[View]) -> list[dict[str, Tensor]]:
        """The same images at each of predict.tta's scales -> detections as `detect` gives them, of all views together."""
        config, found = self.predict_config, []
        for view in with_mirrored(views, config.tta.flip):
            predictions = self.dense(normalise(view.images, view.sizes, self.backbone.pixels))
            with full_precision(view.images.device.type):
                found.append(found_in_view(predictions, view.sizes, view.scales, config, self.objective.FUSION, view.mirrored))
        with full_precision(views[0].images.device.type):
            return merged(found, len(views[0].sizes), config)

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor], *, long_side: int = 1333, short_side: int = 800) -> list[dict[str, Tensor]]:
        """RGB images [3, H, W], uint8 or float in [0, 1], of any sizes -> detections as torchvision's detectors give them.

        Raises DataError for anything else.
        """
        pixels = pixels_of(listed(images))
        if not pixels:
            return []
        was_training, device = self.training, next(self.parameters()).device
        self.eval()
        try:
            sides = {"long_side": long_side, "short_side": short_side}
            return self.detect_views(views_of(pixels, **sides, scales=self.predict_config.tta.scales, device=device))
        finally:
            self.train(was_training)
