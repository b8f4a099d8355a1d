"""A user's own images from the search to the trained network, and noticed when they change."""

import importlib
import json
from pathlib import Path

import numpy as np
import optuna
import pytest
import yaml

from search.candidate_file import load_candidate_file
from search.circuit import circuit
from search.data import find_source
from search.export import export
from search.run import run as search_run
from search.train import train
from tests.search.conftest import Outcome
from tests.search.test_own_images import Arrays, Call, arrays, save, save_folder

import_study = importlib.import_module("search.import").import_study
__all__ = ["arrays"]


def session(command: Call, name: str, uri: str, *arguments: object) -> Outcome:
    call = ("--space", "tiny", "--data", name, "--executor", "inline", "--epochs", 3, "--tracking-uri", uri)
    return command(search_run, *call, *arguments)


@pytest.fixture
def searched(command: Call, arrays: Arrays, tracking_uri: str) -> str:
    """A study of two trials on own.npz, whose test arrays no search can read, and best.yaml. The dataset's name."""
    name = save(arrays | {"x_test": np.array([None])})
    outcome = session(command, name, tracking_uri, "--trials", 2)
    assert (outcome.code, outcome.err) == (0, "")
    assert command(export, "--study", "tiny", "-o", "best.yaml").code == 0
    return name


def test_search_export_train_and_verify(command: Call, arrays: Arrays, searched: str, tracking_uri: str) -> None:
    file = load_candidate_file(Path("best.yaml"))
    assert file.candidate.data.dataset == searched == "npz:own.npz"
    assert file.candidate.data.images_sha256 == find_source(searched).images_sha256
    assert command(train, "best.yaml", "--tracking-uri", tracking_uri).err.startswith("error: own.npz is no .npz file")
    save(arrays)
    outcome = command(train, "best.yaml", "--tracking-uri", tracking_uri)
    assert (outcome.code, outcome.err) == (0, "")
    metrics = json.loads(Path(f"runs/best/seed_{file.seed}/metrics.json").read_text())
    assert metrics["val/acc_discrete"] == file.origin.acc_discrete or file.origin.epoch < 3
    assert round(20 * metrics["test/acc_discrete"]) / 20 == metrics["test/acc_discrete"]
    outcome = command(circuit, f"runs/best/seed_{file.seed}", "--c", "out.c", "--verify", "--images", 64)
    assert outcome.out.splitlines()[-1].startswith("verified: 64 images, C ")


def test_finalists_and_import(command: Call, arrays: Arrays, searched: str, tracking_uri: str) -> None:
    assert command(export, "--study", "tiny", "--all", "-o", "all.csv").code == 0
    assert command(import_study, "all.csv", "--study", "again").code == 0
    save(arrays)
    for study in ("again", "tiny"):
        options = ("--study", study, "--trials", 2, "--finalists", 1)
        outcome = session(command, searched, tracking_uri, *options)
        assert (outcome.code, outcome.err) == (0, "")
        assert "Test accuracy of the winner" in outcome.out
    warm = session(command, save_folder(arrays), tracking_uri, "--study", "warm", "--trials", 1, "--warm-start", "tiny")
    assert (warm.code, warm.err) == (0, "")
    assert "warm start from tiny: " in warm.out


def test_changed_images_are_noticed(command: Call, arrays: Arrays, searched: str, tracking_uri: str) -> None:
    before = find_source(searched).images_sha256
    Path("own.npz").rename("kept.npz")
    outcome = session(command, searched, tracking_uri, "--trials", 3)
    assert outcome.err.startswith("error: cannot read own.npz: No such file or directory; ")
    save(arrays | {"x_train": arrays["x_train"][::-1]})
    after = find_source(searched).images_sha256
    for arguments in (("--trials", 3), ("--trials", 2), ("--trials", 2, "--finalists", 1)):
        outcome = session(command, searched, tracking_uri, *arguments)
        assert (outcome.code, outcome.err) == (
            2,
            f"error: study 'tiny' was made with another configuration (data.images_sha256: {before} -> {after}): "
            "give --study another name, or the options and images it was made with\n",
        )
    outcome = command(train, "best.yaml", "--tracking-uri", tracking_uri)
    assert (outcome.code, outcome.err) == (
        2,
        f"error: npz:own.npz has changed: its training images have the SHA-256 {after}, those of the configuration "
        f"{before}; bring them back, or set images_sha256 to null there\n",
    )
    body = yaml.safe_load(Path("best.yaml").read_text())
    body["candidate"]["data"]["images_sha256"] = None
    Path("other.yaml").write_text(yaml.safe_dump(body))
    assert command(train, "other.yaml", "--tracking-uri", tracking_uri).code == 0
    del body["candidate"]["data"]["images_sha256"]  # as versions wrote it that did not know of it
    Path("other.yaml").write_text(yaml.safe_dump(body))
    assert command(train, "other.yaml", "--tracking-uri", tracking_uri).code == 0
    Path("kept.npz").rename("own.npz")
    assert session(command, searched, tracking_uri, "--trials", 3).code == 0


def test_a_study_from_before_there_were_digests_goes_on(command: Call, tracking_uri: str) -> None:
    call = (
        "--space",
        "tiny",
        "--executor",
        "inline",
        "--limit-train",
        50,
        "--epochs",
        1,
        "--tracking-uri",
        tracking_uri,
    )
    assert command(search_run, *call, "--trials", 1).code == 0
    study = optuna.load_study(study_name="tiny", storage="sqlite:///studies/tiny/study.db")
    identity = study.user_attrs["identity"]
    assert identity["data"].pop("images_sha256") is None
    study.set_user_attr("identity", identity)
    outcome = command(search_run, *call, "--trials", 2)
    assert (outcome.code, outcome.err) == (0, "")


def test_what_would_run(command: Call, arrays: Arrays) -> None:
    outcome = command(search_run, "--space", "tiny", "--data", save(arrays), "--dry-run")
    assert "data npz:own.npz: 58 training, 12 validation images of 1x28x28, 10 classes\n" in outcome.out
    assert not Path("studies").exists()


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_images_that_the_space_is_not_for(command: Call, arrays: Arrays, dry: tuple[str, ...]) -> None:
    small = save(arrays | {"x_train": arrays["x_train"][:, :4, :4]}, "small.npz")
    outcome = command(search_run, "--space", "tiny", "--data", small, *dry)
    assert outcome.code == 2
    assert outcome.err.startswith(
        "error: space tiny is not for npz:small.npz, 1x4x4 and 10 classes: its baseline, published, cannot be built ("
    )
    assert outcome.err.endswith("); give other images or another --space\n")
    seven = save(arrays | {"y_train": np.arange(70) % 7}, "seven.npz")
    outcome = command(search_run, "--space", "tiny", "--data", seven, *dry)
    assert "1x28x28 and 7 classes: " in outcome.err
    assert "(the last layer's 120 outputs cannot be divided among 7 classes)" in outcome.err
    assert not Path("studies").exists()


def test_a_network_made_for_other_images(command: Call, arrays: Arrays, searched: str, tracking_uri: str) -> None:
    save(arrays | {"x_train": arrays["x_train"][:, 2:]})
    outcome = command(train, "best.yaml", "--tracking-uri", tracking_uri)
    assert outcome.err.startswith(
        "error: the model takes (1, 28, 28) planes and 10 classes, npz:own.npz has (1, 26, 28)"
    )
