"""Real learning curves of random configurations of digits_small, which `benchmarks.stopping` imitates.

    python -m benchmarks.digits_curves --trials 60 --json benchmarks/results/digits_curves.json

Every configuration is trained to the full budget; gates are counted where rungs are. What is there already is kept:
the same command with more trials goes on.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import optuna
import torch

from search.data import find_source, load_dataset
from search.training import Diverged, TrainingRun, derived_seed, encode_dataset
from spaces import SPACES
from spaces.candidate import Candidate
from spaces.space import Value

from .machine import circumstances

SPACE: Final = "digits_small"
SEED: Final = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", required=True, help="the curves")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dataset = load_dataset(SPACES[SPACE].data.dataset, None, None)
    data = encode_dataset(dataset, SPACES[SPACE].data, torch.device("cpu"))
    trials: list[dict[str, Any]] = []
    if arguments.json.exists():
        trials = json.loads(arguments.json.read_text())["trials"]
    for number, (params, candidate) in enumerate(configurations(arguments.trials)):
        if number < len(trials):
            continue
        trials.append(trained(params, TrainingRun(candidate, data, derived_seed(SEED, number))))
        print(number, f"{trials[-1]['acc_discrete'][-1]:.4f} {trials[-1]['duration_s']:.1f} s {params}", flush=True)
        report = circumstances(arguments.threads) | {"space": SPACE, "seed": SEED}
        lines = ",\n".join(json.dumps(trial) for trial in trials)
        arguments.json.write_text(f'{json.dumps(report)[:-1]}, "trials": [\n{lines}\n]}}\n')


def configurations(number: int) -> Iterator[tuple[dict[str, Value], Candidate]]:
    """The known configurations of the space, then random ones."""
    space = SPACES[SPACE]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=SEED))
    for known in space.known:
        study.enqueue_trial(known.params)
    while number:
        params = space.sample(study.ask())
        try:
            candidate = space.build(params, space.data, find_source(space.data.dataset).info, space.budget.epochs)
        except ValueError:
            continue
        yield params, candidate
        number -= 1


def trained(params: dict[str, Value], run: TrainingRun) -> dict[str, Any]:
    """Accuracies after every epoch, gates by rung; after a divergence, an accuracy of 0 to the end."""
    budget = SPACES[SPACE].budget
    accuracies: list[float] = []
    gates: dict[int, int] = {}
    start = time.process_time()  # other processes share the machine
    try:
        while run.epoch < budget.epochs:
            record = run.run_epoch()
            accuracies.append(round(record.acc_discrete, 4))
            if run.epoch in budget.rungs:
                total = run.with_gates(record).total_gates
                assert total is not None
                gates[run.epoch] = total
    except Diverged:
        accuracies += [0.0] * (budget.epochs - len(accuracies))
    return {
        "params": params,
        "duration_s": round(time.process_time() - start, 2),
        "total_gates": gates,
        "acc_discrete": accuracies,
    }


if __name__ == "__main__":
    main()
