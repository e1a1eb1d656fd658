"""``python -m shmloader trace``: figures of hand-made traces, and what becomes of files that are none."""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from shmloader import ShmDataLoader
from shmloader.cli.main import main
from shmloader.cli.trace import command, summary
from shmloader.cli.trace.picture import window
from shmloader.cli.trace.reading import TraceEvents, read
from shmloader.cli.trace.timeline import Span, Timeline, timelines
from tests.helpers.datasets import Images, Mapped
from tests.helpers.support import PATIENCE

_LOOP, _WORKERS, _SLOTS = 1, 2, 3


def _name(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}


def _span(pid: int, tid: int, name: str, began: float, lasted: float, batch: int | None) -> dict[str, Any]:
    return {"ph": "X", "pid": pid, "tid": tid, "name": name, "ts": began, "dur": lasted, "args": {"batch": batch}}


def _made(batches: int = 10, base: int = 0) -> list[dict[str, Any]]:
    """Returns a trace in which each batch takes a worker 80 us, and the loop waits 30 us of each 100."""
    events = [
        _name("thread_name", _LOOP, 7, "it: x: the loop"),
        _name("process_name", _WORKERS, 0, "it: x: workers"),
        _name("process_name", _SLOTS, 0, "it: x: slots"),
    ]
    for batch in range(batches):
        at = 100.0 * batch
        events += [
            _span(_LOOP, 7, "next", at, 40, batch),
            _span(_LOOP, 7, "wait", at + 5, 30, None),
            _span(_WORKERS, batch % 2, "fetch", at, 60, batch),
            _span(_WORKERS, batch % 2, "collate", at + 60, 20, batch),
            _span(_SLOTS, batch % 3, "writing", at, 80, batch),
            _span(_SLOTS, batch % 3, "ready", at + 80, 10, batch),
            _span(_SLOTS, batch % 3, "held", at + 90, 10, batch),
        ]
    end = {"events": len(events), "dropped": 0, "is_complete": True, "baseTimeNanoseconds": base}
    return [*events, {"ph": "M", "name": "shmloader_trace", "pid": 1, "tid": 0, "args": end}]


def _printed(trace: TraceEvents) -> str:
    return "\n".join(summary.lines(trace, timelines(trace.events)))


def test_the_summary_says_who_did_what_for_how_long() -> None:
    text = _printed(TraceEvents(_made()))
    assert "it: x: 10 batches in 1.00 ms, 10,000 a second" in text
    assert "waited for workers 30 %, 300 us" in text
    assert "other work of the loader 10 %, 100 us" in text
    assert "its own 60 %, 600 us" in text
    assert "worker 0    busy 40 %: 5 batches, fetching 300 us, collating 100 us" in text
    assert "3 used; at once at most 1 ready, 1 held" in text
    assert text.count("80.0 us (fetch 60.0 us, collate 20.0 us)") == 5


def test_a_batch_is_not_slow_that_has_waited() -> None:
    """For room, which lies within collating, or at the gate, within fetching."""
    events = _made()
    events[-1:-1] = [
        _span(_WORKERS, 0, "fetch", 2000, 902, 10),
        _span(_WORKERS, 0, "waiting for room or at the gate", 2000, 850, 10),
        _span(_WORKERS, 0, "collate", 2902, 30, 10),
        _span(_WORKERS, 0, "fetch", 3000, 60, 11),
        _span(_WORKERS, 0, "waiting for room or at the gate", 3060, 500, 11),
        _span(_WORKERS, 0, "collate", 3060, 525, 11),
        _span(_WORKERS, 0, "fetch", 4000, 100, 12),
    ]
    text = _printed(TraceEvents(events)).partition("slowest batches")[2].split("\n")
    assert [line.strip() for line in text[1:4]] == [
        "batch 12, worker 0: 100 us (fetch 100 us, collate 0)",
        "batch 11, worker 0: 85.0 us (fetch 60.0 us, collate 525 us, 500 us of that waiting for room or at the gate)",
        "batch 10, worker 0: 82.0 us (fetch 902 us, collate 30.0 us, 850 us of that waiting for room or at the gate)",
    ]


def test_the_summary_says_what_is_not_in_the_file() -> None:
    events = _made()
    events[-1]["args"].update(dropped=3, is_complete=False, error="ENOSPC")
    events.append({"ph": "M", "name": "shmloader_lost", "args": {"batches": 2}})
    text = _printed(TraceEvents(events))
    assert "not here: 3 events" in text
    assert "ended within the traced block" in text
    assert "could not be written to (ENOSPC)" in text
    assert "max_bytes" not in text
    assert "Of 2 batches" in text
    assert "no pass of a loader" in _printed(TraceEvents([]))


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_is_read_wherever_it_was_cut(tmp_path: Path, packed: bool) -> None:
    data = "[\n" + "".join(json.dumps(event) + ",\n" for event in _made(3))
    path = tmp_path / "trace.json"
    for end in range(2, len(data), 97):
        cut = data[:end].encode()
        path.write_bytes(gzip.compress(cut)[:-8] if packed else cut)
        found = read(path)
        assert not found.is_whole
        assert len(found.events) == data[:end].count("\n") - 1


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"3", b"[1]", b'{"a": 3}', b"[\nx\n", b"\x1f\x8bnonsense", b"\x00\xff", b"[" * 100_000]
)
def test_what_is_no_trace_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    path = tmp_path / "trace.json"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as caught:
        main(["trace", str(path)])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(path) in error


