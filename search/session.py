"""One session of a study: what `search.run` sets up around the driver, and the report at its end."""

import gc
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.logging import WARNING, set_verbosity
from rich.console import Console

from .checkpoints import Checkpoints
from .command import interpreter
from .config import StudyConfig, default_storage
from .data import Source, find_source
from .database import shown, storage_errors
from .display import Display
from .errors import Failure, UsageError
from .finalists import describe_finalists, refuse_another_winner, run_finalists
from .interrupt import Interruptible
from .lease import lease
from .own_images import shown_shape
from .report import best_trial, complete, print_report, ranked, report_console
from .storage import (
    RAW_LIMIT,
    SESSION,
    TrialView,
    create_or_resume,
    find_study,
    gate_limit,
    refuse_another_configuration,
    running,
    study_uid,
    trial_views,
)
from .study import DIRECTIONS, StudyDriver
from .warm_start import chosen, prepare
from .workers import make_executor

if TYPE_CHECKING:
    from .tracking import Tracker


def describe_study(config: StudyConfig) -> None:
    """What a run would do, without doing it: nothing is created, downloaded or locked, and no worker is started.

    Raises:
        UsageError, Failure: what the run would be refused with.
    """
    set_verbosity(WARNING)
    console = report_console()
    source = _source(config)
    config = config.model_copy(update={"images_sha256": source.images_sha256})
    study = _find_checked(config)
    views = [] if study is None else _checked_views(config, study)
    data = _described_data(config, source)  # which may be refused: before anything is said
    num_done = sum(view.counts and view.state != "running" for view in views)
    num_running = sum(view.state == "running" for view in views)
    space, budget = config.search_space, config.budget
    console.print(
        f"study {config.study} in {shown(config.storage)}: "
        + (f"new, {config.trials} trials in all" if study is None else f"{num_done} of {config.trials} trials done")
        + (f", {num_running} to go on with" if num_running else ""),
        soft_wrap=True,
    )
    console.print(f"space {space.name}: {space.description}", soft_wrap=True)
    console.print(data, soft_wrap=True)
    halving = "" if config.early_stopping == "none" else f"; 1 in {budget.reduction} goes on at each"
    console.print(f"rungs at epochs {', '.join(map(str, budget.rungs))}{halving}")
    limits = "" if config.max_gates is None else f"; at most {config.max_gates:,} {config.gates} gates"
    if config.min_accuracy is not None:
        limits += f"; accuracy of at least {config.min_accuracy:.2%}"
    console.print(
        f"objectives {', '.join(config.metric_names)}{limits}; sampler {config.sampler}, seed {config.seed}",
        soft_wrap=True,
    )
    console.print(_described_workers(config), soft_wrap=True)
    lines = [] if study is None else _changes(config, study)
    if _has_work(config, views):
        lines += chosen(study, config)[1]
    for line in lines:
        console.print(line, soft_wrap=True)
    if config.finalists:
        console.print(describe_finalists(config), soft_wrap=True)


def _described_data(config: StudyConfig, source: Source) -> str:
    """How many images of which kind where they are here already.

    Raises:
        UsageError, Failure: as `Source.load`.
    """
    if (folder := source.lacking(config.data_dir)) is not None:
        return f"data {source.name}: not in {folder} yet; the run downloads it there"
    dataset = source.load(config.data_dir, config.limit_train)
    return (
        f"data {dataset.name}: {len(dataset.train):,} training, {len(dataset.validation):,} validation images of "
        f"{shown_shape(dataset.info.image_shape)}, {dataset.info.num_classes} classes"
    )


def _described_workers(config: StudyConfig) -> str:
    if config.executor == "inline":
        return "executor inline: one trial at a time, in this process"
    cluster = "" if config.address is None else f" of the cluster at {config.address}"
    gpus = "" if config.gpus_per_trial is None else f", {config.gpus_per_trial} GPUs a trial"
    return f"executor ray: workers: {config.workers or 'one a GPU, else one a core, at most 4'}{cluster}{gpus}"


