"""Charts as inline SVG: no script, no network, colours from the page's style sheet.

Every text that comes from a repository passes through :func:`html.escape`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from html import escape
from itertools import accumulate, pairwise

WIDTH = 1040
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 28
_PLOT = WIDTH - _LEFT - _RIGHT

#: Bars in one chart; a longer time is drawn with several weeks to a bar.
_MAX_BARS = 180


@dataclass(frozen=True)
class Bar:
    """Some weeks in a row: from a Monday, up to and including a Sunday."""

    start: date
    end: date
    values: tuple[int, ...]

    @property
    def label(self) -> str:
        return f"{_day(self.start)} to {_day(self.end)}"


def by_time(weeks: Sequence[tuple[date, tuple[int, ...]]]) -> tuple[list[Bar], int]:
    """Bars without gaps from (Monday, values) in order, and how many weeks one bar holds."""
    if not weeks:
        return [], 1
    first, last = weeks[0][0], weeks[-1][0]
    span = (last - first).days // 7 + 1
    size = -(-span // _MAX_BARS)
    width = len(weeks[0][1])
    sums = [[0] * width for _ in range(-(-span // size))]
    for monday, values in weeks:
        place = sums[(monday - first).days // 7 // size]
        for i, value in enumerate(values):
            place[i] += value
    step = timedelta(weeks=size)
    return [
        Bar(first + i * step, first + (i + 1) * step - timedelta(days=1), tuple(values))
        for i, values in enumerate(sums)
    ], size


def columns(bars: Sequence[Bar], *, title: str, unit: str, height: int = 220) -> str:
    """One column per bar, for the first of its values."""
    plot = height - _TOP - _BOTTOM
    ticks = _ticks(max((b.values[0] for b in bars), default=0))
    base = _TOP + plot

    def y(value: float) -> float:
        return base - plot * value / ticks[-1]

    parts = [_rule(y(t), compact(t), strong=t == 0) for t in ticks]
    for x, width, bar in _slots(bars):
        value = bar.values[0]
        if value:
            parts.append(
                f'<rect class="commits" x="{x:.1f}" y="{y(value):.1f}" width="{width:.1f}" '
                f'height="{base - y(value):.1f}" rx="{min(2, width / 3):.1f}">'
                f"<title>{bar.label}: {value:,} {unit}</title></rect>"
            )
    parts.append(_time_axis(bars, base))
    return _svg(parts, height, title)


def up_and_down(bars: Sequence[Bar], *, title: str, height: int = 240) -> str:
    """Added lines upwards and removed ones downwards, from a bar's values (added, removed).

    A single import would flatten all the rest: columns far beyond the usual are cut off, drawn
    with a mark, and tell their number on hover.
    """
    plot = height - _TOP - _BOTTOM
    usual = _usual([v for b in bars for v in b.values])
    up = min(max((b.values[0] for b in bars), default=0), usual)
    down = min(max((b.values[1] for b in bars), default=0), usual)
    scale = plot / (up + down or 1)
    zero = _TOP + up * scale

    ticks = _ticks(up + down, 6)
    parts = [_rule(zero, "0", strong=True)]
    parts += [_rule(zero - t * scale, compact(t)) for t in ticks[1:] if t <= up]
    parts += [_rule(zero + t * scale, compact(t)) for t in ticks[1:] if t <= down]
    for x, width, bar in _slots(bars):
        added, removed = bar.values
        label = f"<title>{bar.label}: {added:,} added, {removed:,} removed</title>"
        for kind, value, most, sign in (("added", added, up, -1), ("removed", removed, down, 1)):
            if not value:
                continue
            length = max(min(value, most) * scale, 1)
            tip = zero + sign * length
            parts.append(
                f'<rect class="{kind}" x="{x:.1f}" y="{min(zero, tip):.1f}" '
                f'width="{width:.1f}" height="{length:.1f}">{label}</rect>'
            )
            if value > most:
                parts.append(
                    f'<rect class="cut" x="{x - 1:.1f}" y="{tip - sign * 8 - 1:.1f}" '
                    f'width="{width + 2:.1f}" height="2.5"/>'
                )
    parts.append(_time_axis(bars, _TOP + plot))
    return _svg(parts, height, title)


def ranking(rows: Sequence[tuple[str, int]], *, title: str, unit: str, width: int = 500) -> str:
    """Horizontal bars, one per (name, value), in the order given."""
    line, names = 26, 170
    most = max((value for _, value in rows), default=1) or 1
    room = width - names - 70
    parts = []
    for i, (name, value) in enumerate(rows):
        middle = i * line + line / 2
        length = max(room * value / most, 1)
        short = name if len(name) <= 20 else name[:19] + "…"
        parts.append(
            f'<text class="name" x="{names - 10}" y="{middle + 4:.1f}" text-anchor="end">'
            f"{escape(short)}<title>{escape(name)}</title></text>"
            f'<rect class="commits" x="{names}" y="{middle - 8:.1f}" width="{length:.1f}" '
            f'height="16" rx="2"><title>{escape(name)}: {value:,} {unit}</title></rect>'
            f'<text x="{names + length + 8:.1f}" y="{middle + 4:.1f}">{value:,}</text>'
        )
    return _svg(parts, max(len(rows) * line, line), title, width)


def week_of_hours(hours: Sequence[int], *, title: str, width: int = 500) -> str:
    """A dot per hour of the week; its area tells the number of commits."""
    left, top, line = 40, 8, 33
    slot = (width - left - 4) / 24
    most = max(hours) or 1
    parts = []
    for day, name in enumerate(("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")):
        middle = top + day * line + line / 2
        parts.append(f'<text x="{left - 10}" y="{middle + 4:.1f}" text-anchor="end">{name}</text>')
        parts.append(
            f'<line class="rule" x1="{left}" x2="{width - 4}" y1="{middle:.1f}" y2="{middle:.1f}"/>'
        )
        for hour in range(24):
            value = hours[day * 24 + hour]
            if value:
                radius = max(1.2, (slot / 2) * (value / most) ** 0.5)
                parts.append(
                    f'<circle class="commits" cx="{left + slot * (hour + 0.5):.1f}" '
                    f'cy="{middle:.1f}" r="{radius:.1f}">'
                    f"<title>{name} {hour:02}:00: {value:,} commits</title></circle>"
                )
    below = top + 7 * line + 16
    for hour in range(0, 24, 3):
        parts.append(
            f'<text x="{left + slot * (hour + 0.5):.1f}" y="{below}" text-anchor="middle">'
            f"{hour:02}</text>"
        )
    return _svg(parts, below + 8, title, width)


def compact(value: int) -> str:
    """A number in five characters or less: 950, 1.2k, 34k, 5.6M."""
    for limit, unit in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if value >= limit:
            scaled = value / limit
            return f"{scaled:.0f}{unit}" if scaled >= 100 else f"{scaled:.3g}{unit}"
    return str(value)


# --- parts ----------------------------------------------------------------------------------------


def _svg(parts: Sequence[str], height: float, title: str, width: int = WIDTH) -> str:
    kind = "wide" if width == WIDTH else "half"
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height:.0f}" role="img" '
        f'aria-label="{escape(title)}">' + "".join(parts) + "</svg>"
    )


def _slots(bars: Sequence[Bar]) -> list[tuple[float, float, Bar]]:
    """(left edge, width, bar) for each column."""
    slot = _PLOT / max(len(bars), 1)
    width = min(slot * 0.78, 40)
    return [(_LEFT + i * slot + (slot - width) / 2, width, bar) for i, bar in enumerate(bars)]


def _rule(y: float, label: str, *, strong: bool = False) -> str:
    return (
        f'<line class="{"axis" if strong else "rule"}" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" '
        f'y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    )


def _ticks(most: int, about: int = 4) -> list[int]:
    """Round numbers from 0 up to the first one at or above ``most``."""
    steps = [m * 10**e for e in range(12) for m in (1, 2, 5)]
    step = next((s for s in steps if s * about >= most), steps[-1])
    return list(range(0, max(-(-most // step), 1) * step + 1, step))


def _usual(values: Sequence[int]) -> int:
    """Where to cut: well above what 19 in 20 columns reach; the maximum when nothing stands out."""
    seen = sorted(v for v in values if v)
    if not seen:
        return 0
    limit = 2 * seen[min(len(seen) - 1, len(seen) * 19 // 20)]
    return seen[-1] if len(seen) < 8 or seen[-1] <= limit else limit


def _time_axis(bars: Sequence[Bar], base: float) -> str:
    """Labels at the finest calendar unit that leaves room for them."""
    marks: list[tuple[int, str]] = []
    finer: list[Callable[[date], tuple[int, int]]] = [
        lambda d: (d.year, d.month),
        lambda d: (d.year, (d.month - 1) // 3),
        *(lambda d, n=n: (d.year // n, 0) for n in (1, 2, 5, 10, 20, 50, 100, 1000)),
    ]
    for level, unit in enumerate(finer):
        marks = []
        for i, (before, bar) in enumerate(pairwise(bars), 1):
            if unit(before.start) != unit(bar.start):
                text = f"{bar.start:%Y}" if level > 1 or bar.start.month == 1 else f"{bar.start:%b}"
                marks.append((i, text))
        if len(marks) <= 14:
            break
    if len(marks) < 2:  # a short history: days
        every = max(1, -(-len(bars) // 10))
        marks = [(i, _day(bar.start)) for i, bar in enumerate(bars) if i % every == 0]
    elif marks[0][0] * _PLOT / len(bars) > 60 and not marks[0][1].isdigit():
        marks.insert(0, (0, f"{bars[0].start:%b %Y}"))
    slots = _slots(bars)
    return "".join(
        f'<text x="{slots[i][0] + slots[i][1] / 2:.1f}" y="{base + 20:.1f}" '
        f'text-anchor="middle">{text}</text>'
        for i, text in marks
    )


def _day(day: date) -> str:
    return f"{day.day} {day:%b %Y}"


def monday(week: str) -> date:
    """The first day of an ISO week like "2024-W05"."""
    year, number = week.split("-W")
    return date.fromisocalendar(int(year), int(number), 1)


def without_strays(
    weeks: Sequence[tuple[date, tuple[int, ...]]],
) -> tuple[list[tuple[date, tuple[int, ...]]], int]:
    """The weeks to draw, and how many commits (a week's first value) are left out of the drawing.

    A few commits made with a broken clock (1970, 2099) would squeeze all others into one corner:
    up to one commit in 100 at either end is left out if more than three years lie between.
    """
    kept = list(weeks)
    allowed = sum(values[0] for _, values in weeks) // 100
    for from_end in (False, True):
        ordered = kept[::-1] if from_end else kept
        counts = list(accumulate(values[0] for _, values in ordered))
        cut = 0
        for i in range(len(ordered) - 1):
            if counts[i] > allowed:
                break
            if abs((ordered[i + 1][0] - ordered[i][0]).days) > 3 * 365:
                cut = i + 1
        kept = ordered[cut:][::-1] if from_end else ordered[cut:]
    return kept, sum(v[0] for _, v in weeks) - sum(v[0] for _, v in kept)