_STRANGE = [None, True, -3, 0.5, 1e300, 10**400, "x", "", [], [1], {}, {"name": 3}, float("nan"), float("inf")]


def _summed_up_or_refused(capsys: pytest.CaptureFixture[str], trials: int, options: list[str]) -> None:
    """Any field of any event may be something else, or missing."""
    draw = random.Random(0)
    Path("other.json").write_text(json.dumps({"traceEvents": _made(3), "baseTimeNanoseconds": 10**9}))
    for _ in range(trials):
        events = _made(3)
        for _ in range(draw.randrange(1, 4)):
            event = draw.choice(events)
            if draw.random() < 0.3 and isinstance(event.get("args"), dict):
                event = event["args"]
            name = draw.choice([*event, "name"])
            if draw.random() < 0.3:
                event.pop(name, None)
            else:
                event[name] = draw.choice(_STRANGE)
        found: Any = {"traceEvents": events, "baseTimeNanoseconds": draw.choice(_STRANGE)}
        Path("trace.json").write_text(json.dumps(draw.choice([events, found])))
        code: Any = 2
        with contextlib.suppress(SystemExit):
            code = main(["trace", "trace.json", *options])
        assert (code, capsys.readouterr().err.count("\n")) in ((0, 0), (2, 1))


@pytest.mark.parametrize("options", [[], ["--merge", "other.json", "--out", "both.json"]], ids=str)
def test_events_of_any_kind_give_a_summary_or_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _summed_up_or_refused(capsys, 250, options)


@pytest.mark.usefixtures("_matplotlib")
def test_events_of_any_kind_give_a_picture_or_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _summed_up_or_refused(capsys, 25, ["--plot", "out.svg"])


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "x", ""])
@pytest.mark.parametrize("option", ["--begin", "--end"])
def test_moments_that_cannot_be_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, text: str
) -> None:
    (tmp_path / "trace.json").write_text(json.dumps(_made()))
    with pytest.raises(SystemExit) as caught:
        main(["trace", str(tmp_path / "trace.json"), "--plot", str(tmp_path / "x.png"), f"{option}={text}"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert option in error


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "cannot be read"),
        (["--merge", "x"], "go together"),
        (["--out", "x"], "go together"),
    ],
)
def test_options_that_cannot_be_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], text: str
) -> None:
    with pytest.raises(SystemExit):
        main(["trace", str(tmp_path / "nowhere.json"), *options])
    assert text in capsys.readouterr().err


def test_a_real_trace_is_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loader = ShmDataLoader(Images(40), batch_size=4, num_workers=2)
    with loader.trace(tmp_path / "trace.json.gz"):
        assert sum(1 for _ in loader) == 10
    assert main(["trace", str(tmp_path / "trace.json.gz")]) == 0
    text = capsys.readouterr().out
    assert "Images: 10 batches in" in text
    assert "worker 1    busy" in text


@pytest.mark.usefixtures("_matplotlib")
@pytest.mark.parametrize("is_gone", [True, False])
def test_output_that_nobody_can_have(is_gone: bool, tmp_path: Path) -> None:
    """A reader that is gone, as ``head`` is after some lines, knows that; a full disk is said in one line."""
    (tmp_path / "trace.json").write_text(json.dumps(_made()))
    reader, writer = os.pipe() if is_gone else (os.open(os.devnull, os.O_RDONLY), os.open("/dev/full", os.O_WRONLY))
    os.close(reader)
    line = [sys.executable, "-m", "shmloader", "trace", str(tmp_path / "trace.json")]
    ran = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=PATIENCE)
    os.close(writer)
    said = "" if is_gone else "the output cannot be written: [Errno 28] No space left on device\n"
    assert (ran.returncode, ran.stderr) == (1, said)


def test_a_file_that_is_too_large_for_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_bytes(path: Path) -> bytes:
        raise MemoryError

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(SystemExit) as caught:
        main(["trace", str(tmp_path / "trace.json")])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.endswith("trace.json does not fit into memory\n")
    assert error.count("\n") == 1


