"""What a run measured: stats.jsonl -> a PNG of loss, terms and learning rate over the steps; and curves.

With Pillow alone, for no other package draws here. Logarithmic where all values of a panel are positive and some are
more than four times the others. A line of many points is drawn twice: faint as it was logged, strong as a running mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .atomic import atomic_path

Points = list[tuple[float, float]]  # step, value
WHOLE = ("loss", "total", "validation_loss")  # the first panel
LEARNING_RATE = "lr"  # the last
NOT_DRAWN = {"step", "skipped", "steps_per_second", "data_wait", "gradient_norm"}
WIDTH, HEIGHT = 1200, 380  # of a panel, pixels
LEFT, RIGHT, TOP, BOTTOM = 110, 250, 46, 44  # around its axes; names of the lines stand on the right
FONT_SIZE, LINE_WIDTH = 17, 3
INK, GRID, PAPER = (40, 40, 40), (225, 225, 225), (255, 255, 255)
COLOURS = (  # told apart by colour-blind people too (Okabe & Ito 2008)
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (230, 159, 0),
    (90, 90, 90),
    (150, 110, 60),
    (120, 60, 180),
    (200, 30, 60),
    (110, 130, 0),
    (0, 70, 90),
)
MANY = 60  # points of a line from which on its running mean is drawn
WINDOW = 0.04  # of a line: what the running mean is over
STEEP = 4.0  # largest by smallest value, from which on an axis is logarithmic
MOST_TICKS = 7


def write_plot(stats: Path, out: Path) -> None:
    """Draw the numbers of a run's stats.jsonl into a PNG, whole or not at all; nothing while there are none.

    Raises OSError for a full disk or an unwritable folder.
    """
    if panels := _panels(_read(stats)):
        _draw(panels, out, "steps")


def write_curves(panels: Mapping[str, Mapping[str, Points]], out: Path, across: str) -> None:
    """Draw lines over other things than steps: title -> name -> points, a panel a title. across: the axis's name.

    Raises OSError for a full disk or an unwritable folder.
    """
    _draw([_Panel(title, dict(lines), is_fraction=True) for title, lines in panels.items()], out, across)


def _draw(panels: Sequence[_Panel], out: Path, across: str) -> None:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH, HEIGHT * len(panels)), PAPER)
    draw = ImageDraw.Draw(image)
    last = max(step for panel in panels for points in panel.lines.values() for step, _ in points)
    for number, panel in enumerate(panels):
        _draw_panel(draw, panel, HEIGHT * number, last, across)
    with atomic_path(out) as partial:
        image.save(partial, "PNG")


@dataclass(frozen=True)
class _Panel:
    title: str
    lines: dict[str, Points]
    is_fraction: bool = False  # of values from 0 to 1, drawn as they are

    @property
    def values(self) -> list[float]:
        return [value for points in self.lines.values() for _, value in points]

    @property
    def is_logarithmic(self) -> bool:
        low, high = min(self.values), max(self.values)
        return not self.is_fraction and low > 0 and high > STEEP * low and self.title != LEARNING_RATE


def _read(stats: Path) -> dict[str, Points]:
    """Every number by its name. What a kill cut off is left out, and so is what is not finite."""
    lines: dict[str, Points] = {}
    for text in stats.read_text().splitlines() if stats.is_file() else ():
        try:
            row = json.loads(text)
        except ValueError:
            continue
        for name, value in row.items():
            if name not in NOT_DRAWN and isinstance(value, int | float) and math.isfinite(value):
                lines.setdefault(name, []).append((row["step"], value))
    return lines


def _panels(lines: dict[str, Points]) -> list[_Panel]:
    """The loss, its terms, those of them that are not always positive, and the learning rate; none that is empty."""
    terms = {name: points for name, points in lines.items() if name not in (*WHOLE, LEARNING_RATE)}
    positive = {name: points for name, points in terms.items() if min(value for _, value in points) > 0}
    found = [
        _Panel("loss", {name: lines[name] for name in WHOLE if name in lines}),
        _Panel("terms of the loss", positive),
        _Panel("terms that may be 0 or less", {name: x for name, x in terms.items() if name not in positive}),
        _Panel(LEARNING_RATE, {name: lines[name] for name in (LEARNING_RATE,) if name in lines}),
    ]
    return [panel for panel in found if panel.lines]


def _draw_panel(draw: Any, panel: _Panel, top: int, last: float, across: str) -> None:
    font = _font()
    left, right = LEFT, WIDTH - RIGHT
    upper, lower = top + TOP, top + HEIGHT - BOTTOM
    scale = math.log10 if panel.is_logarithmic else float
    low, high = _range([scale(value) for value in panel.values])

    def x(step: float) -> float:
        return left + (right - left) * step / (last or 1)

    def y(value: float) -> float:
        return lower - (lower - upper) * (scale(value) - low) / (high - low)

    title = panel.title + (" (logarithmic)" if panel.is_logarithmic else "")
    draw.text((left, top + 12), title, fill=INK, font=font)
    for value in _log_ticks(low, high) if panel.is_logarithmic else _ticks(low, high):
        draw.line([(left, y(value)), (right, y(value))], fill=GRID)
        draw.text((left - 10, y(value)), f"{value:.4g}", fill=INK, font=font, anchor="rm")
    for step in _ticks(0, last or 1):
        draw.line([(x(step), lower), (x(step), lower + 6)], fill=INK)
        draw.text((x(step), lower + 10), f"{step:,.10g}", fill=INK, font=font, anchor="mt")
    draw.text((right + 12, lower), across, fill=INK, font=font, anchor="lm")
    draw.line([(left, upper), (left, lower), (right, lower)], fill=INK)
    spacing = min(FONT_SIZE + 7, (lower - upper - FONT_SIZE) // len(panel.lines))
    for number, (name, points) in enumerate(panel.lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        _draw_line(draw, points, x, y, colour, is_noisy=not panel.is_fraction and name != LEARNING_RATE)
        place = upper + number * spacing
        draw.line([(right + 14, place + 9), (right + 38, place + 9)], fill=colour, width=LINE_WIDTH + 1)
        draw.text((right + 46, place), name, fill=INK, font=font)


def _draw_line(
    draw: Any,
    points: Points,
    x: Callable[[float], float],
    y: Callable[[float], float],
    colour: tuple[int, int, int],
    is_noisy: bool,
) -> None:
    if is_noisy and len(points) >= MANY:
        faint = tuple((c + 2 * paper) // 3 for c, paper in zip(colour, PAPER, strict=True))
        draw.line([(x(step), y(value)) for step, value in points], fill=faint)
        points = list(_running_mean(points))
    places = [(x(step), y(value)) for step, value in points]
    draw.line(places, fill=colour, width=LINE_WIDTH, joint="curve")
    if len(places) < MANY // 2:  # few enough to be seen one by one
        for across, down in places:
            draw.ellipse([across - 3, down - 3, across + 3, down + 3], fill=colour)


def _running_mean(points: Points) -> Iterator[tuple[float, float]]:
    """Each value as the mean of those around it, fewer at the ends."""
    reach = max(1, int(len(points) * WINDOW / 2))
    for i, (step, _) in enumerate(points):
        some = [value for _, value in points[max(0, i - reach) : i + reach + 1]]
        yield step, sum(some) / len(some)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis: those of the values and a twentieth more."""
    low, high = min(values), max(values)
    margin = (high - low) / 20 or abs(high) / 2 or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, at most MOST_TICKS: steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / MOST_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from 10^low to 10^high, or powers alone where those would be too many."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    for factors in ((1, 2, 5), (1,)):
        found = [f * 10.0**p for p in powers for f in factors if low <= math.log10(f * 10.0**p) <= high]
        if len(found) <= 2 * MOST_TICKS:
            return found
    return found[:: math.ceil(len(found) / MOST_TICKS)]


def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(FONT_SIZE)
