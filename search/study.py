"""The study driver: ask, hand out, decide, tell. With `storage` and `spaces`, the only code that knows Optuna.

Every decision is stored before it is acted upon, so that a driver killed at any moment is followed by one that goes on.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Final, Literal, Protocol

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from convlogic_core import raw_gates
from spaces.candidate import Candidate
from spaces.space import InputInfo, Known

from .checkpoints import Checkpoints
from .config import StudyConfig
from .errors import Failure
from .jobs import Job
from .rungs import goes_on
from .storage import RUNG_PREFIX, TrialView, experimental, running, trial_views
from .training import EpochRecord, derived_seed
from .warm_start import Start, left_to_ask
from .workers import Broken, Event, Executor, Progress

MAX_ATTEMPTS: Final = 3
MAX_REJECTED_IN_A_ROW: Final = 200
MAX_ERRORS_IN_A_ROW: Final = 3
POLL_S: Final = 1.0

DIRECTIONS: Final[dict[str, Literal["maximize", "minimize"]]] = {"accuracy": "maximize", "gates": "minimize"}

SAMPLERS: Final[dict[str, Callable[[int], BaseSampler]]] = {
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True),
    "random": lambda seed: RandomSampler(seed=seed),
}


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
        self.config, self.study, self.info = config, study, info
        self.executor, self.observers = executor, observers
        self.space, self.rungs = config.search_space, config.budget.rungs
        self.checkpoints = Checkpoints(config.folder / "checkpoints")
        self._ready: deque[Job] = deque()
        self._in_flight: dict[int, list[EpochRecord]] = {}
        self._problem: str | None = None  # why no further trial is asked
        self._errors_in_a_row = 0
        views = trial_views(study, config.gates)
        self._num_counted = sum(view.counts for view in views)
        used = {view.known for view in views}
        self._known: deque[Known] = deque(known for known in self.space.known if known.name not in used)
        self._starts: deque[Start] = deque(left_to_ask(study, views))
        self._deadline = time.monotonic() + config.timeout_s if config.timeout_s else float("inf")

    def run(self) -> None:
        """Until the study has its trials and none is running, or the time is up.

        Raises:
            Failure: no candidate fits the limits, or trial after trial fails with an error.
        """
        left_running = running(self.study)
        self.checkpoints.keep_only(trial.number for trial in left_running)
        for trial in left_running:
            self._readopt(trial)
        while True:
            while self.executor.has_room() and (job := self._next_job()) is not None:
                self._in_flight[job.trial] = []
                self.executor.submit(job)
            if not self._in_flight:
                if self._problem is not None:
                    raise Failure(self._problem)
                return
            for event in self.executor.wait(POLL_S):
                self._handle(event)
            for observer in self.observers:
                observer.tick()

    def _next_job(self) -> Job | None:
        if self._ready:
            return self._ready.popleft()
        if self._problem or self._num_counted >= self.config.trials or time.monotonic() > self._deadline:
            return None
        return self._ask()

    def _ask(self) -> Job | None:
        """A new trial that fits the limits; those that do not are stored as rejected and not counted."""
        for _ in range(MAX_REJECTED_IN_A_ROW):
            self._seed_sampler(len(self.study.get_trials(deepcopy=False)))
            if self._known:
                known = self._known.popleft()
                self.study.enqueue_trial(known.params, user_attrs={"known": known.name})
            elif self._starts:
                start = self._starts.popleft()
                self.study.enqueue_trial(start.params, user_attrs={"warm_start": start.source})
            trial = self.study.ask()
            candidate, problem = self._candidate(trial)
            if candidate is not None and problem is None:
                self._num_counted += 1
                return self._first_job(trial, candidate)
            trial.set_user_attr("rejected", problem)
            self.study.tell(trial, state=TrialState.FAIL)
            self._tell_observers(trial.number)
        self._problem = f"{MAX_REJECTED_IN_A_ROW} candidates in a row were rejected, the last because {problem}"
        return None

    def _seed_sampler(self, number: int) -> None:
        """A sampler for one trial: a seeded one that lived on would repeat its suggestions after a restart."""
        with experimental():
            self.study.sampler = SAMPLERS[self.config.sampler](derived_seed(self.config.seed, number, 1))

    def _candidate(self, trial: Trial) -> tuple[Candidate | None, str | None]:
        """What the trial's parameters build, and why it must not be trained."""
        params = self.space.sample(trial)
        try:
            candidate = self.space.build(params, self.config.data_spec, self.info, self.config.budget.epochs)
        except ValueError as error:
            return None, str(error)
        gates = raw_gates(candidate.model)
        limit = self.config.max_gates if self.config.gates == "raw" else None
        if limit is not None and gates > limit and "known" not in trial.user_attrs:
            return candidate, f"its {gates:,} raw gates exceed --max-gates {limit:,}"
        return candidate, None

    def _first_job(self, trial: Trial, candidate: Candidate) -> Job:
        seed = derived_seed(self.config.seed, trial.number)
        trial.set_user_attr("seed", seed)
        trial.set_user_attr("gates_raw", raw_gates(candidate.model))
        trial.set_user_attr("candidate", candidate.to_json())
        self._tell_observers(trial.number)
        return Job(trial.number, candidate, seed, self.rungs[0], None)

    def _readopt(self, frozen: FrozenTrial) -> None:
        """Go on with a trial that an earlier driver left running: same number, same parameters."""
        view = TrialView(frozen, self.config.gates)
        if view.candidate is None:  # killed between ask and here: Optuna has the parameters drawn so far
            self._seed_sampler(view.number)
            trial = Trial(self.study, frozen._trial_id)
            candidate, problem = self._candidate(trial)
            if candidate is None or problem is not None:
                trial.set_user_attr("rejected", problem)
                self.study.tell(trial, state=TrialState.FAIL)
                self._num_counted -= 1
                self._tell_observers(trial.number)
            else:
                self._ready.append(self._first_job(trial, candidate))
        elif view.epoch in self.rungs:
            self._decide(view)
        else:
            self._ready.append(Job(view.number, view.candidate, view.attrs["seed"], self.rungs[0], None))
            self._tell_observers(view.number)

    def _handle(self, event: Event) -> None:
        number = event.job.trial
        if isinstance(event, Progress):
            self._in_flight[number].append(event.record)
            for observer in self.observers:
                observer.epoch_finished(number, event.job.until_epoch, event.record)
            return
        records = self._in_flight.pop(number)
        if isinstance(event, Broken):
            self._handle_broken(event)
            return
        self.checkpoints.write(number, event.job.until_epoch, event.checkpoint)
        self._errors_in_a_row = 0
        stored = self._view(number).epoch  # a trial that lost its checkpoint trained its first rungs again
        new = [record.to_json() for record in records if record.epoch > stored]
        self._set_attr(number, f"{RUNG_PREFIX}{event.job.until_epoch}", new)
        self._decide(self._view(number))

    def _handle_broken(self, event: Broken) -> None:
        number = event.job.trial
        attempts = self._view(number).attrs.get("attempts", 0) + 1
        self._set_attr(number, "attempts", attempts)
        if event.retry and attempts < MAX_ATTEMPTS:
            self._ready.appendleft(event.job)
            return
        self._set_attr(number, "cause", event.cause)
        self._set_attr(number, "message", event.message)
        self._tell(number, None)
        self._errors_in_a_row = self._errors_in_a_row + 1 if event.cause in ("error", "worker died") else 0
        if self._errors_in_a_row == MAX_ERRORS_IN_A_ROW:  # the fault is not the trials': keep the rest of the budget
            self._problem = f"{MAX_ERRORS_IN_A_ROW} trials in a row failed, the last with: {event.message}"

    def _decide(self, view: TrialView) -> None:
        """After a completed rung: on to the next one, or told."""
        later = [rung for rung in self.rungs if rung > view.epoch]
        if later and "stopped_at_rung" not in view.attrs and self._goes_on(view):
            assert view.candidate is not None
            self._set_attr(view.number, "goes_on_after", view.epoch)
            checkpoint = self.checkpoints.read(view.number, view.epoch)
            self._ready.append(Job(view.number, view.candidate, view.attrs["seed"], later[0], checkpoint))
            self._tell_observers(view.number)
            return
        if later:
            self._set_attr(view.number, "stopped_at_rung", view.epoch)
        if self.config.constraint is not None and not view.frozen.constraints:  # else killed before it was told
            trial = Trial(self.study, view.frozen._trial_id)
            trial.set_constraint(f"gates/{self.config.gates}", self._excess(view, view.epoch))
        self._tell(view.number, self._values(view, view.epoch))

    def _goes_on(self, view: TrialView) -> bool:
        if view.known == self.space.known[0].name:
            return True  # the baseline is what everything is compared with: never stopped early
        if view.attrs.get("goes_on_after") == view.epoch:
            return True  # decided before, among fewer peers
        peers = [peer for peer in trial_views(self.study, self.config.gates) if peer.at_rung(view.epoch) is not None]
        points = np.array([self._values(peer, view.epoch) for peer in peers])
        signs = np.array([1.0 if DIRECTIONS[name] == "maximize" else -1.0 for name in self.config.objectives])
        excess = np.array([self._excess(peer, view.epoch) for peer in peers])
        index = [peer.number for peer in peers].index(view.number)
        return goes_on(points * signs, index, self.config.budget.reduction, excess)

    def _values(self, view: TrialView, epoch: int) -> list[float]:
        """The objectives as measured at a rung's last epoch."""
        record, gates = view.at_rung(epoch), view.gates_at(epoch)
        assert record is not None and gates is not None
        measured = {"accuracy": record.acc_discrete, "gates": float(gates)}
        return [measured[name] for name in self.config.objectives]

    def _excess(self, view: TrialView, epoch: int) -> float:
        """Gates over the limit at a rung's last epoch, negative if fewer; 0 where there is none."""
        gates, limit = view.gates_at(epoch), self.config.constraint
        return 0.0 if limit is None or gates is None else float(gates - limit)

    def _tell(self, number: int, values: list[float] | None) -> None:
        """Complete with values, or failed without."""
        self.study.tell(number, values, state=TrialState.FAIL if values is None else TrialState.COMPLETE)
        self.checkpoints.remove(number)
        self._tell_observers(number)

    def _view(self, number: int) -> TrialView:
        return TrialView(self.study.get_trials(deepcopy=False)[number], self.config.gates)

    def _set_attr(self, number: int, name: str, value: object) -> None:
        trial_id = self.study.get_trials(deepcopy=False)[number]._trial_id
        self.study._storage.set_trial_user_attr(trial_id, name, value)

    def _tell_observers(self, number: int) -> None:
        view = self._view(number)
        for observer in self.observers:
            observer.trial_changed(view)