def test_an_interrupt_needs_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(events: Any) -> Any:
        raise KeyboardInterrupt

    (tmp_path / "trace.json").write_text(json.dumps(_made()))
    monkeypatch.setattr(command, "timelines", interrupted)
    assert main(["trace", str(tmp_path / "trace.json")]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_is_drawn(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "trace.json").write_text(json.dumps(_made(200)))
    out = tmp_path / f"out.{suffix}"
    assert main(["trace", str(tmp_path / "trace.json"), "--plot", str(out)]) == 0
    assert out.read_bytes()[:4] == (b"\x89PNG" if suffix == "png" else b"<?xm")
    if suffix == "svg":
        text = out.read_text()
        assert "<!-- it: x: 60 of 200 batches; the loop waited for 30 % of the time -->" in text
        assert all(
            f"<!-- {name} -->" in text for name in ("loop", "worker 0", "worker 1", "slot 2", "held by the loop")
        )


@pytest.mark.usefixtures("_matplotlib")
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--begin", "5"], "nothing to draw of it: x from 5 seconds\n"),
        (["--begin", "0.5", "--end", "0.1"], "nothing to draw of it: x from 0.5 to 0.1 seconds\n"),
        (["--loader", "other"], "there are it: x"),
        (["--plot", "out.nonsense"], "cannot be written"),
        (["--plot", "nowhere/out.png"], "cannot be written"),
    ],
)
def test_pictures_that_cannot_be_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("trace.json").write_text(json.dumps(_made()))
    with pytest.raises(SystemExit):
        main(["trace", "trace.json", "--plot", "out.png", *options])
    assert text in capsys.readouterr().err


def test_a_picture_takes_matplotlib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "trace.json").write_text(json.dumps(_made()))
    with pytest.raises(SystemExit):
        main(["trace", str(tmp_path / "trace.json"), "--plot", "out.png"])
    assert "pip install 'shmloader[plot]'" in capsys.readouterr().err


def test_what_is_drawn_is_in_the_middle_or_as_it_is_said() -> None:
    line = Timeline("it", [Span("next", number, number + 0.5, number) for number in range(200)])
    assert window(line, None, None) == (70.0, 129.5)
    assert window(line, 3, None) == (3, 199.5)
    assert window(line, None, 5) == (0, 5)
    assert window(line, 3, 1000) == (3, 199.5)


@pytest.mark.parametrize("base", [0, 5_000_000_000])
def test_two_files_become_one_on_one_clock(tmp_path: Path, base: int) -> None:
    (tmp_path / "ours.json").write_text(json.dumps(_made(3, base)))
    theirs = {
        "baseTimeNanoseconds": 2_000_000_000,
        "schemaVersion": 1,
        "traceEvents": [{"ph": "X", "ts": 1.0, "dur": 2}],
    }
    (tmp_path / "theirs.json").write_text(json.dumps(theirs))
    names = [str(tmp_path / name) for name in ("ours.json", "theirs.json", "both.json.gz")]
    assert main(["trace", names[0], "--merge", names[1], "--out", names[2]]) == 0
    both = read(Path(names[2]))
    assert both.rest == {"baseTimeNanoseconds": 2_000_000_000, "schemaVersion": 1}
    assert both.events[0] == theirs["traceEvents"][0]  # type: ignore[index]
    moved = [event["ts"] for event in both.events[1:] if "ts" in event]
    before = [event["ts"] for event in _made(3) if "ts" in event]
    assert moved == [at + (base - 2_000_000_000) / 1000 for at in before]


def test_ranks_that_call_their_loaders_the_same_stay_apart(tmp_path: Path) -> None:
    for rank, batches in enumerate((3, 5)):
        events = [{**event, "pid": event["pid"] + 100 * rank} for event in _made(batches)]
        (tmp_path / f"{rank}.json").write_text(json.dumps(events))
    names = [str(tmp_path / name) for name in ("0.json", "1.json", "both.json")]
    assert main(["trace", names[0], "--merge", names[1], "--out", names[2]]) == 0
    found = timelines(read(Path(names[2])).events)
    assert {line.label: len(line.steps) for line in found} == {
        "it: x (process 1, thread 7)": 3,
        "it: x (process 101, thread 7)": 5,
    }
    for line in found:
        (alone,) = timelines(_made(len(line.steps)))
        assert (line.workers, line.slots, line.loop) == (alone.workers, alone.slots, alone.loop)
    assert main(["trace", names[0], "--merge", names[0], "--out", names[2]]) == 0
    assert len(timelines(read(Path(names[2])).events)) == 1


def test_steps_are_where_torchs_profiler_sees_them(tmp_path: Path) -> None:
    """By nesting: torch's label is around what we call a step, so only clocks that differ could say otherwise."""

    def slow(index: int) -> int:
        time.sleep(0.03)  # so that steps are much longer than what the clocks may differ by
        return index

    loader = ShmDataLoader(Mapped(slow), batch_size=1, num_workers=1)
    with loader.trace(tmp_path / "ours.json"), profile(activities=[ProfilerActivity.CPU]) as profiler:
        assert sum(1 for _ in loader) == 20
    profiler.export_chrome_trace(str(tmp_path / "torchs.json"))
    names = [str(tmp_path / name) for name in ("ours.json", "torchs.json", "both.json")]
    assert main(["trace", names[0], "--merge", names[1], "--out", names[2]]) == 0
    both = read(Path(names[2])).events
    (line,) = timelines(both)
    labels = sorted(
        (event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6)
        for event in both
        if event["ph"] == "X" and str(event["name"]).startswith("enumerate(")
    )
    steps = [span for span in line.loop if span.name == "next"]
    assert len(steps) == len(labels) == 21
    slack = 0.005
    for span, (began, ended) in zip(steps, labels, strict=True):
        assert began - slack <= span.began
        assert span.ended <= ended + slack
    assert torch.tensor([span.seconds for span in steps]).median() > slack
