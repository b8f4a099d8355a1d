"""What a search shows while it runs: a live table on a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from .report import best_trial, counted_gates, describe
from .storage import TrialView
from .training import EpochRecord

REDRAWN_EVERY_S: Final = 0.25
LIVE_WIDTH: Final = 80  # a narrower terminal cuts the live table's figures, or breaks its lines: it gets plain ones


@dataclass
class _Running:
    view: TrialView
    record: EpochRecord | None = None
    until_epoch: int = 0


class Display:
    """Observer of a study. A context manager: the live table is there between enter and exit.

    Args:
        console: where to print.
        total: the study's trials.
        before: the study's trials so far.
        full_epochs: of the whole budget.
    """

    def __init__(self, console: Console, total: int, before: Sequence[TrialView], full_epochs: int) -> None:
        self.console, self.total, self.full_epochs = console, total, full_epochs
        self.done = sum(view.counts and view.state != "running" for view in before)
        self._running: dict[int, _Running] = {}
        self._best = best_trial(before)
        self._start, self._epochs_seen, self._ended_here = time.monotonic(), 0, 0
        self._bar = Progress(TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[eta]}"))
        self._task = self._bar.add_task("", total=total, completed=self.done, eta="")
        is_live = console.is_terminal and console.width >= LIVE_WIDTH
        self._live = Live(console=console, auto_refresh=False, transient=True) if is_live else None
        self._shown_s = float("-inf")  # when the table was last drawn

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def trial_changed(self, trial: TrialView) -> None:
        if trial.state == "running":
            new = trial.number not in self._running
            self._running[trial.number] = _Running(trial)
            if new and trial.epoch == 0:
                self._say_if_plain(f"trial {trial.number} asked: {describe(trial)}, {trial.raw_gates:,} raw gates")
            else:
                self._say_if_plain(f"trial {trial.number} goes on after epoch {trial.epoch}: {_measured(trial)}")
            return
        self._running.pop(trial.number, None)
        if trial.counts:
            self.done += 1
            self._ended_here += 1
        if trial.state == "complete":
            stopped = "stopped early" if "stopped_at_rung" in trial.attrs else "complete"
            self._say(f"trial {trial.number} {stopped} at epoch {trial.epoch}: {_measured(trial)}{self._progress()}")
            self._best = best_trial([trial] if self._best is None else [self._best, trial])
        elif trial.state == "rejected":
            self._say(f"trial {trial.number} rejected: {trial.attrs['rejected']}")
        else:
            self._say(f"trial {trial.number} failed ({trial.cause}): {trial.message}{self._progress()}")

    def epoch_finished(self, trial: int, until_epoch: int, record: EpochRecord) -> None:
        self._epochs_seen += 1
        if trial in self._running:
            self._running[trial].record, self._running[trial].until_epoch = record, until_epoch

    def tick(self) -> None:
        now_s = time.monotonic()
        if self._live and now_s - self._shown_s >= REDRAWN_EVERY_S:
            self._shown_s = now_s
            self._bar.update(self._task, completed=self.done, eta=self._eta())
            self._live.update(self._table(), refresh=True)

    def _say_if_plain(self, line: str) -> None:
        """What the live table shows anyway."""
        if self._live is None:
            self._say(line)

    def _say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)

    def _progress(self) -> str:
        return f" [{self.done}/{self.total}{', ' + self._eta() if self._eta() else ''}]"

    def _eta(self) -> str:
        if not self._ended_here or self.done >= self.total:
            return ""
        left_s = (time.monotonic() - self._start) / self._ended_here * (self.total - self.done)
        return f"about {left_s / 60:.0f} min left" if left_s >= 90 else f"about {left_s:.0f} s left"

    def _table(self) -> Group:
        table = Table(box=None, pad_edge=False)
        counts = ["raw", *{row.view.gate_count for row in self._running.values()} - {"raw"}]
        names = [f"{count} gates" for count in counts]
        for name in ("trial", "epoch", "loss", "soft", "discrete", "images/s", *names, "network"):
            table.add_column(name, justify="left" if name == "network" else "right", no_wrap=name != "network")
        for number in sorted(self._running):
            row = self._running[number]
            record = row.record or (row.view.records[-1] if row.view.records else None)
            measured = ["-"] * 5
            if record is not None:
                measured = [
                    f"{record.epoch}/{row.until_epoch or record.epoch} of {self.full_epochs}",
                    f"{record.loss:.3f}",
                    f"{record.acc_soft:.2%}",
                    f"{record.acc_discrete:.2%}",
                    f"{record.images_per_second:,.0f}",
                ]
            gates = [row.view.raw_gates, row.view.gates][: len(counts)]  # the latter as the last rung counted them
            shown = ["-" if num is None else f"{num:,}" for num in gates]
            # a column that may wrap is the one that is made narrower; the text itself is cut
            network = Text(describe(row.view), no_wrap=True, overflow="ellipsis")
            table.add_row(str(number), *measured, *shown, network)
        parts: list[Table | Progress | str] = [self._bar, table]
        if self._best is not None:
            parts.append(f"best so far: trial {self._best.number}, {_measured(self._best)}")
        return Group(*parts)


def _measured(trial: TrialView) -> str:
    record = trial.records[-1]
    infeasible = ", infeasible" if trial.is_infeasible else ""
    return f"discrete {record.acc_discrete:.2%}, soft {record.acc_soft:.2%}, {counted_gates(trial)}{infeasible}"
