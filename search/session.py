"""One session of a study: what `search.run` sets up around the driver, and the report at its end."""

import gc
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.logging import WARNING, set_verbosity
from rich.console import Console

from .checkpoints import Checkpoints
from .command import interpreter, make_console
from .config import StudyConfig, default_storage
from .data import Dataset, Source, find_source
from .display import Display
from .errors import Failure, UsageError
from .finalists import describe_finalists, refuse_another_winner, run_finalists
from .interrupt import Interruptible
from .lease import lease
from .own_images import shown_shape
from .report import best_trial, complete, print_report
from .storage import RAW_LIMIT, create_or_resume, gate_limit, running, shown, storage_errors, study_uid, trial_views
from .study import DIRECTIONS, StudyDriver
from .warm_start import prepare
from .workers import Executor, make_executor

if TYPE_CHECKING:
    from .tracking import Tracker


def describe_study(config: StudyConfig) -> None:
    """What a run would do, without doing it."""
    console = make_console()
    dataset = _source(config).load(config.data_dir, config.limit_train)
    space, budget = config.search_space, config.budget
    console.print(f"study {config.study} in {shown(config.storage)}: {config.trials} trials in all")
    console.print(f"space {space.name}: {space.description}")
    console.print(
        f"data {dataset.name}: {len(dataset.train):,} training, {len(dataset.validation):,} validation images of "
        f"{shown_shape(dataset.info.image_shape)}, {dataset.info.num_classes} classes",
        soft_wrap=True,
    )
    halving = "" if config.early_stopping == "none" else f"; 1 in {budget.reduction} goes on at each"
    console.print(f"rungs at epochs {', '.join(map(str, budget.rungs))}{halving}")
    limit = "" if config.max_gates is None else f"; at most {config.max_gates:,} {config.gates} gates"
    console.print(f"objectives {', '.join(config.metric_names)}{limit}; sampler {config.sampler}")
    if config.warm_start:
        console.print(f"warm start from {', '.join(config.warm_start)}")
    if config.finalists:
        console.print(describe_finalists(config))


def run_study(config: StudyConfig) -> None:
    """Run a study to its total, then report.

    Raises:
        UsageError, Failure: one line each; what was stored is kept.
    """
    set_verbosity(WARNING)
    console = make_console()
    warn = partial(_warn, console)
    source = _source(config)
    config = config.model_copy(update={"images_sha256": source.images_sha256})
    with storage_errors(config.storage), lease(config.storage, config.study, warn) as held:
        study = create_or_resume(
            config.storage,
            config.study,
            [DIRECTIONS[name] for name in config.objectives],
            config.metric_names,
            config.identity(),
        )
        refuse_another_winner(config, study)
        if config.gates == "raw" and gate_limit(study) != config.max_gates:
            study.set_user_attr(RAW_LIMIT, config.max_gates)
        views = trial_views(study, config.gates)
        num_counted = sum(view.counts for view in views)
        num_unfinished = len(running(study))
        if num_counted > config.trials:
            raise UsageError(
                f"study {config.study!r} has {num_counted} trials already: give --trials {num_counted} or more"
            )
        if num_counted < config.trials or num_unfinished:
            for line in prepare(study, config):
                console.print(line, soft_wrap=True)
            dataset = source.load(config.data_dir, config.limit_train)
            with _executor(config, dataset) as executor, _tracked(config, study, warn) as tracker:
                done = num_counted - num_unfinished
                console.print(
                    f"study {config.study}: {config.trials} trials, {done} done, {num_unfinished} to go on with; "
                    f"{executor.describe()}; rungs at epochs {', '.join(map(str, config.budget.rungs))}",
                    soft_wrap=True,
                )
                display = Display(console, config.trials, views, config.budget.epochs)
                driver = StudyDriver(config, study, dataset.info, executor, [held, tracker, display])
                gc.freeze()  # what is imported by now stays: full collections took a quarter of a second for it
                with display, Interruptible(driver.stop_asking, console):
                    driver.run()
        else:  # a driver killed behind the last trial left what it was about to remove and to log
            Checkpoints(config.folder / "checkpoints").keep_only([])
            with _tracked(config, study, warn):
                pass
        views = trial_views(study, config.gates)
        print_report(
            console,
            config.study,
            views,
            config.budget.epochs,
            config.search_space.known[0].name,
            config.max_gates,
            _next_steps(config),
        )
        if not complete(views):
            raise Failure(f"no trial of study {config.study!r} completed")
        if config.finalists:
            run_finalists(config, study, views, console, held.check)


def _source(config: StudyConfig) -> Source:
    """Where the images come from, before anything is stored of a study that they are not fit for.

    Raises:
        UsageError: a user's own images are not as they must be, or the space's baseline cannot be built on such images.
    """
    source, space = find_source(config.dataset), config.search_space
    baseline = space.known[0]
    try:
        space.build(baseline.params, config.data_spec, source.info, config.budget.epochs)
    except ValueError as error:
        raise UsageError(
            f"space {space.name} is not for {config.dataset}, {shown_shape(source.info.image_shape)} and "
            f"{source.info.num_classes} classes: its baseline, {baseline.name}, cannot be built ({error}); give other "
            "images or another --space"
        ) from error
    return source


@contextmanager
def _executor(config: StudyConfig, dataset: Dataset) -> Iterator[Executor]:
    executor = make_executor(config, dataset)
    try:
        yield executor
    finally:
        executor.close()


@contextmanager
def _tracked(config: StudyConfig, study: optuna.Study, warn: Callable[[str], None]) -> Iterator["Tracker"]:
    """MLflow brought up to date on the way in, and the parent run closed on the way out."""
    from .tracking import Tracker  # MLflow takes seconds to import: only when there is something to log

    tracker = Tracker(config.study, study_uid(study), config.tracking_uri, warn)
    tracker.sync(trial_views(study, config.gates))
    try:
        yield tracker
    finally:
        tracker.finish(best_trial(trial_views(study, config.gates), gate_limit(study)))


def _warn(console: Console, line: str) -> None:
    console.print(f"warning: {line}")


def _next_steps(config: StudyConfig) -> str:
    python = interpreter()
    mlflow = str(Path(python).with_name("mlflow")) if os.sep in python else "mlflow"
    storage = (
        "" if config.storage == default_storage(config.study) else f" --storage {shlex.quote(shown(config.storage))}"
    )
    limit = "" if config.max_gates is None else f" --max-gates {config.max_gates}"
    data = "" if config.data_dir is None else f" --data-dir {shlex.quote(config.data_dir)}"
    store = "" if config.tracking_uri is None else f" --backend-store-uri {shlex.quote(config.tracking_uri)}"
    look = f"{mlflow} ui{store}"
    if (config.tracking_uri or "").startswith("http"):
        look = str(config.tracking_uri)
    return "\n".join(
        (
            "What next:",
            f"  {look}    # every trial, epoch by epoch",
            f"  {python} -m search.export --study {config.study}{storage}{limit} -o best.yaml",
            f"  {python} -m search.train best.yaml{data}    # full budget, test accuracy",
        )
    )
