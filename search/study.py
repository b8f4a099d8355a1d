"""The study driver: ask, hand out, decide, tell. With `storage` and `spaces`, the only code that knows Optuna.

Every decision is stored before it is acted upon, so that a driver killed at any moment is followed by one that goes on.
"""

import json
import time
from collections import deque
from itertools import takewhile
from typing import Final, Literal, Protocol

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from convlogic_core import raw_gates
from spaces.candidate import Candidate
from spaces.space import InputInfo, Known

from .cached_storage import cached
from .checkpoints import Checkpoints
from .config import StudyConfig
from .errors import Failure
from .jobs import Job
from .ladder import Ladder
from .samplers import sampler_for
from .storage import FAILURE, RUNG_PREFIX, VERDICT, TrialView, running, trial_views
from .training import EpochRecord, derived_seed
from .warm_start import Start, left_to_ask
from .workers import Broken, Event, Executor, Finished, Progress

MAX_ATTEMPTS: Final = 3
MAX_REJECTED_IN_A_ROW: Final = 200
SAMPLER_MAY_INSIST: Final = 10  # rejected in a row, of which it learns nothing; then candidates are drawn at random
MAX_ERRORS_IN_A_ROW: Final = 3  # by trial numbers
ASKED_AT_ONCE: Final = 8  # where the order must not depend on the workers
POLL_S: Final = 1.0

DIRECTIONS: Final[dict[str, Literal["maximize", "minimize"]]] = {"accuracy": "maximize", "gates": "minimize"}


class Observer(Protocol):
    """Who is told what happens: the display, MLflow."""

    def trial_changed(self, trial: TrialView) -> None:
        """The trial was asked, finished a rung, or was told."""
        ...

    def epoch_finished(self, trial: int, until_epoch: int, record: EpochRecord) -> None:
        """A running trial finished an epoch that is not stored yet."""
        ...

    def tick(self) -> None:
        """About once a second."""
        ...