def run_study(config: StudyConfig) -> None:
    """Run a study to its total, then report.

    Raises:
        UsageError, Failure: one line each; what was stored is kept.
    """
    set_verbosity(WARNING)
    console = report_console()
    warn = partial(_warn, console)
    source = _source(config)
    config = config.model_copy(update={"images_sha256": source.images_sha256})
    _find_checked(config)
    with storage_errors(config.storage), lease(config.storage, config.study, warn) as held:
        study = create_or_resume(
            config.storage,
            config.study,
            [DIRECTIONS[name] for name in config.objectives],
            config.metric_names,
            config.identity(),
        )
        views = _checked_views(config, study)  # again, now that nobody else can change it
        if config.gates == "raw" and gate_limit(study.user_attrs) != config.max_gates:
            study.set_user_attr(RAW_LIMIT, config.max_gates)
        if _has_work(config, views):
            for line in (*_changes(config, study), *prepare(study, config)):
                console.print(line, soft_wrap=True)
            study.set_user_attr(SESSION, _session_options(config))
            dataset = source.load(config.data_dir, config.limit_train)
            executor = make_executor(config, dataset)
            with closing(executor), _tracked(config, study, warn) as tracker:
                num_unfinished = len(running(study))
                done = sum(view.counts for view in views) - num_unfinished
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
        go_on = bool(config.finalists and complete(views) and not _has_work(config, views))
        print_report(
            console,
            config.study,
            views,
            config.budget.epochs,
            config.search_space.known[0].name,
            config.max_gates,
            "" if go_on else _next_steps(config, views),
        )
        if not complete(views):
            raise Failure(f"no trial of study {config.study!r} completed")
        if config.finalists:
            run_finalists(config, study, views, console, held.check)


def _find_checked(config: StudyConfig) -> optuna.Study | None:
    """The study where it is stored. All that a start may be refused for by then is, before anything is created.

    Raises:
        UsageError: another configuration, total or winner, or nothing to start from.
        Failure: the database is damaged or does not answer.
    """
    study = find_study(config.storage, config.study)
    views = []
    if study is not None:
        refuse_another_configuration(study, config.storage, config.identity())
        views = _checked_views(config, study)
    if _has_work(config, views):
        with storage_errors(config.storage):
            chosen(study, config)
    return study


def _checked_views(config: StudyConfig, study: optuna.Study) -> list[TrialView]:
    """The study's trials, so far.

    Raises:
        UsageError: it has more trials or another winner than was asked for.
        Failure: the database does not answer.
    """
    with storage_errors(config.storage):
        refuse_another_winner(config, study)
        views = trial_views(study, config.gates)
    num_counted = sum(view.counts for view in views)
    if num_counted > config.trials:
        raise UsageError(
            f"study {config.study!r} has {num_counted} trials already: give --trials {num_counted} or more"
        )
    return views


def _has_work(config: StudyConfig, views: Sequence[TrialView]) -> bool:
    """Whether trials are missing or unfinished."""
    return sum(view.counts for view in views) < config.trials or any(view.state == "running" for view in views)


def _session_options(config: StudyConfig) -> dict[str, str]:
    """What may change between sessions and yet says which trials a study has."""
    return {"sampler": config.sampler, "early-stopping": config.early_stopping}


def _changes(config: StudyConfig, study: optuna.Study) -> list[str]:
    """What this session does otherwise than the last one, a line each."""
    before = study.user_attrs.get(SESSION, {})
    return [
        f"{name}: {before[name]} -> {value}"
        for name, value in _session_options(config).items()
        if name in before and before[name] != value
    ]


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
def _tracked(config: StudyConfig, study: optuna.Study, warn: Callable[[str], None]) -> Iterator["Tracker"]:
    """MLflow brought up to date on the way in, and the parent run closed on the way out."""
    from .tracking import Tracker  # MLflow takes seconds to import: only when there is something to log

    tracker = Tracker(config.study, study_uid(study), config.tracking_uri, warn)
    tracker.sync(trial_views(study, config.gates))
    try:
        yield tracker
    finally:
        tracker.finish(best_trial(trial_views(study, config.gates), gate_limit(study.user_attrs)))


def _warn(console: Console, line: str) -> None:
    console.print(f"warning: {line}")


def _next_steps(config: StudyConfig, views: Sequence[TrialView]) -> str:
    """What to type next; nothing where there is no trial to look at."""
    done = complete(views)
    if not done:
        return ""
    python = interpreter()
    mlflow = str(Path(python).with_name("mlflow")) if os.sep in python else "mlflow"
    storage = (
        "" if config.storage == default_storage(config.study) else f" --storage {shlex.quote(shown(config.storage))}"
    )
    choice = "" if config.max_gates is None else f" --max-gates {config.max_gates}"
    if best_trial(views, config.max_gates) is None:  # where none keeps to the limits, one must be named
        choice = f" --pick trial={ranked(done)[0].number}"
    data = "" if config.data_dir is None else f" --data-dir {shlex.quote(config.data_dir)}"
    store = "" if config.tracking_uri is None else f" --backend-store-uri {shlex.quote(config.tracking_uri)}"
    look = f"{mlflow} ui{store}"
    if (config.tracking_uri or "").startswith("http"):
        look = str(config.tracking_uri)
    return "\n".join(
        (
            "What next:",
            f"  {look}    # every trial, epoch by epoch",
            f"  {python} -m search.export --study {config.study}{storage}{choice} -o best.yaml",
            f"  {python} -m search.train best.yaml{data}    # full budget, test accuracy",
        )
    )
