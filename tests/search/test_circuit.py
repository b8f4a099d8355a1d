"""The circuit of a trained model: counted, written, and verified by tools that know nothing of this project."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from convlogic_core import build_model
from convlogic_core.circuit import Circuit
from search import circuit_check, data
from search.candidate_file import CandidateFile, dump_candidate_file
from search.circuit import circuit
from search.circuit_files import FORMATS, SAVED, load_model, write_circuit_files
from search.data import Images
from tests.circuit.hardware_tools import tool
from tests.search.conftest import Outcome
from tests.search.tiny import tiny_candidate, tiny_origin

Call = Callable[..., Outcome]


@pytest.fixture
def folder(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as `search.train` leaves it, of a network with random gates. The test split may not be opened."""
    digits = data.SOURCES["digits"]

    def read(root: Path, is_test: bool) -> Images:
        assert not is_test, "the test split was opened"
        return digits.read(root, is_test)

    monkeypatch.setitem(data.SOURCES, "digits", replace(digits, read=read))
    candidate = tiny_candidate(epochs=1)
    conv, dense = (
        tuple(replace(layer, residual_init=False) for layer in layers)
        for layers in (candidate.model.conv, candidate.model.dense)
    )
    candidate = replace(candidate, model=replace(candidate.model, conv=conv, dense=dense))
    made = workspace / "seed_11"
    made.mkdir()
    (made / "config.yaml").write_text(dump_candidate_file(CandidateFile(candidate, 11, tiny_origin())))
    tensors = dict(build_model(candidate.model, 11).state_dict()) | {"thresholds": torch.tensor([[100]]).byte()}
    (made / "model.safetensors").write_bytes(safetensors.torch.save(tensors))
    return made


def test_counts(command: Call, folder: Path) -> None:
    outcome = command(circuit, folder)
    assert (outcome.code, outcome.err) == (0, "")
    file, model, thresholds = load_model(folder)
    counts = Circuit.from_model(model, file.candidate.model.input_shape, thresholds).counts
    for name in ("raw", "core", "total", "depth"):
        assert re.search(rf"^{name} +{getattr(counts, name):,}$", outcome.out, re.MULTILINE)
    for layer in counts.layers:
        assert re.search(rf"^{layer.name} +{layer.raw:,} +{layer.core:,} ", outcome.out, re.MULTILINE)
    assert f"{counts.pass_through:.1%}" in outcome.out


@pytest.mark.parametrize("pipeline", [(), ("--pipeline", 2)], ids=["combinational", "pipelined"])
def test_verified_by_other_tools(command: Call, folder: Path, pipeline: tuple[object, ...]) -> None:
    tool("iverilog")
    tool("cc", "gcc", "clang")
    written = ("--verilog", "out/3 int-main.v", "--c", "out/int.c", *pipeline)
    outcome = command(circuit, folder, *written, "--verify", "--images", 41)
    assert (outcome.code, outcome.err) == (0, "")
    assert re.fullmatch(
        r"verified: 41 images, Verilog \(iverilog\) = C \(\w+\) = PyTorch", outcome.out.splitlines()[-1]
    )
    assert ("LATENCY" in Path("out/3 int-main.v").read_text()) == bool(pipeline)


def test_a_module_called_testbench_is_verified(command: Call, folder: Path) -> None:
    """As the bench around it might be."""
    tool("iverilog")
    outcome = command(circuit, folder, "--verilog", "testbench.v", "--verify", "--images", 4)
    assert (outcome.code, outcome.err) == (0, "")
    assert "verified: 4 images" in outcome.out
    assert "module testbench (" in Path("testbench.v").read_text()


def test_names_in_the_written_files_are_told(command: Call, folder: Path) -> None:
    files = {"verilog": "2-in.v", "c": "net.v2.c", "blif": "module.blif", "aiger": "x.aig", "json": "out/größe.json"}
    outcome = command(circuit, folder, *(word for kind, file in files.items() for word in (f"--{kind}", file)))
    assert (outcome.code, outcome.err) == (0, "")
    told = [re.sub(r"[\d,]+ gates, [\d,]+ bytes$", "...", line) for line in outcome.out.splitlines()]
    assert told == [
        "2-in.v: module circuit_2_in, ...",
        "net.v2.c: functions net_v2_sums and net_v2_classify, ...",
        "module.blif: model circuit_module, ...",
        "x.aig: ...",
        "out/größe.json: name gr_e, ...",
    ]
    assert "module circuit_2_in (" in Path("2-in.v").read_text()
    assert "int net_v2_classify(" in Path("net.v2.c").read_text()
    assert ".model circuit_module\n" in Path("module.blif").read_text()


