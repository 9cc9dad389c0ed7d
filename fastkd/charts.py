"""Curves and bars as inline SVG: whole without their script, coloured by CSS class for light and dark."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

WIDTH = 412.0  # user units; shown at 360 to 500 px, so that text stays near its nominal size on a phone too
LABEL = 22  # characters of a direct label before it is cut
DIVERGED = 1e30  # a loss beyond this would only flatten every other curve
DASHES = 4
GAP = 13.0  # between two labels

# Colour 0 is the ink of the baseline. No two come closer than 0.10 in OKLab, under protan, deutan and tritan
# simulation too, and each has a contrast of 3 or more against its background.
_LIGHT = ("#15191d", "#1f5fbf", "#d0750a", "#2f9d94", "#8c1d40", "#a170eb")
_DARK = ("#eef2f5", "#4779ea", "#d78c00", "#88e5ad", "#c43b10", "#a06496")


def _palette(colours: Sequence[str]) -> str:
    return ";".join(f"--s{i}:{colour}" for i, colour in enumerate(colours))


STYLE = f"""
:root{{{_palette(_LIGHT)}}}
@media (prefers-color-scheme:dark){{:root{{{_palette(_DARK)}}}}}
{"".join(f".s{i}{{--c:var(--s{i})}}" for i in range(len(_LIGHT)))}
figure{{margin:0;min-width:0}}
figcaption{{font-size:13px;font-weight:600}}
figcaption span{{font-weight:400;color:var(--muted)}}
figure svg{{display:block;width:100%;height:auto;overflow:visible}}
figure text{{font-size:11px;fill:var(--ink)}}
text.tick{{fill:var(--muted)}}
text.end{{text-anchor:end}}
text.mid{{text-anchor:middle}}
.grid{{stroke:var(--rule);fill:none;shape-rendering:crispEdges}}
.line{{stroke:var(--c);stroke-width:1.7;fill:none;stroke-linejoin:round}}
.d1{{stroke-dasharray:6 3}}.d2{{stroke-dasharray:2 2.5}}.d3{{stroke-dasharray:8 2.5 2 2.5}}
.lead{{stroke:var(--c);stroke-width:.8;fill:none;opacity:.75}}
.dot{{fill:var(--c)}}
.band{{fill:var(--c);opacity:.16}}
.bar{{fill:var(--c);opacity:.72}}
.hit{{fill:transparent}}.hit:hover{{fill:var(--ink);fill-opacity:.08}}
figure output{{display:block;min-height:2.8em;font-size:11.5px;line-height:1.4;color:var(--muted)}}
svg.key{{width:22px;height:8px;margin-right:6px;vertical-align:middle}}
"""

# Moves the tip of the epoch under the pointer to the line below the chart, where a finger can read it too.
SCRIPT = """
for (const hit of document.querySelectorAll(".hit")) {
  const title = hit.querySelector("title"), text = title.textContent;
  title.remove();
  const out = hit.closest("figure").querySelector("output");
  out.textContent = "point at an epoch to read its values";
  hit.addEventListener("pointerenter", () => { out.textContent = text; });
}
"""


class Line(NamedTuple):
    label: str
    style: int
    points: Sequence[tuple[int, float]]  # (epoch, value), ordered; a value that is not finite breaks the line
    band: Sequence[tuple[float, float]]  # (lowest, highest) of the seeds at each point; empty for one run

    def finite(self) -> list[int]:
        return [i for i, (_, y) in enumerate(self.points) if _plots(y)]


class Bar(NamedTuple):
    label: str
    style: int
    value: float | None


class Frame(NamedTuple):
    """The plot's box in user units, and where a point falls in it."""

    left: float
    right: float
    top: float
    floor: float
    first: int
    last: int
    scale: Callable[[float], float]  # value to 0..1

    def x(self, epoch: float) -> float:
        pad = 0.5 if self.first == self.last else 0.0  # a single epoch stands in the middle
        share = (epoch - self.first + pad) / (self.last - self.first + 2 * pad)
        return self.left + 6 + (self.right - self.left - 10) * share

    def y(self, value: float) -> float:
        return self.floor - (self.floor - self.top) * self.scale(value)


def styled(style: int) -> str:
    """The CSS classes of a line: 0 is the baseline's ink, the others walk the colours, then the dashes."""
    if style == 0:
        return "s0 d0"
    colours = len(_LIGHT) - 1
    return f"s{(style - 1) % colours + 1} d{(style - 1) // colours % DASHES}"


