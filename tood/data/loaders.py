"""Which images come together: training by a seed's exact order, evaluation by size.

A loader's batches are [B,3,H,W]; I is the number of images of the data set.
"""

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tood.config import DataConfig
from tood.data.batches import Loaded, padded
from tood.data.cache import with_cache
from tood.data.coco import CocoData
from tood.data.loader_processes import Loader, Order
from tood.data.mixing import ALONE, Pairing
from tood.data.record import ImageRecord
from tood.data.sampler import TrainSampler
from tood.data.transforms import resize_shape
from tood.errors import DataError


def learnable(data: CocoData, config: DataConfig) -> list[ImageRecord]:
    """The images to train on: those with an object (a crowd is none), or all under keep_empty. Raises DataError for none."""
    images = [r for r in data.images if config.keep_empty or not r.crowd.all()]
    if not images:
        raise DataError(f"{data.annotations}: no image has an object to learn; annotate some, or train on other data")
    return images


class TrainLoader:
    """Batches for training on one rank; one object serves all epochs, so that its loader processes start once."""

    def __init__(
        self,
        data: CocoData,
        config: DataConfig,
        *,
        batch_size: int,
        seed: int,
        epochs: int | None = None,
        rank: int = 0,
        world: int = 1,
    ):
        """batch_size: images of this rank; epochs: of the whole training, None: without end. Raises DataError like `learnable`."""
        self.images, self.augment = learnable(data, config), config.augment
        if config.cache:
            self.images = with_cache(self.images, Path(config.cache).expanduser(), config.cache_gb)
        self.mixing_ends = math.inf if epochs is None else epochs - config.augment.last_epochs_off
        landscape = np.array([r.width >= r.height for r in self.images])
        self.sampler = TrainSampler(landscape, batch_size=batch_size, seed=seed, rank=rank, world=world)
        self._loader = Loader(config, self.images, training=True)

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.sampler)

    def order(self, epoch: int) -> str:
        """Twelve hex digits for which images make up which batches of an epoch, over all ranks."""
        ids = np.array([record.image_id for record in self.images], dtype=np.int64)
        return hashlib.sha256(ids[self.sampler.all_batches(epoch)].tobytes()).hexdigest()[:12]

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Loaded]:
        """The batches of an epoch from start_batch on, equal to those of an uninterrupted epoch.

        The batches before it are skipped without reading a file. Starting an epoch ends the one before.
        """
        seed, pairing = self.sampler.seed, None
        if (self.augment.mosaic or self.augment.mixup) and epoch < self.mixing_ends:
            pairing = Pairing(self.images, self.augment, seed, epoch)
        self._loader.work[:] = [
            [
                Order(self.images[i], (seed, epoch, self.images[i].image_id % 2**64), pairing.of(i) if pairing else ALONE)
                for i in batch
            ]
            for batch in self.sampler.batches(epoch)[start_batch:].tolist()
        ]
        return iter(self._loader)

    def close(self) -> None:
        self._loader.close()


def eval_loader(
    data: CocoData,
    config: DataConfig,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    scales: Sequence[float] = (1.0,),
) -> Loader:
    """Batches of images that have the same padded size, dealt out to the ranks in turn, the largest first.

    No batch adds padding to what an image has alone, so that results depend neither on batch_size nor on world.
    The last batch of a size may be smaller, and a rank may get a batch less than another (or none at all).
    scales: times the configuration's sides; each batch comes once for each of them, one after the other.
    """
    loader = Loader(config, data.images, training=False)
    bounds = [(config.long_side * scale, config.short_side * scale) for scale in scales]
    shapes = {r.image_id: [padded(*resize_shape(r.height, r.width, *sides)) for sides in bounds] for r in data.images}
    by_size = sorted(data.images, key=lambda r: (-sum(map(math.prod, shapes[r.image_id])), shapes[r.image_id], r.image_id))
    batches = []
    for _, alike in itertools.groupby(by_size, key=lambda r: shapes[r.image_id]):
        while batch := list(itertools.islice(alike, batch_size)):
            batches.append(batch)
    loader.work[:] = [[Order(r, scale=scale) for r in batch] for batch in batches[rank::world] for scale in scales]
    return loader
