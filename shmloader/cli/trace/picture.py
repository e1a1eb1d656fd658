"""The tracks of a trace as a picture. Matplotlib is imported when one is drawn."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from shmloader.cli.console import UsageError

from .timeline import Span, Timeline

# Okabe and Ito's colours, which differ for colour-blind people too; by lightness as well where they meet.
_COLOURS = {
    "wait": "#D55E00",
    "next": "#F0E442",
    "step": "#BFBFBF",
    "writing the trace": "#000000",
    "fetch": "#0072B2",
    "collate": "#56B4E9",
    "raising": "#000000",
    "waiting for room or at the gate": "#D55E00",
    "writing": "#D9D9D9",
    "ready": "#009E73",
    "held": "#CC79A7",
    "held by a worker": "#000000",
}
_LEGENDS: list[tuple[str, dict[str, str]]] = [
    (
        "the loop",
        {
            "step": "its own step",
            "wait": "waits for workers",
            "next": "other work of the loader",
            "writing the trace": "writes the trace",
        },
    ),
    (
        "workers",
        {
            "fetch": "fetch samples",
            "collate": "collate",
            "raising": "raise an exception",
            "waiting for room or at the gate": "wait for room or at the gate",
        },
    ),
    (
        "slots",
        {
            "writing": "assigned",
            "fetch": "fetched",
            "collate": "collated",
            "ready": "ready",
            "held": "held by the loop",
            "held by a worker": "held by a worker",
        },
    ),
]
_STATES = ("writing", "fetch", "collate", "ready", "held", "held by a worker")  # what lies over others comes later
_BATCHES = 60  # how many are drawn where nothing is said: more would be too thin to see
_WIDTH, _LANE, _PANEL, _REST = 11.0, 0.26, 0.55, 1.0  # inches
_TEXT = "#333333"

Window = tuple[float, float]
_Lane = tuple[str, list[Span]]


def window(timeline: Timeline, begin: float | None, end: float | None) -> Window:
    """Returns from when to when to draw, in seconds of the trace's clock.

    Args:
        timeline: what is drawn.
        begin: seconds from the trace's begin.
        end: likewise. Where both are None, it is in the middle, and as much as can be seen.
    """
    steps = timeline.steps
    first, last = timeline.begin, timeline.end
    if begin is None and end is None and len(steps) > _BATCHES:
        middle = len(steps) // 2 - _BATCHES // 2
        return steps[middle].began, steps[middle + _BATCHES - 1].ended
    return first if begin is None else first + begin, last if end is None else min(first + end, last)


def draw(timeline: Timeline, path: Path, begin: float | None = None, end: float | None = None) -> None:
    """Draws one loader's tracks into a file, of whatever kind its name says: .png, .svg or .pdf.

    Raises:
        UsageError: there is no Matplotlib, nothing to draw, or the file cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("drawing takes Matplotlib: pip install 'shmloader[plot]'")
    from matplotlib.figure import Figure

    start, stop = window(timeline, begin, end)
    panels = _panels(timeline, start, stop)
    if start >= stop or not panels:
        asked = [f" {word} {at:g}" for word, at in (("from", begin), ("to", end)) if at is not None]
        raise UsageError(f"there is nothing to draw of {timeline.label}{''.join(asked)}{' seconds' if asked else ''}")
    heights = [_PANEL + _LANE * len(lanes) for lanes in panels]
    figure = Figure(figsize=(_WIDTH, sum(heights) + _REST), layout="constrained")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    unit, name = (1e3, "ms") if stop - start < 2 else (1.0, "s")
    for panel, lanes, legend in zip(axes, panels, _LEGENDS, strict=False):
        _draw_lanes(panel, lanes, (start, stop), unit)
        _draw_legend(panel, lanes, *legend)
    axes[0].set_xlim(0, (stop - start) * unit)
    axes[-1].set_xlabel(f"{name}, from {start - timeline.begin:.3f} s of the trace on", color=_TEXT)
    figure.suptitle(_title(timeline, start, stop), fontsize=12, color=_TEXT)
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:  # the latter of a suffix that it does not know
        raise UsageError(f"{path} cannot be written: {error}") from None


