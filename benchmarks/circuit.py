"""Images a second through a circuit, on one core: ours without compilation, our C, and the peer's C of the same gates.

    python -m search.train benchmarks/models/mnist_s.yaml --data-dir ROOT
    python -m benchmarks.circuit runs/mnist_s/seed_N --data-dir ROOT --peer-python PYTHON3.12 --json circuit.json

Packing of bytes into words and class sums are included everywhere, and the highest class where the way gives one; what
a way compiles is stated beside it. MODEL is a folder of search.train or a file of Circuit.save. Of a folder's network
the circuit's logits, before and after simplification, are first compared with the discrete model's on every image of
the test set.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from convlogic_core.circuit import Circuit
from convlogic_core.circuit.c_source import c_source
from search.circuit_check import CompiledCircuit, compile_c
from search.circuit_files import circuit_of, load_model
from search.data import load_test
from search.training import encode

from .machine import circumstances

PEER_GATES: Final = {
    1: "AND",
    2: "AND_NOT_B",
    4: "AND_NOT_A",
    6: "XOR",
    7: "OR",
}
C_WAYS: Final = {
    "our C, 64-bit words": ("-O3", "-DWORD_BITS=64"),
    "our C, this machine's words": ("-O3", "-march=native"),
}


def durations(action: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of some runs after a first one."""
    action()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return seconds


def row(name: str, way: str, num_images: int, seconds: list[float], **more: Any) -> dict[str, Any]:
    """A line of the report."""
    return {
        "circuit": name,
        "way": way,
        "images_per_second": num_images / statistics.median(seconds),
        "best_images_per_second": num_images / min(seconds),
        "n": len(seconds),
        **more,
    }


def equal_on_test_images(folder: Path, data_dir: str | None) -> tuple[Circuit, dict[str, Any]]:
    """The simplified circuit of a trained network, on how many test images it gave the discrete model's logits (all),
    and the accuracy on them.

    Raises:
        RuntimeError: logits differ.
    """
    file, model, thresholds = load_model(folder)
    circuit = circuit_of(file, model, thresholds)
    test = encode(load_test(file.candidate.data.dataset, data_dir), thresholds, torch.device("cpu"))
    num_right = 0
    for x, y in zip(test.x.split(1000), test.y.split(1000), strict=True):
        with torch.no_grad():
            logits = model(x.float())
        for form in (circuit, circuit.simplify()):
            if not torch.equal(form(x), logits):
                raise RuntimeError(f"the circuit of {folder} does not give the logits of the discrete model")
        num_right += int((circuit.simplify().classes(x) == y).sum())
    facts = {"images_equal": len(test.y), "test_acc_discrete": num_right / len(test.y)}
    return circuit.simplify(), facts


def measure(
    path: Path, num_images: int, repeats: int, peer_python: str | None, data_dir: str | None
) -> list[dict[str, Any]]:
    """All ways of one circuit."""
    facts: dict[str, Any] = {}
    if path.is_dir():
        name = path.resolve().parent.name
        circuit, facts = equal_on_test_images(path, data_dir)
    else:
        name, circuit = path.stem, Circuit.load(path).simplify()
    bits = np.random.default_rng(0).integers(0, 2, (num_images, circuit.num_inputs)).astype(np.uint8)
    x = torch.from_numpy(bits)
    expected = circuit.sums(x)
    facts |= {"core": circuit.counts.core, "total": circuit.counts.total}
    rows = [row(name, "Circuit", num_images, durations(lambda: circuit.classes(x), repeats), **facts)]
    bits_only = replace(circuit, thresholds=None)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "circuit.c"
        source.write_text(c_source(bits_only))
        for way, flags in C_WAYS.items():
            library, compile_s = compile_c(source, Path(folder), ("-std=c99", *flags))
            compiled = CompiledCircuit(library.rename(Path(folder) / f"{way}.so"), "circuit", circuit.num_classes)
            if not np.array_equal(compiled.sums(bits), expected.numpy()):
                raise RuntimeError(f"{way} of {name} does not give the sums of the circuit")
            timed = durations(lambda compiled=compiled: compiled.classify(bits), repeats)  # type: ignore[misc]
            rows.append(row(name, way, num_images, timed, compile_s=compile_s, **facts))
        if peer_python:
            file = Path(folder) / "peer.json"
            file.write_text(json.dumps(for_peer(circuit)))
            script = Path(__file__).with_name("circuit_peer.py")
            done = subprocess.run(
                [peer_python, str(script), str(file), str(num_images), str(repeats)],
                capture_output=True,
                text=True,
                check=True,
            )
            peer = json.loads(done.stdout)
            if peer["sums"] != expected.reshape(-1).tolist():
                raise RuntimeError(f"torchlogix's C of {name} does not give the sums of the circuit")
            timed = peer["durations_s"]
            rows.append(row(name, "torchlogix's C, gcc -O3", num_images, timed, compile_s=peer["compile_s"], **facts))
    return rows


def for_peer(circuit: Circuit) -> dict[str, Any]:
    """A simplified circuit as torchlogix writes them: nodes without our constant, complements as gates of their own."""
    gates = [
        {"gate_id": circuit.num_inputs + g, "op": PEER_GATES[int(gate)], "in0": int(a) - 1, "in1": int(b) - 1}
        for g, (a, b, gate) in enumerate(zip(circuit.a, circuit.b, circuit.gate, strict=True))
    ]
    next_node = circuit.num_inputs + circuit.num_gates
    outputs: list[int] = []
    for node, inverted in zip(circuit.outputs.tolist(), circuit.inverted.tolist(), strict=True):
        if node and not inverted:
            outputs.append(node - 1)
            continue
        constant = "CONST_TRUE" if inverted else "CONST_FALSE"
        gates.append(
            {"gate_id": next_node, "op": "NOT" if node else constant, "in0": node - 1 if node else -1, "in1": -1}
        )
        outputs.append(next_node)
        next_node += 1
    group = len(outputs) // circuit.num_classes
    sums = [
        {"node_id": next_node + k, "input_ids": outputs[k * group : (k + 1) * group]}
        for k in range(circuit.num_classes)
    ]
    return {
        "n_inputs": circuit.num_inputs,
        "input_shape": [circuit.num_inputs],
        "outputs": [one["node_id"] for one in sums],
        "output_shape": [circuit.num_classes],
        "gates": gates,
        "sum_nodes": sums,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--data-dir", help="torchvision's root, for the test images")
    parser.add_argument("--images", type=int, default=64 * 160)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--peer-python", help="a Python 3.12 that has torchlogix 0.2.2")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    for model in options.models:
        for line in measure(model, options.images, options.repeats, options.peer_python, options.data_dir):
            results.append(line)
            compiled = f"  compiled in {line['compile_s']:.1f} s" if "compile_s" in line else ""
            print(
                f"{line['circuit']:14} {line['core']:7,} core gates  {line['way']:28} median "
                f"{line['images_per_second'] / 1e6:6.2f} M images/s  best {line['best_images_per_second'] / 1e6:6.2f}"
                f"  n={line['n']}{compiled}"
            )
    if options.json:
        options.json.write_text(json.dumps({**circumstances(1), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
