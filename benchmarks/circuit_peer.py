"""torchlogix's compiled circuit (https://pypi.org/project/torchlogix/, 0.2.2), timed in an interpreter of its own: it
needs Python 3.12. Imports nothing of this project.

    python circuit_peer.py CIRCUIT.json NUM_IMAGES REPEATS

reads a circuit as torchlogix writes them and prints {"compile_s": ..., "durations_s": [...], "sums": [...]} as JSON.
"""

import importlib
import json
import sys
import time
from typing import Any


def main(file: str, num_images: int, repeats: int) -> dict[str, Any]:
    import numpy as np

    Circuit: Any = importlib.import_module("torchlogix.circuit").Circuit
    circuit = Circuit.from_json_file(file)
    start = time.perf_counter()
    circuit.compile(opt_level=3, pack_bits=64)
    compile_s = time.perf_counter() - start
    bits = np.random.default_rng(0).integers(0, 2, (num_images, circuit.n_inputs)).astype(np.bool_)
    sums = circuit(bits, use_compiled=True)
    durations_s = []
    for _ in range(repeats):
        start = time.perf_counter()
        circuit(bits, use_compiled=True)
        durations_s.append(time.perf_counter() - start)
    return {"compile_s": compile_s, "durations_s": durations_s, "sums": sums.astype(int).ravel().tolist()}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
