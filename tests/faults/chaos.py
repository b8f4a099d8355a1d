"""make chaos: a hundred processes killed at random, drivers and workers, and studies that must come out sound.

A study of 40 trials on digits is run by two Ray workers; should it end before the last kill, another one follows.
Exits 1 if anything does not hold. Not part of the tests: it takes as long as some hundred workers need to start.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from search.tracking import MlflowClient
from tests.faults.forked import ForkedDriver
from tests.faults.invariants import assert_sound, load_study, repeated_rungs

NUM_WORKERS = 2
OPTIONS = ("--space", "digits_small", "--sampler", "random", "--workers", str(NUM_WORKERS))
OPTIONS += ("--epochs", "27", "--limit-train", "300")
TRAINING = r"ray::\w*Worker\.run"
SHARE_OF_WORKERS = 0.7  # of the kills: a driver takes longer to come back
SHARE_AFTER_AN_EPOCH = 0.8  # the others may be made while everything is still starting
MAX_PAUSE_S = 2.0


@dataclass
class Chaos:
    """Kills that are still to be made, and those that were."""

    remaining: int
    random: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    stops: int = 0  # drivers that gave up in one line, as after three trials that lost three workers each

    def run_study(self, driver: ForkedDriver) -> Counter[str]:
        """Until it has its trials; the processes killed meanwhile."""
        before = self.kills.copy()
        while True:
            process = driver.start()
            self.torment(driver, process)
            process.join()
            if process.exitcode == 0:
                return self.kills - before
            if process.exitcode != -signal.SIGKILL:
                assert process.exitcode == 1 and "Traceback" not in driver.output, driver.output[-2000:]
                self.stops += 1

    def torment(self, driver: ForkedDriver, process: BaseProcess) -> None:
        """Kill workers of a driver until it ends or is killed itself."""
        log = driver.folder / "epochs.txt"
        while self.remaining:
            seen, patience = log.stat().st_size if log.exists() else 0, self.random.random() < SHARE_AFTER_AN_EPOCH
            while patience and process.is_alive() and (not log.exists() or log.stat().st_size == seen):
                process.join(0.05)
            process.join(self.random.uniform(0, MAX_PAUSE_S))
            if not process.is_alive():
                return
            if self.random.random() < SHARE_OF_WORKERS:
                training = sorted(driver.processes(TRAINING))
                if training:
                    self.kill("worker", self.random.choice(training))
            else:
                assert process.pid is not None
                self.kill("driver", process.pid)
                return

    def kill(self, what: str, pid: int) -> None:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # it ended by itself a moment ago
            return
        self.kills[what] += 1
        self.remaining -= 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--executor", choices=["ray", "inline"], default="ray", help="inline: only drivers die")
    parser.add_argument("--trials", type=int, default=40, help="of each study")
    parser.add_argument("--seed", type=int, default=None, help="of what is killed when")
    arguments = parser.parse_args()
    seed = random.randrange(2**32) if arguments.seed is None else arguments.seed
    chaos, begin, violations, number = Chaos(arguments.kills, random.Random(seed)), time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory(prefix="chaos") as folder:
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()  # makes its tables
        while chaos.remaining:
            number += 1
            options = (*OPTIONS, "--executor", arguments.executor)
            options += ("--trials", str(arguments.trials), "--seed", str(number))
            driver = ForkedDriver(Path(folder), options, study=f"chaos_{number}")
            for log in ("epochs.txt", "output.txt"):
                (Path(folder) / log).unlink(missing_ok=True)
            try:
                kills = chaos.run_study(driver)
                workers = NUM_WORKERS if arguments.executor == "ray" else 1
                views = assert_sound(driver, arguments.trials, kills["worker"] + workers * kills["driver"])
                driver.wait_until_gone(but="$")
            except AssertionError as error:
                violations += 1
                print(f"study {number}: VIOLATION {error}", flush=True)
                continue
            finally:
                driver.kill_all()
            states = Counter(view.state for view in views)
            repeated = repeated_rungs(driver, load_study(driver).user_attrs["identity"]["rungs"]).total()
            print(
                f"study {number}: sound after {kills.total()} kills; {dict(states)}; {repeated} rungs repeated",
                flush=True,
            )
    print(
        f"{chaos.kills.total()} kills ({chaos.kills['driver']} drivers, {chaos.kills['worker']} workers), "
        f"{chaos.stops} drivers stopped in one line, {number} studies of {arguments.trials} trials, "
        f"{violations} violations, {time.monotonic() - begin:.0f} s, seed {seed}"
    )
    sys.exit(violations > 0)


if __name__ == "__main__":
    main()
