"""From samples to batches: which images come together, the loader processes, padding and normalising.

Shapes: B images of a batch, H x W their padded size, I images of the data set.
"""

import functools
import hashlib
import itertools
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tood.config import DataConfig
from tood.data import decoding
from tood.data.cache import with_cache
from tood.data.coco import CocoData
from tood.data.mixing import ALONE, Pairing, Partners
from tood.data.record import ImageRecord
from tood.data.sampler import TrainSampler
from tood.data.targets import Targets, pad_targets
from tood.data.transforms import Sample, load_sample, resize, resize_shape
from tood.errors import DataError, ToodError

MULTIPLE = 32  # batches are padded to a multiple of it: the stride of C5
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, RGB, of 0..255


class Pixels(NamedTuple):
    """What a backbone was trained to read: channels in which order, less `mean`, over `std` (of 0..255, in that order)."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool


PIXELS = {
    "rgb": Pixels(MEAN, STD, bgr=False),
    "bgr": Pixels(MEAN[::-1], (1.0, 1.0, 1.0), bgr=True),  # Caffe's ResNets, with ImageNet's mean
    "bgr_detectron": Pixels((102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0), bgr=True),  # the same, with Detectron's mean
}


class Batch(NamedTuple):
    images: Tensor  # u8 [B,3,H,W], in memory [B,H,W,3] as decoders write it; padded right and below with 0
    sizes: Tensor  # i64 [B,2] (height, width) of each resized image
    targets: Targets
    image_ids: Tensor  # i64 [B]
    original_sizes: Tensor  # i64 [B,2] (height, width) in the file
    scales: Tensor  # f32 [B,2] (width, height): resized / original

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        return Batch(*(value.to(device, non_blocking=non_blocking) for value in self))


class Decoded(NamedTuple):
    """A batch whose images are still to be resized, which `to` does once they are on the device (data.resize=device)."""

    images: Tensor  # u8 [B,3,h,w], in memory [B,h,w,3]; each in the top left corner, the rest is undefined
    shapes: tuple[tuple[int, int], ...]  # (height, width) of each
    sizes: tuple[tuple[int, int], ...]  # (height, width) that each is to have
    canvas: tuple[int, int] | None  # (height, width) that all are padded to; None: as little as can be
    batch: Batch  # the rest, its images without content

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        images = self.images.to(device, non_blocking=non_blocking)
        parts = zip(images, self.shapes, self.sizes, strict=True)
        resized = [resize(image[:, :height, :width], size) for image, (height, width), size in parts]
        stacked, _ = stack_images(resized, self.canvas)
        return self.batch.to(device, non_blocking)._replace(images=stacked)


def normalise(images: Tensor, sizes: Tensor, pixels: str = "rgb") -> Tensor:
    """RGB images as the backbone reads them, then 0 in the padding. u8 or f32 [B,3,H,W], sizes [B,2] -> f32 [B,3,H,W], contiguous.

    pixels: a key of PIXELS, backbone.pixels in a configuration.
    """
    mean, std = _statistics(images.device, pixels)
    images = images.flip(1) if PIXELS[pixels].bgr else images
    values = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True).sub_(mean).div_(std)
    rows, columns = (torch.arange(n, device=images.device) for n in images.shape[2:])
    outside_rows, outside_columns = rows >= sizes[:, :1], columns >= sizes[:, 1:]  # [B,H], [B,W]
    return values.masked_fill_((outside_rows[:, :, None] | outside_columns[:, None, :])[:, None], 0)


@functools.cache
def _statistics(device: torch.device, pixels: str) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (PIXELS[pixels].mean, PIXELS[pixels].std))
    return mean, std


def stack_images(images: Sequence[Tensor], canvas: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """u8 images [3,h,w] of any sizes -> u8 [B,3,H,W], padded to `canvas` or a common multiple of 32, and their sizes i64 [B,2]."""
    sizes = torch.tensor([image.shape[1:] for image in images])
    stacked = _empty(len(images), *(canvas or _padded(*sizes.amax(0).tolist())), images[0].device)
    for i, image in enumerate(images):
        height, width = image.shape[1:]
        stacked[i, :, :height, :width] = image
        stacked[i, :, height:] = 0
        stacked[i, :, :height, width:] = 0
    return stacked, sizes


def _empty(count: int, height: int, width: int, device: torch.device) -> Tensor:
    """u8 [count, 3, height, width], in memory [count, height, width, 3], not yet written to."""
    return torch.empty((count, height, width, 3), dtype=torch.uint8, device=device).permute(0, 3, 1, 2)


def buckets(config: DataConfig) -> tuple[tuple[int, int], ...]:
    """(height, width) of what training batches are padded to, the smallest first: landscape, portrait, and both in one batch."""
    short, long = sorted((config.short_side, config.long_side))
    sides = {short + (long - short) * k / config.buckets for k in range(1, config.buckets + 1)}
    landscape = {_padded(short, math.ceil(side)) for side in sides}
    portrait = {(width, height) for height, width in landscape}
    return tuple(sorted(landscape | portrait | {_padded(long, long)}, key=lambda shape: (math.prod(shape), shape)))


def collate(samples: list[Sample], shapes_allowed: Sequence[tuple[int, int]] = ()) -> Batch | Decoded:
    """Samples that are to be resized on the device come as a Decoded. shapes_allowed: pad to the first of them that is enough."""
    shapes, sizes = tuple(tuple(s.image.shape[1:]) for s in samples), tuple(s.size for s in samples)
    height, width = map(max, zip(*sizes, strict=True))
    canvas = next(((h, w) for h, w in shapes_allowed if h >= height and w >= width), None)
    resized = shapes == sizes
    images = _empty(len(samples), 0, 0, torch.device("cpu")) if not resized else stack_images([s.image for s in samples], canvas)[0]
    batch = Batch(
        images,
        torch.tensor(sizes),
        pad_targets([s.boxes for s in samples], [s.labels for s in samples], [s.crowds for s in samples]),
        torch.tensor([s.image_id for s in samples]),
        torch.tensor([s.original_size for s in samples]),
        torch.tensor([s.scale for s in samples], dtype=torch.float32),
    )
    if resized:
        return batch
    stacked = _empty(len(samples), *map(max, zip(*shapes, strict=True)), torch.device("cpu"))
    for i, (sample, (height, width)) in enumerate(zip(samples, shapes, strict=True)):
        stacked[i, :, :height, :width] = sample.image
    return Decoded(stacked, shapes, sizes, canvas, batch)


# -- training: every image once an epoch, in `tood.data.sampler`'s order ---------------------------------------------


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

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
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


# -- evaluation: every image exactly once over all ranks -------------------------------------------------------------


def eval_loader(
    data: CocoData,
    config: DataConfig,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    scales: Sequence[float] = (1.0,),
) -> "Loader":
    """Batches of images that have the same padded size, dealt out to the ranks in turn, the largest first.

    No batch adds padding to what an image has alone, so that results depend neither on batch_size nor on world.
    The last batch of a size may be smaller, and a rank may get a batch less than another (or none at all).
    scales: times the configuration's sides; each batch comes once for each of them, one after the other.
    """
    loader = Loader(config, data.images, training=False)
    bounds = [(config.long_side * scale, config.short_side * scale) for scale in scales]
    padded = {r.image_id: [_padded(*resize_shape(r.height, r.width, *sides)) for sides in bounds] for r in data.images}
    by_size = sorted(data.images, key=lambda r: (-sum(map(math.prod, padded[r.image_id])), padded[r.image_id], r.image_id))
    batches = []
    for _, alike in itertools.groupby(by_size, key=lambda r: padded[r.image_id]):
        while batch := list(itertools.islice(alike, batch_size)):
            batches.append(batch)
    loader.work[:] = [[Order(r, scale=scale) for r in batch] for batch in batches[rank::world] for scale in scales]
    return loader


# -- loader processes ------------------------------------------------------------------------------------------------


class Order(NamedTuple):
    """What a loader process needs to know of a sample."""

    record: ImageRecord
    seed: tuple[int, ...] = ()  # of its randomness
    partners: Partners = ALONE  # the images to be mixed with it
    scale: float = 1.0  # times the configuration's sides

    @property
    def how(self) -> dict:
        return {"seed": self.seed, "partners": self.partners, "scale": self.scale}


class Loader:
    """Iterates over the batches that `work` lists; can be iterated again, after a change of `work` too.

    Loader processes (config.workers; with 0 the caller's own process loads) live from the first iteration to `close`.
    They get each batch's records with its order, not a copy of the data set, so that their memory stays flat.
    """

    def __init__(self, config: DataConfig, images: Sequence[ImageRecord], *, training: bool):
        """images: what there may be work on."""
        self.work: list[list[Order]] = []  # batches
        options = {}
        if config.workers:
            # Not fork: the trainer has threads (gloo, Ray, MLflow), whose locks a forked child would inherit held; Ray's
            # documentation forbids it. A fork server is a clean process, and imports the libraries once for all its children.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__, *decoding.modules(record.path for record in images)])
            options = {"multiprocessing_context": context, "worker_init_fn": _obey_the_trainer, "persistent_workers": True}
        self._loader = DataLoader(
            _Batches(config, training),
            sampler=self.work,
            batch_size=None,  # an item of `work` is a whole batch
            collate_fn=_as_it_is,
            num_workers=config.workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # of its own: each pass draws from it, and the global one must not notice
            **options,
        )

    def __len__(self) -> int:
        return len(self.work)

    def __iter__(self) -> Iterator[Batch]:
        return _raise_errors(iter(self._loader))

    def close(self) -> None:
        """End the loader processes."""
        self._loader = None


class _Batches(Dataset):
    """An item of work -> its batch, or the error that a trainer should see (DataLoader would bury it in a traceback)."""

    def __init__(self, config: DataConfig, training: bool):
        self.config, self.training = config, training
        self.shapes = buckets(config) if training and config.buckets else ()

    def __getitem__(self, orders: list[Order]) -> Batch | ToodError:
        try:
            samples = [load_sample(order.record, self.config, training=self.training, **order.how) for order in orders]
            return collate(samples, self.shapes)
        except ToodError as error:
            return error


def _as_it_is(batch: Batch | ToodError) -> Batch | ToodError:
    return batch


def _raise_errors(batches: Iterator[Batch | ToodError]) -> Iterator[Batch]:
    for batch in batches:
        if isinstance(batch, ToodError):
            raise batch
        yield batch


def _obey_the_trainer(_worker: int) -> None:
    """Let this loader process end when the trainer is killed, or asks for it; and at nobody else's word.

    DataLoader's own watch looks at the parent's process id, which is the fork server's here: that one lives as long as
    its children, so that both would stay for ever. A SIGTERM to the whole process group is the trainer's to heed, which
    still needs its batches; one from the trainer is how Python ends loader processes that are left when it exits.
    """
    trainer = multiprocessing.parent_process()

    def watch_its_life() -> None:
        trainer.join()
        os._exit(1)

    def wait_for_its_word() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer.pid:
            pass
        os._exit(128 + signal.SIGTERM)

    if hasattr(signal, "sigwaitinfo"):  # not on macOS, where any SIGTERM ends this process
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # here and in the threads begun from here on
        threading.Thread(target=wait_for_its_word, daemon=True).start()
    threading.Thread(target=watch_its_life, daemon=True).start()


def _padded(height: int, width: int) -> tuple[int, int]:
    return -(-height // MULTIPLE) * MULTIPLE, -(-width // MULTIPLE) * MULTIPLE
