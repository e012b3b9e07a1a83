"""The order of training: every image once an epoch, in an order that (seed, epoch) fixes. I images of the data set."""

import numpy as np


class TrainSampler:
    """Which images form which batch of an epoch: landscape with landscape, portrait with portrait.

    A global batch is `batch_size * world` images; rank r takes its r-th part. So neither the batches nor their order
    depend on how many ranks share them, and all ranks have the same number of full batches.

    No image is left out: what does not fill a batch of its own shape goes, both shapes together, into mixed batches
    (one or two an epoch), and the last of these is completed by `repeats` images from the start of the epoch's
    shuffled order, which thus come twice.
    """

    def __init__(self, landscape: np.ndarray, *, batch_size: int, seed: int, rank: int = 0, world: int = 1):
        """landscape: bool [I], width >= height; batch_size: images of this rank."""
        self.landscape, self.seed = landscape, seed
        self.global_size, self.part = batch_size * world, slice(rank * batch_size, (rank + 1) * batch_size)

    def __len__(self) -> int:
        return -(-len(self.landscape) // self.global_size)

    @property
    def repeats(self) -> int:
        return len(self) * self.global_size - len(self.landscape)

    def batches(self, epoch: int) -> np.ndarray:
        """Image indices i64 [len(self), batch_size] of this rank in an epoch."""
        return self.all_batches(epoch)[:, self.part]

    def all_batches(self, epoch: int) -> np.ndarray:
        """Those of all ranks side by side: i64 [len(self), batch_size * world]."""
        draw = np.random.default_rng((self.seed, epoch))
        order = draw.permutation(len(self.landscape))
        full, rest = [], []
        for bucket in (order[self.landscape[order]], order[~self.landscape[order]]):
            filled = len(bucket) // self.global_size * self.global_size
            full.append(bucket[:filled])
            rest.append(bucket[filled:])
        whole = np.concatenate([*full, *rest, np.resize(order, self.repeats)]).reshape(-1, self.global_size)
        return whole[draw.permutation(len(whole))]
