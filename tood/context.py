"""Task-specific context (TSCODE): classes look at a coarser, wider map (SCE), boxes at a finer one as well (DPE).

B images, C channels, H x W cells of a level; the pyramid is [P3..P7].
"""

import torch
from torch import Tensor, nn

from tood.neck import Halving, enlarged

DOWNSAMPLING = ("conv", "avg", "max")


class SemanticContext(nn.Module):
    """SCE, TSCODE Eq. 3: P_l at half its resolution beside P_{l+1}. One downsampling for all levels.

    The last level has no level above it: its own downsampled map takes that place. `upper=False` leaves P_{l+1} out.
    """

    def __init__(self, channels: int, down: str = "conv", kernel: int = 3, upper: bool = True):
        super().__init__()
        self.out_channels = channels * (2 if upper else 1)
        self.upper = upper
        if down == "conv":
            self.down = _downsampling(channels, kernel)
        else:
            pool = nn.AvgPool2d if down == "avg" else nn.MaxPool2d
            self.down = pool(kernel, stride=2, padding=kernel // 2)

    def forward(self, pyramid: list[Tensor]) -> list[Tensor]:
        """[B, C, H, W] a level -> [B, 2 C, ceil(H / 2), ceil(W / 2)]."""
        halves = [self.down(level) for level in pyramid]
        if not self.upper:
            return halves
        above = [*pyramid[1:], halves[-1]]
        return [torch.cat([half, level], dim=1) for half, level in zip(halves, above, strict=True)]


class DetailContext(nn.Module):
    """DPE, TSCODE Eq. 5: P_l + up(P_{l+1}) + down(up(P_l) + P_{l-1}). One downsampling for all levels.

    Below P3 lies C2 (P2 would cost too much); the last level has nothing above it. `lower`: is P_{l-1} used; `upper`: how
    many levels above are (TSCODE, Table 3).
    """

    def __init__(self, channels: int, finer_channels: int, lower: bool = True, upper: int = 1):
        super().__init__()
        self.upper = upper
        self.down = _downsampling(channels, 3) if lower else None
        self.project = nn.Conv2d(finer_channels, channels, 1) if lower and finer_channels != channels else None

    def forward(self, pyramid: list[Tensor], finer: Tensor) -> list[Tensor]:
        """pyramid levels [B, C, H, W]; finer (C2) [B, C', 2 H of P3, 2 W of P3] -> levels of the pyramid's shapes."""
        below = [finer if self.project is None else self.project(finer), *pyramid[:-1]]
        out = []
        for i, level in enumerate(pyramid):
            total = level
            for above in pyramid[i + 1 : i + 1 + self.upper]:
                total = total + enlarged(above, level)
            if self.down is not None:
                total = total + self.down(enlarged(level, below[i]) + below[i])
            out.append(total)
        return out


def _downsampling(channels: int, kernel: int) -> nn.Conv2d:
    conv = Halving(channels, channels, kernel)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv
