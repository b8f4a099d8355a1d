"""python -m search.sync: rebuild a study's MLflow view from its storage."""

import click

from .command import command, run_command


@command("sync", "Rebuild a study's MLflow runs from its storage. What is there already is not written twice.")
@click.option("--study", required=True, help="Name of the study.")
@click.option("--storage", default="", show_default="sqlite:///studies/STUDY/study.db", help="Optuna RDB URL.")
@click.option("--tracking-uri", default=None, show_default="MLflow's own", help="MLflow tracking URI.")
def sync(study: str, storage: str, tracking_uri: str | None) -> None:
    from .database import storage_errors
    from .errors import Failure
    from .lease import lease
    from .report import best_trial
    from .storage import full_identity, gate_limit, study_uid, to_read, trial_views
    from .tracking import Tracker

    def warn(line: str) -> None:
        click.echo(f"warning: {line}")

    def fail(line: str) -> None:
        raise Failure(line)

    url, stored = to_read(study, storage)
    # a driver tells MLflow itself: two at a time would make a run twice, and close what the other has open
    with storage_errors(url), lease(url, study, warn):
        uid, views = study_uid(stored), trial_views(stored, full_identity(stored)["gates"])
        tracker = Tracker(study, uid, tracking_uri, fail)
        tracker.sync(views)
        tracker.finish(best_trial(views, gate_limit(stored.user_attrs)))
    click.echo(f"{len(views)} trials of study {study} are in MLflow at {tracker.uri}")


if __name__ == "__main__":
    run_command(sync)
