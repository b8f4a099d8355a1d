"""What must hold of a study that reached its total, whatever happened on the way."""

from collections import Counter

import optuna
from sqlalchemy import NullPool

from search import tracking
from search.config import study_config
from search.database import parse_url
from search.storage import TrialView, study_uid, trial_views
from tests.faults.forked import ForkedDriver

CAUSES = ("worker died", "out of memory", "nan", "timeout", "error")


def assert_sound(driver: ForkedDriver, num_trials: int, num_repeated: int, in_mlflow: bool = True) -> list[TrialView]:
    """The storage, MLflow, checkpoints and processes of a study; its trials.

    At most `num_repeated` rungs, of all trials together, were trained again, in part or whole: one for each worker that
    was killed, and for each driver as many as it had workers.
    """
    study = load_study(driver)
    views = trial_views(study, "total")
    assert [view.number for view in views] == list(range(len(views)))
    assert sum(view.counts for view in views) == num_trials
    assert all(view.frozen.state.is_finished() for view in views)
    for view in views:
        assert [record.epoch for record in view.records] == list(range(1, view.epoch + 1))
        if view.state == "complete":
            assert view.frozen.values == [view.records[-1].acc_discrete, view.gates]
        assert (view.state == "failed") == (view.cause in CAUSES), view
    if in_mlflow:
        assert_mlflow_shows(driver, study_uid(study), views)
    repeated = repeated_rungs(driver, study.user_attrs["identity"]["rungs"])
    assert repeated.total() <= num_repeated, repeated
    checkpoints = driver.folder / study_config(study=driver.study, storage=driver.storage).folder / "checkpoints"
    assert not checkpoints.exists() or list(checkpoints.iterdir()) == []
    driver.wait_until_gone()
    return views


def load_study(driver: ForkedDriver) -> optuna.Study:
    url = parse_url(driver.url).render_as_string(hide_password=False)
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"poolclass": NullPool})  # which leaves nothing open
    return optuna.load_study(study_name=driver.study, storage=storage)


def assert_mlflow_shows(driver: ForkedDriver, uid: str, views: list[TrialView]) -> None:
    """A parent that is closed, a child a trial in the trial's state, and no metric step twice."""
    client = tracking.MlflowClient(f"sqlite:///{driver.folder}/mlflow.db")
    experiment = client.get_experiment_by_name(driver.study)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.`{tracking.TAG_UID}` = '{uid}'")
    children = {int(run.data.tags[tracking.TAG_TRIAL]): run for run in runs if tracking.TAG_TRIAL in run.data.tags}
    assert len(runs) == 1 + len(children)
    (parent,) = (run for run in runs if tracking.TAG_TRIAL not in run.data.tags)
    assert parent.info.status == "FINISHED"
    assert set(children) == {view.number for view in views}
    shown = {number: (run.data.tags["state"], run.info.status) for number, run in children.items()}
    assert shown == {view.number: (view.state, tracking.STATUS.get(view.state, "FAILED")) for view in views}
    for view in views:
        names = {name for record in view.records for name in record.metrics()}
        for name in names:
            history = client.get_metric_history(children[view.number].info.run_id, name)
            steps = Counter(metric.step for metric in history)
            assert steps == Counter(record.epoch for record in view.records if name in record.metrics()), (view, name)
        raw = client.get_metric_history(children[view.number].info.run_id, "gates/raw")
        assert len(raw) == (view.raw_gates is not None)


def repeated_rungs(driver: ForkedDriver, rungs: list[int]) -> Counter[int]:
    """How many rungs of each trial were trained again, in part or whole."""
    repeated: Counter[int] = Counter()
    times = driver.epochs()
    for trial in {trial for trial, _ in times}:
        for begin, end in zip([0, *rungs], rungs, strict=False):
            repeated[trial] += max(max(times[trial, epoch] - 1, 0) for epoch in range(begin + 1, end + 1))
    return repeated