def _panels(timeline: Timeline, start: float, stop: float) -> list[list[_Lane]]:
    """Returns the lanes of each panel: name and spans within the window."""

    def within(spans: Iterable[Span]) -> list[Span]:
        return [span for span in spans if span.ended > start and span.began < stop]

    loop = within([*timeline.loop, *_own_steps(timeline.loop)])
    loop.sort(key=lambda span: span.name == "wait")  # which are drawn over the steps that they are in
    workers = [(f"worker {number}", within(track)) for number, track in sorted(timeline.workers.items())]
    slots = [
        (f"slot {number}", spans) for number, track in sorted(timeline.slots.items()) if (spans := _life(within(track)))
    ]
    return [panel for panel in ([("loop", loop)], workers, slots) if panel]


def _own_steps(loop: Sequence[Span]) -> list[Span]:
    """Returns what the loop did between the loader's steps."""
    found, has_batch = [], False
    spans = [span for span in loop if span.name in ("next", "writing the trace")]
    for one, following in itertools.pairwise(spans):
        if one.name == "next":
            has_batch = one.batch is not None
        if has_batch:
            found.append(Span("step", one.ended, following.began, one.batch))
    return found


def _life(track: Sequence[Span]) -> list[Span]:
    """Returns what a slot was. A batch is ready when it is made, and not only when the loop looks."""
    found, made = [], None
    for span in track:  # which has the work on a batch behind the turn that it is in, and then what follows that
        if span.name in ("fetch", "collate"):
            made = span
        if span.name == "ready" and made is not None and made.batch == span.batch:
            span = span._replace(began=made.ended)
        if span.name in _STATES:
            found.append(span)
    return found


def _draw_lanes(axes: Any, lanes: list[_Lane], window: Window, unit: float) -> None:
    start, stop = window
    for row, (_, spans) in enumerate(lanes):
        for name in dict.fromkeys(span.name for span in spans):
            bars = [
                ((max(span.began, start) - start) * unit, (min(span.ended, stop) - max(span.began, start)) * unit)
                for span in spans
                if span.name == name
            ]
            # White edges part neighbours; of thin bars they would leave nothing.
            edge = 0.4 if len(bars) <= 2 * _BATCHES else 0
            axes.broken_barh(bars, (row - 0.4, 0.8), facecolors=_COLOURS.get(name, _TEXT), edgecolor="white", lw=edge)
    axes.set_yticks(range(len(lanes)), [name for name, _ in lanes], fontsize=9, color=_TEXT)
    axes.set_ylim(len(lanes) - 0.45, -0.55)
    axes.tick_params(length=0, colors=_TEXT)
    axes.grid(axis="x", color="#E5E5E5", lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#BFBFBF")


def _draw_legend(axes: Any, lanes: list[_Lane], title: str, names: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    there = {span.name for _, spans in lanes for span in spans}
    patches = [Patch(facecolor=_COLOURS[name], label=text) for name, text in names.items() if name in there]
    axes.legend(
        handles=patches, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(patches) or 1, frameon=False, fontsize=9,
        handlelength=1.2, handleheight=0.9, columnspacing=1.4, borderaxespad=0.1, labelcolor=_TEXT,
    )  # fmt: skip
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=_TEXT)


def _title(timeline: Timeline, start: float, stop: float) -> str:
    drawn = [span for span in timeline.steps if span.began < stop and span.ended > start]
    all_steps = len(timeline.steps)
    which = f"all {all_steps} batches" if len(drawn) == all_steps else f"{len(drawn)} of {all_steps} batches"
    waited = sum(min(span.ended, stop) - max(span.began, start) for span in timeline.loop
                 if span.name == "wait" and span.ended > start and span.began < stop)  # fmt: skip
    return f"{timeline.label}: {which}; the loop waited for {100 * waited / (stop - start):.0f} % of the time"
