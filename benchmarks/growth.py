"""How the cost of a batch grows: ``python -m benchmarks.growth``.

With the length of the dataset, the slots of the pool and the number of passes it should not; with the tensors of a
batch it should in a straight line; and workers that wait for something else than a processor should make so many times
the batches of one. See `axes` for what is measured, and `laws` for what is to hold.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from shmloader.cli.bench.figures import Figure, figure
from shmloader.cli.console import Parser, positive, shown
from shmloader.cli.machine import machine, machine_line

from . import charts, laws
from .axes import AXES, WAIT_SECONDS, WAITING_BATCH_SIZE, Axis, Rounds, cpu, shares, times
from .laws import Law
from .output import chosen, command, markdown, micros, options

_TIME, _CPU = "time a batch", "main process's processor time a batch"


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and returns the exit code. Blocks for some minutes."""
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser()
    args = parser.parse_args(argv)
    axes = chosen(parser, "axis", args.axes, AXES)
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores, which is the point
    found = _measure(axes, args.rounds, args.milliseconds / 1e3)
    run = command("benchmarks.growth", argv)
    if args.json:
        axes_found = {axis.name: _as_dict(axis, rounds) for axis, rounds in found.items()}
        print(json.dumps({"command": run, "machine": machine(), "axes": axes_found}, indent=2))
    else:
        tables = [line for axis, rounds in found.items() for line in [*_table(axis, rounds), ""]]
        lines = [law.line() for axis, rounds in found.items() for law in _judge(axis, rounds)]
        print("\n".join([machine_line(), "", *tables, *lines]))
    if args.plot:
        for axis, rounds in found.items():
            _draw(axis, rounds, args.plot / f"growth-{axis.name}.png", [f"Medians and spread. {run}", machine_line()])
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m benchmarks.growth",
        description="Measures how the cost of a batch grows with what there is more of.",
        parents=[options()],
    )
    parser.add_argument("--axes", metavar="A,B", help=f"of {', '.join(axis.name for axis in AXES)}; default: all")
    parser.add_argument("--rounds", type=positive, default=7, metavar="N", help="default: 7")
    parser.add_argument(
        "--milliseconds", type=positive, default=250, metavar="N", help="about how long each takes; default: 250"
    )
    return parser


def _measure(axes: Sequence[Axis], rounds: int, seconds: float) -> dict[Axis, Rounds]:
    found = {}
    with shown(len(axes)) as progress:
        for axis in axes:
            progress.begin(axis.name)
            found[axis] = axis.measure(axis.places, rounds, seconds)
            progress.step()
    return found


def _judge(axis: Axis, rounds: Rounds) -> list[Law]:
    if axis.law == "flat":
        return [laws.flat(f"{_TIME} by {axis.counts}", times(rounds))]
    if axis.law == "linear":
        curves = {_TIME: times(rounds), _CPU: cpu(rounds)}
        return [laws.linear(f"{what} by {axis.counts}", curve) for what, curve in curves.items()]
    waiting = f"{axis.counts}, where each of a batch's {WAITING_BATCH_SIZE} samples waits {WAIT_SECONDS * 1e3:g} ms"
    return [laws.proportional(f"throughput by {waiting}", shares(rounds))]


def _as_dict(axis: Axis, rounds: Rounds) -> dict[str, object]:
    return {
        "counts": axis.counts,
        "seconds_per_batch": _figures(times(rounds)),
        "consumer_cpu_seconds_per_batch": _figures(cpu(rounds)),
        "laws": [law.as_dict() for law in _judge(axis, rounds)],
    }


def _figures(curve: Mapping[int, Figure]) -> dict[int, object]:
    return {place: found.as_dict() for place, found in curve.items()}


def _table(axis: Axis, rounds: Rounds) -> list[str]:
    columns = {"us/batch": _texts(times(rounds), micros), "CPU us/batch": _texts(cpu(rounds), micros)}
    if axis.law == "proportional":
        columns["share of linear"] = _texts(shares(rounds), lambda found: found.text(lambda value: f"{value:.2f}"))
    rows = [(f"{place:,}", *(column[place] for column in columns.values())) for place in rounds]
    return markdown((axis.counts, *columns), rows)


def _texts(curve: Mapping[int, Figure], form: Callable[[Figure], str]) -> dict[int, str]:
    return {place: form(found) for place, found in curve.items()}


def _draw(axis: Axis, rounds: Rounds, path: Path, notes: Sequence[str]) -> None:
    if axis.law == "proportional":
        labels = charts.Labels(f"Throughput by {axis.counts}", notes, "batches a second", axis.counts)
        rates = {place: figure([1 / took.per_batch for took in taken]) for place, taken in rounds.items()}
        ideal = {place: place * rates[1].median for place in rates}
        charts.curves(path, labels, {"shmloader": rates}, {"so many times one worker's": ideal}, log_values=True)
        return
    labels = charts.Labels(f"Cost of a batch by {axis.counts}", notes, "microseconds", axis.counts)
    curves = {_TIME: _in_micros(times(rounds)), _CPU: _in_micros(cpu(rounds))}
    lines = [laws.fit(curve) for curve in curves.values()] if axis.law == "linear" else []
    fits = {
        f"{line.intercept:.1f} + {line.slope:.2f} each": {place: line.at(place) for place in rounds} for line in lines
    }
    charts.curves(path, labels, curves, fits, log_values=axis.law == "linear")


def _in_micros(curve: Mapping[int, Figure]) -> dict[int, Figure]:
    return {place: found.scaled(1e6) for place, found in curve.items()}


if __name__ == "__main__":
    sys.exit(main())