def ticks(low: float, high: float, most: int = 6, least_step: float = 0.0) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten that lie within low..high, at most `most` + 1 of them."""
    raw = max((high - low) / most, least_step)
    power = 10.0 ** math.floor(math.log10(raw) + 1e-9)
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [m * 10.0**d for d in decades for m in (1, 2, 5) if low <= m * 10.0**d <= high]
    if len(fine) <= 7:
        return fine
    return [10.0**d for d in decades[:: math.ceil(len(decades) / 7)] if low <= 10.0**d <= high]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones (sorted), at least `gap` apart, within low..high where they fit."""
    placed: list[float] = []
    for y in wanted:
        placed.append(max(y, placed[-1] + gap if placed else low))
    ceiling = high
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def curves(lines: Sequence[Line], title: str, *remarks: str, digits: int = 2, log: bool = False) -> str:
    """A figure of value over epoch: a labelled line per entry, a read-out per epoch. `log` where it helps."""
    drawn = [line for line in lines if line.finite()]
    lost = [line.label for line in lines if not line.finite()]
    remarks += (f"no finite value: {', '.join(lost)}",) if lost else ()
    if not drawn:
        return _figure(title, remarks, "")
    ys = [
        y
        for line in drawn
        for i in line.finite()
        for y in (line.band[i] if line.band else line.points[i][1:])
    ]
    epochs = [epoch for line in lines for epoch, _ in line.points]
    log = log and min(ys) > 1e-12 and max(ys) / min(ys) > 30  # else only the largest curve would show
    remarks += ("log scale",) if log else ()
    scale, y_ticks = _scale(min(ys), max(ys), log)
    right = WIDTH - 14 - 6.0 * max(len(_cut(line.label)) for line in drawn)
    floor = max(202.0, 10 + GAP * len(drawn))
    frame = Frame(38.0, right, 10.0, floor, min(epochs), max(epochs), scale)

    drawn.sort(key=lambda line: frame.y(line.points[line.finite()[-1]][1]))
    ends = [frame.y(line.points[line.finite()[-1]][1]) for line in drawn]
    parts = _axes(frame, y_ticks)
    for line, end, beside in zip(drawn, ends, spread(ends, GAP, frame.top, floor), strict=True):
        x, colour = frame.x(line.points[line.finite()[-1]][0]), _colour(line.style)
        parts += _strokes(line, frame)
        parts.append(f'<path class="lead {colour}" d="M{_path([(x, end), (right + 8, beside)])}"/>')
        parts.append(_dot(colour, x, end, 2.4))
        parts.append(_text(right + 11, beside, _cut(line.label)))
    svg = _svg(floor + 34, title, parts + _hits(lines, frame, digits))
    return _figure(title, remarks, f"{svg}<output></output>")


def bars(entries: Sequence[Bar], title: str, remark: str, form: str, full: float | None = None) -> str:
    """A figure of horizontal bars from zero, each with its value; `full` is the axis' length where known."""
    known = [bar.value for bar in entries if bar.value is not None and _plots(bar.value)]
    left = 10 + 6.0 * max(len(_cut(bar.label)) for bar in entries)
    unit = (WIDTH - left - 58) / (full or max(known, default=0.0) or 1.0)
    height = 19.0 * len(entries) + 8
    parts = []
    for i, bar in enumerate(entries):
        y = 4 + 19.0 * i
        size = max(bar.value, 0.0) * unit if bar.value is not None and _plots(bar.value) else 0.0
        parts.append(_text(left - 6, y + 7, _cut(bar.label), "end"))
        parts.append(_rect(f"bar {_colour(bar.style)}", left, y + 1, size, 12.5))
        parts.append(_text(left + size + 5, y + 7, "-" if bar.value is None else form.format(bar.value)))
    parts.append(f'<path class="grid" d="M{left:.1f} 0V{height:.1f}"/>')
    return _figure(title, (remark,), _svg(height, title, parts))


def _plots(y: float) -> bool:
    return math.isfinite(y) and abs(y) < DIVERGED


def _cut(label: str) -> str:
    return label if len(label) <= LABEL else label[: LABEL - 2] + ".."


def _colour(style: int) -> str:
    return styled(style).split()[0]


