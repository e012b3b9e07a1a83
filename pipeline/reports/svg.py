"""Charts as SVG text: scales, axes and marks, no more than a report needs. What a mark says when pointed at is its `<title>`."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

INK, MUTED, GRID, ACCENT, WARM = "#1d2733", "#5b6875", "#e3e8ec", "#0b6bb5", "#b8480a"
# Okabe and Ito's colours, told apart whatever kind of colour vision; the palest left out
SERIES = ("#0072b2", "#d55e00", "#009e73", "#a0528a", "#b07c00", "#3d3d3d", "#4aa3d8")
# light to dark, so that more is darker in print too
SEQUENCE = ("#eef5d0", "#c7e9b4", "#7fcdbb", "#41b6c4", "#1d91c0", "#225ea8", "#0c2c84")


class Scale(NamedTuple):
    """From values to pixels."""

    low: float
    high: float
    start: float  # px of low
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / ((high - low) or 1) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        if self.log:
            marks = [
                m * 10.0**e
                for e in range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
                for m in (1, 2, 5)
            ]
            inside = [m for m in marks if self.low <= m <= self.high]
            tens = [m for m in inside if math.log10(m).is_integer()]
            return tens if len(inside) > count + 2 and len(tens) > 1 else inside
        return nice_ticks(self.low, self.high, count)


class Chart:
    """A plot area with margins; marks are added in the order in which they are painted."""

    def __init__(self, width: int, height: int, *, left: int = 52, right: int = 14, top: int = 12, bottom: int = 40):
        self.width, self.height = width, height
        self.left, self.right, self.top, self.bottom = left, width - right, top, height - bottom
        self._parts: list[str] = []

    def x_scale(self, low: float, high: float, log: bool = False) -> Scale:
        return Scale(*_widened(low, high), self.left, self.right, log)

    def y_scale(self, low: float, high: float) -> Scale:
        low, high = _widened(low, high)
        room = 0.05 * (high - low)  # marks at the ends stay whole
        return Scale(low - room, high + room, self.bottom, self.top)

    def axes(self, x: Scale | None, y: Scale | None, x_label: str = "", y_label: str = "", x_count: int = 6) -> None:
        """Gridlines and numbers of either scale, and the names of the axes."""
        for value, words in marks(y.ticks()) if y else []:
            at = y(value)
            self.add(f'<line x1="{self.left}" x2="{self.right}" y1="{at:.1f}" y2="{at:.1f}" stroke="{GRID}"/>')
            self.text(self.left - 7, at + 4, words, anchor="end", colour=MUTED)
        for value, words in marks(x.ticks(x_count)) if x else []:
            at = x(value)
            self.add(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{self.top}" y2="{self.bottom}" stroke="{GRID}"/>')
            self.text(at, self.bottom + 17, words, anchor="middle", colour=MUTED)
        self.labels(x_label, y_label)

    def labels(self, x_label: str = "", y_label: str = "") -> None:
        if x_label:
            self.text((self.left + self.right) / 2, self.height - 5, x_label, anchor="middle")
        if y_label:
            place = f"translate(13 {(self.top + self.bottom) / 2:.1f}) rotate(-90)"
            self.add(f'<text transform="{place}" text-anchor="middle" fill="{INK}">{escape(y_label)}</text>')

    def add(self, part: str) -> None:
        self._parts.append(part)

    def text(self, x: float, y: float, words: str, *, anchor: str = "start", colour: str = INK, size: int = 0, bold: bool = False):
        style = (f' font-size="{size}"' if size else "") + (' font-weight="600"' if bold else "")
        self.add(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{style}>{escape(words)}</text>')

    def line(
        self, points: Sequence[tuple[float, float]], colour: str, *, width: float = 1.6, dash: str = "", title: str = ""
    ) -> None:
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.add(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dashed}>{_title(title)}</path>')

    def dot(self, x: float, y: float, colour: str, *, radius: float = 4, opacity: float = 1, title: str = "", hollow: bool = False):
        paint = f'fill="#fff" stroke="{colour}" stroke-width="2"' if hollow else f'fill="{colour}"'
        faint = f' opacity="{opacity:g}"' if opacity < 1 else ""
        self.add(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" {paint}{faint}>{_title(title)}</circle>')

    def diamond(self, x: float, y: float, colour: str, title: str = "") -> None:
        self.add(
            f'<path d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z" fill="#fff" stroke="{colour}" stroke-width="2">{_title(title)}</path>'
        )

    def rect(self, x: float, y: float, width: float, height: float, colour: str, *, title: str = "", radius: float = 0) -> None:
        self.add(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}" rx="{radius:g}" '
            f'fill="{colour}">{_title(title)}</rect>'
        )

    def whisker(self, low: tuple[float, float], high: tuple[float, float], colour: str = INK, width: float = 1.6) -> None:
        self.add(
            f'<line x1="{low[0]:.1f}" y1="{low[1]:.1f}" x2="{high[0]:.1f}" y2="{high[1]:.1f}" stroke="{colour}" '
            f'stroke-width="{width}"/>'
        )

    def svg(self, about: str) -> str:
        """about: what the picture shows, for those who cannot see it."""
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" width="{self.width}" role="img" aria-label="{escape(about)}">'
            + "".join(self._parts)
            + "</svg>"
        )


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from low to high."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round((first + i) * step, 12) for i in range(math.floor(high / step + 1e-9) - first + 1)]


def shade(share: float) -> str:
    """Colour of SEQUENCE at 0..1."""
    place = min(max(share, 0.0), 1.0) * (len(SEQUENCE) - 1)
    index = min(int(place), len(SEQUENCE) - 2)
    one, two = (tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in SEQUENCE[index : index + 2])
    mixed = (round(a + (place - index) * (b - a)) for a, b in zip(one, two, strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def on_shade(share: float) -> str:
    """Ink that can be read on `shade`."""
    return "#ffffff" if share > 0.58 else INK


def marks(values: Sequence[float]) -> list[tuple[float, str]]:
    """Each number with its words, which are as many digits as tell the numbers apart."""
    for digits in range(4, 12):
        words = [number(value) if digits == 4 else f"{value:.{digits}g}" for value in values]
        if len(set(words)) == len(words):
            break
    return list(zip(values, words, strict=True))


def number(value: float) -> str:
    """A number in few characters."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _widened(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5))


def _title(words: str) -> str:
    return f"<title>{escape(words)}</title>" if words else ""
