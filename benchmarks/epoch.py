"""Time of epochs of a preset on a real dataset, soft and discrete evaluation included, by the training loop itself.

    python -m benchmarks.epoch --data-dir ROOT --json epoch.json

Start-up (imports), loading and encoding are timed apart. The validation set of the split is evaluated every epoch;
its discrete evaluation is then timed again by itself, outside of the epoch's seconds.
"""

import time

STARTED = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402
from dataclasses import asdict, replace  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402

from convlogic_core import PRESETS  # noqa: E402
from search.data import load_dataset  # noqa: E402
from search.training import TrainingRun, accuracy, encode_dataset  # noqa: E402
from spaces.candidate import Candidate, DataSpec, TrainSpec  # noqa: E402

from .machine import circumstances  # noqa: E402

IMPORTED = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="mnist_s")
    parser.add_argument("--parametrization", choices=["softmax", "iwp"], default="iwp")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-dir", help="torchvision's root")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--tau", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    model = replace(PRESETS[arguments.preset], parametrization=arguments.parametrization, tau=arguments.tau)
    data_spec = DataSpec(arguments.dataset)
    start = time.perf_counter()
    dataset = load_dataset(arguments.dataset, arguments.data_dir)
    loaded = time.perf_counter()
    data = encode_dataset(dataset, data_spec, torch.device(arguments.device))
    encoded = time.perf_counter()
    train = TrainSpec(arguments.lr, arguments.batch, arguments.epochs)
    run = TrainingRun(Candidate(data_spec, model, train), data, seed=0)
    built = time.perf_counter()
    report = circumstances(arguments.threads) | {
        "preset": arguments.preset,
        "parametrization": arguments.parametrization,
        "dataset": arguments.dataset,
        "batch": arguments.batch,
        "device": arguments.device,
        "num_train": len(data.train.y),
        "num_validation": len(data.validation.y),
        "import_s": IMPORTED - STARTED,
        "load_s": loaded - start,
        "encode_s": encoded - loaded,
        "build_s": built - encoded,
    }
    epochs = []
    print(
        f"{report['machine']}, {arguments.threads} threads: imports {report['import_s']:.2f} s, loading "
        f"{report['load_s']:.2f} s, encoding {report['encode_s']:.2f} s, building {report['build_s']:.2f} s"
    )
    for _ in range(arguments.epochs):
        start = time.perf_counter()
        record = run.run_epoch()
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        again = accuracy(run.model.eval(), data.validation)
        discrete_s = time.perf_counter() - start
        if again != record.acc_discrete:
            raise RuntimeError(f"discrete accuracy {again} is not that of the epoch, {record.acc_discrete}")
        share = discrete_s / seconds
        epochs.append({"seconds": seconds, "discrete_s": discrete_s, "discrete_share": share} | asdict(record))
        print(
            f"epoch {record.epoch}: {seconds:.2f} s with evaluation, of which discrete {1e3 * discrete_s:.1f} ms "
            f"({share:.2%}); training {record.images_per_second:,.0f} images/s, validation discrete "
            f"{record.acc_discrete:.2%}, soft {record.acc_soft:.2%}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(report | {"epochs": epochs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