class StudyDriver:
    """Runs a study up to its total of trials.

    Args:
        config: what was asked for.
        study: opened by `storage.create_or_resume`.
        info: image shape and classes of the dataset.
        executor: where jobs run.
        observers: told of every change.
    """

    def __init__(
        self,
        config: StudyConfig,
        study: optuna.Study,
        info: InputInfo,
        executor: Executor,
        observers: list[Observer],
    ) -> None:
        self.config, self.info = config, info
        self.study, self._storage = cached(study)
        self.executor, self.observers = executor, observers
        self.space, self.rungs = config.search_space, config.budget.rungs
        self.checkpoints = Checkpoints(config.folder / "checkpoints")
        self.ladder = Ladder(self.rungs, config.budget.reduction if config.early_stopping == "halving" else 1)
        self._ready: deque[int] = deque()  # trials to hand out
        self._in_flight: dict[int, list[EpochRecord]] = {}
        self._short_of_memory: list[int] = []  # to be tried again once a job that may have taken it has ended
        self._finished: list[int] = []  # at the last rung, to be told
        self._problem: str | None = None  # why no further trial is asked
        self._errors: dict[int, str | None] = {}  # of the session's last trials: None where one was no error
        self._stopping = False
        self._ids = {trial.number: trial._trial_id for trial in self.study.get_trials(deepcopy=False)}
        self._views: dict[int, TrialView] = {}  # of trials that are not told yet
        views = trial_views(self.study, config.gates)
        drawn = [view for view in views if view.state == "rejected" or view.candidate is not None]
        self._rejected_in_a_row = len([*takewhile(lambda view: view.state == "rejected", reversed(drawn))])
        self._num_counted = sum(view.counts for view in views)
        self._resolved = {_resolved(view.candidate): view.number for view in views if view.candidate is not None}
        used = {view.known for view in views}
        self._known: deque[Known] = deque(known for known in self.space.known if known.name not in used)
        self._starts: deque[Start] = deque(left_to_ask(self.study, views))
        self._deadline = time.monotonic() + config.timeout_s if config.timeout_s else float("inf")
        self._left_running = running(self.study)
        for view in views:
            for rung in self.rungs:
                self._enter(view, rung)

    def run(self) -> None:
        """Until the study has its trials and none is running, or the time is up.

        Raises:
            Failure: no candidate fits the limits, or trial after trial fails with an error.
        """
        self.checkpoints.keep_only(trial.number for trial in self._left_running)
        for trial in self._left_running:
            self._readopt(trial)
        if self.config.deterministic and self._num_counted % ASKED_AT_ONCE:
            self._ask_batch()  # a kill cut it short: what comes after it is to find it whole
        while True:
            while self.executor.has_room() and (job := self._next_job()) is not None:
                self._in_flight[job.trial] = []
                self.executor.submit(job)
            if not self._in_flight and (self.executor.has_room() or self._stopping):  # nothing to fill the room with
                if self._problem is not None:
                    raise Failure(self._problem)
                return
            for event in self.executor.wait(POLL_S):
                self._handle(event)
            for observer in self.observers:
                observer.tick()

    def stop_asking(self) -> None:
        """Let what runs reach its rung and hand out nothing more: `run` then returns."""
        self._stopping = True

    def _next_job(self) -> Job | None:
        """What to hand out next; None to wait, or at the end, when nobody waits at a rung any more either."""
        if self._stopping:
            return None
        while not self._ready:
            if self.config.deterministic and self._in_flight:
                return None
            self._settle()
            if self._ready:
                break
            if not self._problem and self._num_counted < self.config.trials and time.monotonic() <= self._deadline:
                self._ask_batch()
                continue
            if not self._in_flight and self._num_counted >= self.config.trials:  # else the next session brings others
                for number in self.ladder.give_up():
                    self._stop(number)
            return None
        return self._job(self._ready.popleft())

    def _job(self, number: int) -> Job:
        """The trial's way to its next rung."""
        view = self._view(number)
        assert view.candidate is not None
        until = next(rung for rung in self.rungs if rung > view.epoch)
        checkpoint = self.checkpoints.read(number, view.epoch) if view.epoch else None
        return Job(number, view.candidate, view.attrs["seed"], until, checkpoint)

    def _ask_batch(self) -> None:
        """A trial; where the order must not depend on the workers, all up to a multiple of ASKED_AT_ONCE."""
        size = ASKED_AT_ONCE if self.config.deterministic else 1
        end = min(self.config.trials, (self._num_counted // size + 1) * size)
        while not self._problem and self._num_counted < end:
            self._ask()

    def _ask(self) -> None:
        """A new trial that may be trained; those that may not are stored as rejected and not counted."""
        for _ in range(MAX_REJECTED_IN_A_ROW):
            waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))  # Optuna asks the first
            number = waiting[0].number if waiting else self._enqueue()
            self.study.sampler = sampler_for(self._sampler, self.space, self.config.seed, number)
            self._num_counted += 1
            problem = self._start(self.study.ask())
            if problem is None:
                return
        self._problem = (
            f"{MAX_REJECTED_IN_A_ROW} candidates in a row were rejected, the last because {problem}: "
            "raise the limit, lower --trials to what the study has, or search a larger --space"
        )

    def _enqueue(self) -> int:
        """What is to be tried before anything is sampled, if any is left; the number of the trial to be asked."""
        number = len(self.study.get_trials(deepcopy=False))
        if self._known:
            known = self._known.popleft()
            self.study.enqueue_trial(known.params, user_attrs={"known": known.name})
        elif self._starts:
            start = self._starts.popleft()
            self.study.enqueue_trial(start.params, user_attrs={"warm_start": start.source})
        return number

    @property
    def _sampler(self) -> str:
        return self.config.sampler if self._rejected_in_a_row < SAMPLER_MAY_INSIST else "random"

    def _start(self, trial: Trial) -> str | None:
        """Store a trial ready to be trained, or rejected; then say why."""
        candidate, problem = self._candidate(trial)
        if candidate is None or problem is not None:
            trial.set_user_attr("rejected", problem)
            self.study.tell(trial, state=TrialState.FAIL)
            number = self._store(trial)
            self._num_counted -= 1
            self._rejected_in_a_row += 1
            self._tell_observers(number)
            del self._views[number]
        else:
            trial.set_user_attr("seed", derived_seed(self.config.seed, trial.number))
            trial.set_user_attr("gates_raw", raw_gates(candidate.model))
            trial.set_user_attr("candidate", candidate.to_json())
            number = self._store(trial)
            self._rejected_in_a_row = 0
            self._resolved[_resolved(candidate)] = number
            self._ready.append(number)
            self._tell_observers(number)
        return problem

    def _store(self, trial: Trial) -> int:
        """A killed driver leaves a trial whole or not at all; its number."""
        stored = self._storage.store(trial._trial_id)
        self._ids[stored.number] = stored._trial_id
        return stored.number

    def _candidate(self, trial: Trial) -> tuple[Candidate | None, str | None]:
        """What the trial's parameters build, and why it must not be trained."""
        try:
            params = self.space.sample(trial)
            candidate = self.space.build(params, self.config.data_spec, self.info, self.config.budget.epochs)
        except ValueError as error:
            return None, str(error)
        gates = raw_gates(candidate.model)
        limit = self.config.max_gates if self.config.gates == "raw" else None
        if limit is not None and gates > limit and "known" not in trial.user_attrs:
            return candidate, f"its {gates:,} raw gates exceed --max-gates {limit:,}"
        if (same := self._resolved.get(_resolved(candidate), trial.number)) != trial.number:
            return candidate, f"it is trial {same} again"
        return candidate, None

    def _readopt(self, frozen: FrozenTrial) -> None:
        """Go on with a trial that an earlier driver left running: same number, same parameters."""
        view = TrialView(frozen, self.config.gates)
        decided = self.study.user_attrs.get(VERDICT, {}).get(str(view.number))
        if view.candidate is None:  # asked by somebody else
            self.study.sampler = sampler_for(self._sampler, self.space, self.config.seed, view.number)
            self._start(Trial(self.study, frozen._trial_id))
        elif view.cause is not None:
            self._tell(view.number, None)
        elif view.epoch not in self.rungs or view.attrs.get("goes_on_after") == view.epoch:
            self._ready.append(view.number)
            self._tell_observers(view.number)
        elif "stopped_at_rung" in view.attrs or decided == [view.epoch, "stop"]:
            self._stop(view.number)
        elif decided == [view.epoch, "go on"]:
            self._go_on(view.number)
        else:
            self._arrive(view.number, view.epoch)

    def _handle(self, event: Event) -> None:
        number = event.job.trial
        if isinstance(event, Progress):
            self._in_flight[number].append(event.record)
            for observer in self.observers:
                observer.epoch_finished(number, event.job.until_epoch, event.record)
            return
        records = self._in_flight.pop(number)
        self._ready.extend(self._short_of_memory)
        self._short_of_memory.clear()
        if isinstance(event, Broken):
            self._handle_broken(event)
        else:
            self._handle_finished(event, records)
        if not self.config.deterministic:
            self._settle()

    def _handle_finished(self, event: Finished, records: list[EpochRecord]) -> None:
        number = event.job.trial
        self.checkpoints.write(number, event.job.until_epoch, event.checkpoint)
        self._note_error(number, None)
        stored = self._view(number).epoch  # a trial that lost its checkpoint trained its first rungs again
        new = [record.to_json() for record in records if record.epoch > stored]
        self._set_attr(number, f"{RUNG_PREFIX}{event.job.until_epoch}", new)
        self._enter(self._view(number), event.job.until_epoch)
        self._arrive(number, event.job.until_epoch)

    def _handle_broken(self, event: Broken) -> None:
        number = event.job.trial
        attempts = self._view(number).attempts + 1
        if event.retry and attempts < MAX_ATTEMPTS:
            self._set_attr(number, FAILURE, {"attempts": attempts})
            if event.cause == "out of memory" and self._in_flight:
                self._short_of_memory.append(number)
            else:
                self._ready.appendleft(number)
            return
        self._set_attr(number, FAILURE, {"attempts": attempts, "cause": event.cause, "message": event.message})
        self._tell(number, None)
        self._note_error(number, event.message if event.cause in ("error", "worker died") else None)

    def _note_error(self, number: int, message: str | None) -> None:
        """What became of a trial, of which the highest numbers are remembered: who ended first decides nothing."""
        self._errors[number] = message
        for older in sorted(self._errors)[:-MAX_ERRORS_IN_A_ROW]:
            del self._errors[older]

    def _enter(self, view: TrialView, rung: int) -> None:
        """What a trial measured at a rung, for the comparison with others and for samplers to learn from."""
        if view.at_rung(rung) is not None:
            values, violations = self._values(view, rung), self._violations(view, rung)
            signs = [1.0 if DIRECTIONS[name] == "maximize" else -1.0 for name in self.config.objectives]
            point = [sign * value for sign, value in zip(signs, values, strict=True)]
            self.ladder.reached(view.number, rung, point, violations.get(self._limited, 0.0))
            if view.frozen.state == TrialState.RUNNING and self.config.early_stopping == "halving":
                self._preview(view, values, violations)

    def _preview(self, view: TrialView, values: list[float], violations: dict[str, float]) -> None:
        """Which `benchmarks.stopping` leaves out."""
        self._storage.preview(self._ids[view.number], values, violations)

    def _arrive(self, number: int, epoch: int) -> None:
        """A trial is at a rung, and nothing is decided about it."""
        if epoch == self.rungs[-1]:
            self._finished.append(number)
        elif self._view(number).known == self.space.known[0].name:
            self._go_on(number)  # the baseline is what everything is compared with: never stopped early
        else:
            self.ladder.wait(number, epoch)

    def _settle(self) -> None:
        """Decide about all trials at rungs as far as can be told by now."""
        for number in sorted(self._finished):
            self._tell_measured(number)
        self._finished.clear()
        errors = [message for _, message in sorted(self._errors.items()) if message is not None]
        if len(errors) == MAX_ERRORS_IN_A_ROW:  # the fault is not the trials': keep the rest of the budget
            self._problem = f"{MAX_ERRORS_IN_A_ROW} trials in a row failed, the last with: {errors[-1]}"
        verdict = self.ladder.judge()
        if self.config.deterministic and any(verdict):  # all of it holds, whatever a kill lets be carried out
            fates = {number: "go on" for number in verdict.go_on} | {number: "stop" for number in verdict.stop}
            stored = {str(number): [self._view(number).epoch, fate] for number, fate in fates.items()}
            self.study.set_user_attr(VERDICT, stored)
        for number in verdict.go_on:
            self._go_on(number)
        for number in verdict.stop:
            self._stop(number)

    def _go_on(self, number: int) -> None:
        self._set_attr(number, "goes_on_after", self._view(number).epoch)
        self._ready.append(number)
        self._tell_observers(number)

    def _stop(self, number: int) -> None:
        self._set_attr(number, "stopped_at_rung", self._view(number).epoch)
        self._tell_measured(number)

    def _tell_measured(self, number: int) -> None:
        """Complete, with what its last rung measured."""
        view = self._view(number)
        for name, violation in self._violations(view, view.epoch).items():
            if name not in view.frozen.constraints:  # as it is where a driver was killed before it told the trial
                Trial(self.study, view.frozen._trial_id).set_constraint(name, violation)
        self._tell(number, self._values(view, view.epoch))

    def _values(self, view: TrialView, epoch: int) -> list[float]:
        """The objectives as measured at a rung's last epoch."""
        record, gates = view.at_rung(epoch), view.gates_at(epoch)
        assert record is not None and gates is not None
        measured = {"accuracy": record.acc_discrete, "gates": float(gates)}
        return [measured[name] for name in self.config.objectives]

    @property
    def _limited(self) -> str:
        return f"gates/{self.config.gates}"

    def _violations(self, view: TrialView, epoch: int) -> dict[str, float]:
        """By how much a trial was over each limit at a rung's last epoch; negative where it kept to it."""
        record, gates, violations = view.at_rung(epoch), view.gates_at(epoch), {}
        if self.config.constraint is not None and gates is not None:
            violations[self._limited] = float(gates - self.config.constraint)
        if self.config.min_accuracy is not None and record is not None:
            violations["val/acc_discrete"] = self.config.min_accuracy - record.acc_discrete
        return violations

    def _tell(self, number: int, values: list[float] | None) -> None:
        """Complete with values, or failed without."""
        self.study.tell(number, values, state=TrialState.FAIL if values is None else TrialState.COMPLETE)
        self.checkpoints.remove(number)
        self._views.pop(number, None)
        self._tell_observers(number)
        del self._views[number]  # nothing is asked about it any more

    def _view(self, number: int) -> TrialView:
        """The trial as stored."""
        if number not in self._views:
            self._views[number] = TrialView(self._storage.get_trial(self._ids[number]), self.config.gates)
        return self._views[number]

    def _set_attr(self, number: int, name: str, value: object) -> None:
        self._storage.set_trial_user_attr(self._ids[number], name, value)
        self._views.pop(number, None)

    def _tell_observers(self, number: int) -> None:
        view = self._view(number)
        for observer in self.observers:
            observer.trial_changed(view)


def _resolved(candidate: Candidate) -> str:
    """What two candidates share that are the same, whatever parameters they were drawn with."""
    return json.dumps(candidate.to_json(), sort_keys=True)
