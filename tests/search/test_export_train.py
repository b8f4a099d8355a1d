"""From a study to a configuration, from that to a trained network: the same figures again, anywhere."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from convlogic_core import build_model
from convlogic_core.circuit import Circuit
from search import circuit_files, data, final_training
from search.candidate_file import CandidateFile, dump_candidate_file, load_candidate_file
from search.circuit import circuit
from search.data import Images, Source, load_test
from search.export import export
from search.run import run as search_run
from search.train import train
from search.training import TrainingRun, encode, soft_and_discrete_accuracy
from spaces.candidate import Candidate
from tests.search.conftest import Outcome
from tests.search.tiny import FakeExecutor, Runs, tiny_candidate, tiny_origin

REPOSITORY = Path(__file__).parents[2]
Call = Callable[..., Outcome]
FILES = sorted(
    ["config.yaml", "epochs.json", "metrics.json", "model.safetensors", "circuit.safetensors"]
    + [f"circuit.{suffix}" for suffix in ("v", "c", "blif", "aig", "json")]
)


@pytest.fixture
def small(workspace: Path) -> Candidate:
    """best.yaml: three epochs on 100 of the digits."""
    candidate = tiny_candidate(epochs=3)
    candidate = replace(candidate, data=replace(candidate.data, limit_train=100))
    Path("best.yaml").write_text(dump_candidate_file(CandidateFile(candidate, 11, tiny_origin())))
    return candidate


@pytest.fixture(scope="module")
def trained_once() -> dict[str, bytes]:
    """What `finished` found in its folder the first time: to train for every test takes long."""
    return {}


@pytest.fixture
def finished(command: Call, small: Candidate, tracking_uri: str, trained_once: dict[str, bytes]) -> Path:
    """The folder that `search.train` left of best.yaml."""
    folder = Path("runs/best/seed_11")
    if not trained_once:
        assert command(train, "best.yaml", "--tracking-uri", tracking_uri).code == 0
        trained_once |= {path.name: path.read_bytes() for path in folder.iterdir()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in trained_once.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def no_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = data.SOURCES["digits"]

    def read(root: Path, is_test: bool) -> Images:
        if is_test:
            raise AssertionError("the test split was opened")
        return digits.read(root, is_test)

    monkeypatch.setitem(data.SOURCES, "digits", replace(digits, read=read))


# From the study to a file


def test_a_trial_goes_into_a_file_and_comes_back(run_sqlite: Runs, command: Call) -> None:
    views = [view for view in run_sqlite(FakeExecutor(), trials=8) if view.state == "complete"]
    best = max(views, key=lambda view: view.acc_discrete or 0)
    for arguments, view in (((), best), (("--pick", "best"), best), (("--pick", f"trial={views[2].number}"), views[2])):
        outcome = command(export, "--study", "tiny", "-o", "out/best.yaml", *arguments)
        assert (outcome.code, outcome.err) == (0, "")
        assert f"trial {view.number} of study tiny" in outcome.out
        file = load_candidate_file(Path("out/best.yaml"))
        assert (file.candidate, file.seed) == (view.candidate, view.attrs["seed"])
        assert file.origin.trial == view.number
        assert file.origin.acc_discrete == view.acc_discrete
        assert file.origin.params == view.params
        last = view.records[-1]
        assert (file.origin.core_gates, file.origin.total_gates) == (last.core_gates, last.total_gates)
        assert (file.origin.raw_gates, file.origin.depth) == (view.raw_gates, last.depth)
        assert f"{last.total_gates:,} total gates -> " in outcome.out


def test_a_gate_limit_takes_the_best_among_those_that_fit(run_sqlite: Runs, command: Call) -> None:
    views = [view for view in run_sqlite(FakeExecutor(), trials=8) if view.state == "complete"]
    best = max(views, key=lambda view: view.acc_discrete or 0)
    limit = (best.gates or 0) - 1
    fitting = [view for view in views if (view.gates or 0) <= limit]
    assert 0 < len(fitting) < len(views) - 1
    assert command(export, "--study", "tiny", "-o", "best.yaml", "--max-gates", limit).code == 0
    expected = max(fitting, key=lambda view: view.acc_discrete or 0)
    assert load_candidate_file(Path("best.yaml")).origin.trial == expected.number


# From the file to the network


def test_the_same_figures_in_an_empty_folder_with_any_number_of_threads(
    command: Call, workspace: Path, tracking_uri: str, no_test_split: None
) -> None:
    """Search and export never open the test split; the trial's figures come back at the same budget and seed."""
    arguments = ("--space", "tiny", "--executor", "inline", "--trials", 2, "--limit-train", 100)
    outcome = command(search_run, *arguments, "--tracking-uri", tracking_uri)
    assert (outcome.code, outcome.err) == (0, "")
    assert command(export, "--study", "tiny", "--pick", "trial=0", "-o", "best.yaml").code == 0
    origin = load_candidate_file(Path("best.yaml")).origin
    assert origin.epoch == 9
    running = []
    for threads in ("1", "2"):
        folder = workspace / f"threads_{threads}"
        folder.mkdir()
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": threads}
        environment["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
        call = [
            sys.executable,
            "-m",
            "search.train",
            str(workspace / "best.yaml"),
            "--tracking-uri",
            "http://127.0.0.1:9",
        ]
        running.append(
            subprocess.Popen(call, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        )
    weights = []
    for threads, process in zip(("1", "2"), running, strict=True):
        out, err = process.communicate()
        assert (process.returncode, err.decode()) == (0, "")
        assert out.decode().count("warning: MLflow failed") == 1
        (folder,) = (workspace / f"threads_{threads}/runs/best").iterdir()
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["val/acc_discrete"] == origin.acc_discrete
        assert metrics["val/acc_soft"] == origin.acc_soft
        weights.append((folder / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_finished_folder_is_enough_by_itself(command: Call, small: Candidate, tracking_uri: str) -> None:
    outcome = command(train, "best.yaml", "--tracking-uri", tracking_uri)
    assert (outcome.code, outcome.err) == (0, "")
    folder = Path("runs/best/seed_11")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert load_candidate_file(folder / "config.yaml").candidate == small
    metrics = json.loads((folder / "metrics.json").read_text())
    epochs = json.loads((folder / "epochs.json").read_text())
    assert [record["epoch"] for record in epochs] == [1, 2, 3]
    assert metrics["gates/raw"] == 2280
    assert ["total_gates" in record for record in epochs] == [False, False, True]
    assert metrics["gates/total"] == epochs[-1]["total_gates"] > metrics["gates/core"] > metrics["gates/depth"] > 0
    counts = Circuit.load(folder / "circuit.safetensors").counts
    assert counts.metrics() == {name: metrics[name] for name in counts.metrics()}
    assert f"{counts.core:,} core, {counts.total:,} total, depth {counts.depth} -> {folder}" in outcome.out
    assert metrics["val/gap"] == metrics["val/acc_soft"] - metrics["val/acc_discrete"]
    assert f"{metrics['test/acc_discrete']:.2%}" in outcome.out
    # The network as it was saved, measured on the test split again.
    tensors = safetensors.torch.load((folder / "model.safetensors").read_bytes())
    thresholds = tensors.pop("thresholds")
    model = build_model(small.model, 0)
    model.load_state_dict(tensors)
    planes = encode(load_test("digits"), thresholds, torch.device("cpu"))
    circuit = Circuit.load(folder / "circuit.safetensors")
    assert circuit.classes(planes.x).eq(planes.y).double().mean().item() == metrics["test/acc_discrete"]
    assert soft_and_discrete_accuracy(model, planes) == (metrics["test/acc_soft"], metrics["test/acc_discrete"])


def test_the_same_command_again_trains_and_logs_nothing(command: Call, small: Candidate, tracking_uri: str) -> None:
    first = command(train, "best.yaml", "--tracking-uri", tracking_uri)
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    again = command(train, "best.yaml", "--tracking-uri", tracking_uri)
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")} == before
    assert "epoch 1/3" in first.out
    assert "epoch" not in again.out
    assert again.out.splitlines()[-1] == first.out.splitlines()[-1]


def test_several_seeds_are_trained_and_summarised(command: Call, small: Candidate, tracking_uri: str) -> None:
    outcome = command(train, "best.yaml", "--seeds", 2, "-o", "two", "--tracking-uri", tracking_uri)
    folders = sorted(Path("two").iterdir())
    assert len(folders) == 2
    assert Path("two/seed_11") in folders
    accuracies = [json.loads((folder / "metrics.json").read_text())["test/acc_discrete"] for folder in folders]
    mean, deviation = sum(accuracies) / 2, abs(accuracies[0] - accuracies[1]) / 2**0.5
    assert f"test/acc_discrete  {mean:.2%} ± {100 * deviation:.2f}" in outcome.out
    weights = {(folder / "model.safetensors").read_bytes() for folder in folders}
    assert len(weights) == 2


def test_the_test_split_is_opened_once_every_seed_is_trained(
    command: Call, small: Candidate, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    load = Source.load_test

    def opened(*args: Any) -> Images:
        trained.append(len(list(Path("runs/best").glob("*/model.safetensors"))))
        return load(*args)

    monkeypatch.setattr(Source, "load_test", opened)
    assert command(train, "best.yaml", "--seeds", 2, "--tracking-uri", tracking_uri).code == 0
    assert trained == [2, 2]


def test_another_configuration_in_the_same_folder_is_refused(
    command: Call, small: Candidate, tracking_uri: str
) -> None:
    assert command(train, "best.yaml", "-o", "out", "--tracking-uri", tracking_uri).code == 0
    other = replace(small, train=replace(small.train, lr=0.03))
    Path("other.yaml").write_text(dump_candidate_file(CandidateFile(other, 11, tiny_origin())))
    outcome = command(train, "other.yaml", "-o", "out", "--tracking-uri", tracking_uri)
    assert outcome.code == 2
    assert (
        outcome.err
        == "error: out/seed_11 holds results of another configuration: move it away or give -o another folder\n"
    )


class Killed(BaseException): ...


@pytest.mark.parametrize("kill_at", ["epoch", "checkpoint", "weights", "circuit", "metrics"])
def test_a_killed_final_training_ends_with_the_same_weights(
    command: Call, small: Candidate, tracking_uri: str, monkeypatch: pytest.MonkeyPatch, kill_at: str
) -> None:
    call = (train, "best.yaml", "--tracking-uri", tracking_uri, "-o")
    assert command(*call, "whole").code == 0
    monkeypatch.setattr(final_training, "CHECKPOINT_EVERY_S", 0.0)
    with monkeypatch.context() as patch:
        if kill_at == "epoch":
            run_epoch = TrainingRun.run_epoch

            def killed(run: TrainingRun) -> Any:
                if run.epoch == 2:
                    raise Killed
                return run_epoch(run)

            patch.setattr(TrainingRun, "run_epoch", killed)
        else:
            name = {
                "checkpoint": "checkpoint.safetensors",
                "weights": "model.safetensors",
                "circuit": "circuit.blif",
                "metrics": "metrics.json",
            }
            write = final_training.write_atomically

            def killed_writing(path: Path, content: bytes) -> None:
                if path.name == name[kill_at]:
                    raise Killed
                write(path, content)

            patch.setattr(final_training, "write_atomically", killed_writing)
            patch.setattr(circuit_files, "write_atomically", killed_writing)
        with pytest.raises(Killed):
            command(*call, "parts")
    outcome = command(*call, "parts")
    assert (outcome.code, outcome.err) == (0, "")
    assert ("goes on after epoch 2" in outcome.out) == (kill_at in ("epoch", "weights"))
    assert ("epoch 3/3" in outcome.out) == (kill_at not in ("circuit", "metrics"))
    whole, parts = Path("whole/seed_11"), Path("parts/seed_11")
    assert sorted(path.name for path in parts.iterdir()) == FILES
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    losses = [[record["loss"] for record in json.loads((each / "epochs.json").read_text())] for each in (whole, parts)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3


@pytest.mark.parametrize("damaged", ["checkpoint.safetensors", "epochs.json"])
@pytest.mark.parametrize("content", [None, b"", b"damaged"])
def test_a_damaged_checkpoint_starts_its_seed_again(
    command: Call,
    small: Candidate,
    tracking_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    damaged: str,
    content: bytes | None,
) -> None:
    """One line names it; the weights are those of an undisturbed training."""
    monkeypatch.setattr(final_training, "CHECKPOINT_EVERY_S", 0.0)
    run_epoch = TrainingRun.run_epoch

    def killed(run: TrainingRun) -> Any:
        if run.epoch == 2:
            raise Killed
        return run_epoch(run)

    call, folder = (train, "best.yaml", "--tracking-uri", tracking_uri), Path("runs/best/seed_11")
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "run_epoch", killed)
        with pytest.raises(Killed):
            command(*call)
    if content is None:
        os.truncate(folder / damaged, (folder / damaged).stat().st_size // 2)
    else:
        (folder / damaged).write_bytes(content)
    outcome = command(*call)
    assert (outcome.code, outcome.err) == (0, "")
    (line,) = [line for line in outcome.out.splitlines() if "damaged" in line]
    assert line.startswith(f"seed 11: {folder}/checkpoint.safetensors is damaged (") and line.endswith("starts again")
    assert "seed 11 epoch 1/3" in outcome.out
    assert command(*call, "-o", "whole").code == 0
    assert (folder / "model.safetensors").read_bytes() == Path("whole/seed_11/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "is_measured"),
    [
        ("metrics.json", b"garbage", True),
        ("metrics.json", b"[]", True),
        ("metrics.json", b'{"gates/core": "many"}', True),
        ("metrics.json", b'{"gates/core": 7}', True),
        ("epochs.json", b"", True),
        ("epochs.json", b"[]", False),
        ("epochs.json", b'[{"epoch": 1}]', True),
        ("model.safetensors", b"", True),
        ("model.safetensors", None, True),
        ("model.safetensors", None, False),
        ("circuit.safetensors", None, True),
        ("circuit.safetensors", b"", False),
    ],
)
def test_a_damaged_file_of_a_finished_seed_is_named(
    command: Call, finished: Path, tracking_uri: str, name: str, content: bytes | None, is_measured: bool
) -> None:
    """And what the message says helps. None: half of it is there."""
    call, path = (train, "best.yaml", "--tracking-uri", tracking_uri), finished / name
    whole = path.read_bytes()
    if not is_measured:
        (finished / "metrics.json").unlink()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    outcome = command(*call)
    assert outcome.code == 1
    assert re.fullmatch(
        rf"error: {path} [^\n]+: delete it and run (the same command|`search.train`) again.*\n", outcome.err
    )
    path.unlink()
    outcome = command(*call)
    assert (outcome.code, outcome.err) == (0, "")
    assert sorted(each.name for each in finished.iterdir()) == FILES
    if name != "circuit.safetensors":  # of which the header's order is left open
        assert ignore_times(path.read_bytes()) == ignore_times(whole)


def ignore_times(content: bytes) -> bytes:
    return re.sub(rb'("(images_per_second|timestamp_ms)": )[\d.]+', rb"\1", content)


@pytest.mark.parametrize("name", [f"circuit.{suffix}" for suffix in ("v", "c", "blif", "aig", "json")])
def test_an_emptied_circuit_is_written_again(command: Call, finished: Path, tracking_uri: str, name: str) -> None:
    whole = (finished / name).read_bytes()
    (finished / name).write_bytes(b"")
    assert command(train, "best.yaml", "--tracking-uri", tracking_uri).code == 0
    assert (finished / name).read_bytes() == whole


def test_a_flipped_bit_of_the_weights_is_found(command: Call, finished: Path, tracking_uri: str) -> None:
    """By the training that would skip them, and by whoever reads them."""
    weights = finished / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)
    for call in ((train, "best.yaml", "--tracking-uri", tracking_uri), (circuit, finished)):
        outcome = command(*call)
        assert (outcome.code, outcome.out) == (1, "")
        assert outcome.err == (
            f"error: {weights} is damaged (its tensors are not those that its SHA-256 was taken of): delete it and run "
            "`search.train` again (`search.run` for a finalist)\n"
        )


def test_weights_of_earlier_versions_state_no_digest(command: Call, finished: Path, tracking_uri: str) -> None:
    weights = finished / "model.safetensors"
    weights.write_bytes(safetensors.torch.save(safetensors.torch.load(weights.read_bytes())))
    outcome = command(train, "best.yaml", "--tracking-uri", tracking_uri)
    assert (outcome.code, outcome.err) == (0, "")
    assert "epoch" not in outcome.out


def test_what_comes_of_new_weights_is_made_anew(command: Call, finished: Path, tracking_uri: str) -> None:
    """On another device they may differ."""
    (finished / "model.safetensors").unlink()
    metrics, verilog = finished / "metrics.json", finished / "circuit.v"
    wanted = metrics.read_text(), verilog.read_text()
    metrics.write_text(metrics.read_text().replace('"test/acc_discrete": 0.', '"test/acc_discrete": 0.9'))
    verilog.write_text("of other weights")
    assert command(train, "best.yaml", "--tracking-uri", tracking_uri).code == 0
    assert ignore_times(metrics.read_bytes()) == ignore_times(wanted[0].encode())
    assert verilog.read_text() == wanted[1]


@pytest.mark.parametrize("problem", ["diverges", "does not fit"])
def test_a_training_that_failed_may_be_corrected(
    command: Call, small: Candidate, tracking_uri: str, problem: str
) -> None:
    call = (train, "best.yaml", "-o", "out", "--tracking-uri", tracking_uri)
    if problem == "diverges":
        wrong = replace(small, train=replace(small.train, lr=1e38))
    else:
        wrong = replace(small, data=replace(small.data, num_thresholds=4))
    right = Path("best.yaml").read_text()
    Path("best.yaml").write_text(dump_candidate_file(CandidateFile(wrong, 11, tiny_origin())))
    assert command(*call).code == (1 if problem == "diverges" else 2)
    assert Path("out").exists() == (problem == "diverges")
    Path("best.yaml").write_text(right)
    outcome = command(*call)
    assert (outcome.code, outcome.err) == (0, "")
    assert load_candidate_file(Path("out/seed_11/config.yaml")).candidate == small


def test_weights_that_do_not_say_of_which_network_are_nobodys(
    command: Call, small: Candidate, tracking_uri: str
) -> None:
    call = (train, "best.yaml", "-o", "out", "--tracking-uri", tracking_uri)
    Path("best.yaml").write_text(dump_candidate_file(CandidateFile(small, 11, tiny_origin())))
    assert command(*call).code == 0
    Path("out/seed_11/config.yaml").unlink()
    outcome = command(*call)
    assert outcome.code == 1
    assert "out/seed_11 has weights and no config.yaml" in outcome.err