@pytest.mark.parametrize("kind", ["verilog", "c"])
def test_a_file_that_is_wrong_is_found(command: Call, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The last image only, its class or its sums."""
    tool(*{"verilog": ("iverilog",), "c": ("cc", "gcc", "clang")}[kind])
    run = f"run_{kind}"
    right = getattr(circuit_check, run)

    def wrong(*arguments: object) -> circuit_check.Results:
        results = right(*arguments)
        changed = results.classes if kind == "c" else results.sums[:, 3]
        changed[-1] += 1
        return circuit_check.Results(*results)

    monkeypatch.setattr(f"search.circuit_verification.{run}", wrong)
    outcome = command(circuit, folder, f"--{kind}", "out", "--verify", "--images", 10)
    assert outcome.code == 1
    assert re.fullmatch(
        r"error: .* of out differs from PyTorch on 1 of 10 images, first on image 9 \(random\): .*\n", outcome.err
    )


def test_tools_that_are_missing(command: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    outcome = command(circuit, folder, "--verilog", "out.v", "--verify")
    assert (outcome.code, outcome.err) == (
        1,
        "error: verification needs Icarus Verilog, and iverilog is not installed: install it (Debian: apt-get install "
        "iverilog) or leave --verify out\n",
    )
    assert Path("out.v").exists()
    outcome = command(circuit, folder, "--c", "out.c", "--verify")
    assert outcome.code == 1
    assert "needs a C compiler, and cc or gcc or clang is not installed" in outcome.err


def test_a_compiler_that_refuses(tmp_path: Path) -> None:
    tool("cc", "gcc", "clang")
    (tmp_path / "x.c").write_text("int x = ;\n")
    with pytest.raises(circuit_check.Failure, match=r"failed: .*x\.c:1:9: error: expected expression"):
        circuit_check.compile_c(tmp_path / "x.c", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--verify",), "--verify runs what is written: give --verilog FILE, --c FILE or both with it"),
        (("--pipeline", 2), "give --verilog FILE with it"),
        (("--verilog", "x.v", "--pipeline", 0), "--pipeline"),
        (("--images", 1), "--images"),
        (("--verilog", "x.v", "--c", "y/../x.v"), "x.v is named for two formats"),
    ],
)
def test_wrong_usage(command: Call, folder: Path, arguments: tuple[object, ...], part: str) -> None:
    outcome = command(circuit, folder, *arguments)
    assert outcome.code == 2
    assert re.fullmatch(r"error: [^\n]+\n", outcome.err)
    assert part in outcome.err


def test_folders_that_hold_no_model(command: Call, folder: Path) -> None:
    outcome = command(circuit, "nowhere")
    assert outcome.code == 2
    assert outcome.err.startswith("error: nowhere lacks config.yaml or model.safetensors: give a seed's folder of ")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    tensors = safetensors.torch.load(whole)
    wrong_thresholds = (
        torch.zeros(1),
        torch.zeros(1, 1),
        torch.zeros(1, 1, dtype=torch.bfloat16),
        torch.zeros(1, 2, dtype=torch.uint8),
        torch.zeros(1, dtype=torch.uint8),
    )
    for damaged in (
        whole[:-10],
        b"",
        safetensors.torch.save({"thresholds": torch.zeros(1)}),
        *(safetensors.torch.save(tensors | {"thresholds": thresholds}) for thresholds in wrong_thresholds),
    ):
        weights.write_bytes(damaged)
        outcome = command(circuit, folder)
        assert outcome.code == 1
        assert re.fullmatch(
            rf"error: {weights} is damaged \([^\n]+\): delete it and run `search.train` again [^\n]+\n", outcome.err
        )


def test_missing_files_are_written_again(folder: Path) -> None:
    names = {SAVED, *(f"circuit{suffix}" for suffix in FORMATS)}
    write_circuit_files(folder)
    contents = {name: (folder / name).read_bytes() for name in names}
    assert all(contents.values())
    for name in names:
        (folder / name).unlink()
        before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
        write_circuit_files(folder)
        if name != SAVED:  # of which the header's order is left open
            assert (folder / name).read_bytes() == contents[name]
        assert {path: path.stat().st_mtime_ns for path in before} == before
    saved = Circuit.load(folder / SAVED)
    file, model, thresholds = load_model(folder)
    unrolled = Circuit.from_model(model, file.candidate.model.input_shape, thresholds)
    assert saved.num_gates == unrolled.simplify().num_gates < unrolled.num_gates
    np.testing.assert_array_equal(saved.thresholds, thresholds.numpy())
    assert saved.counts == unrolled.counts