def _scale(low: float, high: float, log: bool) -> tuple[Callable[[float], float], list[float]]:
    """Value to 0..1, and the ticks."""
    if log:
        a, b = math.log10(low) - 0.05, math.log10(high) + 0.05
        return lambda y: (math.log10(y) - a) / (b - a), log_ticks(10**a, 10**b)
    one = high - low <= 1e-9 * abs(high)  # a single value needs room to stand in
    pad = (abs(high) * 0.1 or 1.0) if one else (high - low) * 0.05
    bottom = max(low - pad, 0.0) if low >= 0 else low - pad
    height = high + pad - bottom
    return lambda y: (y - bottom) / height, ticks(bottom, high + pad)


def _axes(frame: Frame, y_ticks: Sequence[float]) -> list[str]:
    parts = []
    for value in y_ticks:
        parts.append(f'<path class="grid" d="M{frame.left:.1f} {frame.y(value):.1f}H{frame.right:.1f}"/>')
        parts.append(_text(frame.left - 5, frame.y(value), f"{value:.6g}", "tick end"))
    one = frame.first == frame.last
    for epoch in [frame.first] if one else ticks(frame.first, frame.last, least_step=1.0):
        parts.append(f'<path class="grid" d="M{frame.x(epoch):.1f} {frame.floor:.1f}v4"/>')
        parts.append(_text(frame.x(epoch), frame.floor + 11, f"{epoch:g}", "tick mid"))
    parts.append(f'<path class="grid" d="M{frame.left:.1f} {frame.floor:.1f}H{frame.right:.1f}"/>')
    parts.append(_text((frame.left + frame.right) / 2, frame.floor + 26, "epoch", "tick mid"))
    return parts


def _strokes(line: Line, frame: Frame) -> list[str]:
    """The stretches of consecutive finite points, a dot for a lone one, the seeds' range behind them."""
    parts, colour = [], _colour(line.style)
    for finite, stretch in itertools.groupby(range(len(line.points)), lambda i: _plots(line.points[i][1])):
        if not finite:
            continue
        where = list(stretch)
        xs = [frame.x(line.points[i][0]) for i in where]
        ys = [frame.y(line.points[i][1]) for i in where]
        if len(where) == 1:
            parts.append(_dot(colour, xs[0], ys[0], 1.8))
            continue
        if line.band:
            below, above = ([frame.y(line.band[i][side]) for i in where] for side in (0, 1))
            rim = [*zip(xs, below, strict=True), *reversed([*zip(xs, above, strict=True)])]
            parts.append(f'<path class="band {colour}" d="M{_path(rim)}Z"/>')
        parts.append(f'<path class="line {styled(line.style)}" d="M{_path([*zip(xs, ys, strict=True)])}"/>')
    return parts


def _hits(lines: Sequence[Line], frame: Frame, digits: int) -> list[str]:
    """One invisible strip per epoch, which holds that epoch's values; fewer where runs are very long."""
    values = [(line.label, dict(line.points)) for line in lines]
    epochs = sorted({epoch for line in lines for epoch, _ in line.points})
    epochs = epochs[:: math.ceil(len(epochs) / 300)]
    between = [(frame.x(a) + frame.x(b)) / 2 for a, b in itertools.pairwise(epochs)]
    parts = []
    for epoch, (start, stop) in zip(
        epochs, itertools.pairwise([frame.left, *between, frame.right]), strict=True
    ):
        read = [f"{label} {at[epoch]:.{digits}f}" for label, at in values if epoch in at]
        tip = f"<title>{html.escape(f'epoch {epoch}: ' + ', '.join(read))}</title>"
        parts.append(_rect("hit", start, frame.top, stop - start, frame.floor - frame.top, tip))
    return parts


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _dot(colour: str, x: float, y: float, radius: float) -> str:
    return f'<circle class="dot {colour}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'


def _rect(classes: str, x: float, y: float, width: float, height: float, inside: str = "") -> str:
    box = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="{classes}" {box}>{inside}</rect>'


def _text(x: float, y: float, text: str, classes: str = "") -> str:
    """Centred on y: a baseline 3.8 below it suits the 11 px of the style."""
    return f'<text class="{classes}" x="{x:.1f}" y="{y + 3.8:.1f}">{html.escape(text)}</text>'


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{html.escape(title)}">'
    return "\n".join((head, *parts, "</svg>"))


def _figure(title: str, remarks: Sequence[str], svg: str) -> str:
    said = f" <span>{html.escape('; '.join(remarks))}</span>" if remarks else ""
    return f"<figure><figcaption>{html.escape(title)}{said}</figcaption>\n{svg}</figure>"


def clean(value: object) -> str:
    """One printable line: names and settings come from files, and may hold anything."""
    return "".join(c if c.isprintable() else "?" for c in str(value))
