"""Batches made in processes of their own, which end with the trainer and at nobody else's word."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from tood.config import DataConfig
from tood.data import decoding
from tood.data.batches import Loaded, buckets, collate
from tood.data.mixing import ALONE, Partners
from tood.data.record import ImageRecord
from tood.data.transforms import load_sample
from tood.errors import ToodError


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

    def __iter__(self) -> Iterator[Loaded]:
        return _raise_errors(iter(self._loader))

    def close(self) -> None:
        """End the loader processes."""
        self._loader = None


class _Batches(Dataset):
    """An item of work -> its batch, or the error that a trainer should see (DataLoader would bury it in a traceback)."""

    def __init__(self, config: DataConfig, training: bool):
        self.config, self.training = config, training
        self.shapes = buckets(config) if training and config.buckets else ()

    def __getitem__(self, orders: list[Order]) -> Loaded | ToodError:
        try:
            samples = [load_sample(order.record, self.config, training=self.training, **order.how) for order in orders]
            return collate(samples, self.shapes)
        except ToodError as error:
            return error


def _as_it_is(batch: Loaded | ToodError) -> Loaded | ToodError:
    return batch


def _raise_errors(batches: Iterator[Loaded | ToodError]) -> Iterator[Loaded]:
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
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # no longer as the fork server has it
    threading.Thread(target=watch_its_life, daemon=True).start()


if "multiprocessing.forkserver" in " ".join(sys.orig_argv):
    # This is the fork server. Loader processes that find it gone end within seconds, whatever the trainer still needs; it goes
    # with the trainer.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
