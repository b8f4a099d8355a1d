"""When `GraphStep` captures, replays and starts again, with a graph that is none: what it captured runs on the CPU.

On a GPU: tests/gpu/test_training_step.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from weakref import WeakSet

import pytest
import torch
from torch import Tensor

from convlogic_core import ConvSpec, DenseSpec, ModelSpec, build_model, set_estimator
from convlogic_core.graph_step import EAGER_STEPS, GraphStep
from convlogic_core.plain_step import PlainStep

SPEC = ModelSpec((1, 6, 6), (ConvSpec(3, kernel=3, tree_depth=1),), (DenseSpec(20), DenseSpec(12)), 3, 1.0)
LR = 2.0**-6


class FakeGraph:
    """Runs the step again that was captured."""

    def __init__(self, cuda: "FakeCuda") -> None:
        cuda.graphs.add(self)

    def replay(self) -> None:
        self.loss.copy_(self.run())


class FakeCuda:
    """What GraphStep uses of torch.cuda; `did` lists "eager", "capture" and "replay"."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.did: list[str] = []
        self.stream = SimpleNamespace(wait_stream=lambda other: None)
        self.in_use: list[object] = []
        self.graphs: WeakSet[FakeGraph] = WeakSet()
        self.capturing: FakeGraph | None = None
        run = PlainStep.run

        def fake_run(step: PlainStep, rows: Tensor) -> Tensor:
            if self.capturing is None:
                assert self.in_use == [self.stream]
                self.did.append("eager")
                return run(step, rows)
            self.did.append("capture")
            graph = self.capturing

            def replay() -> Tensor:
                self.did.append("replay")
                return run(step, rows)

            graph.run, graph.loss = replay, torch.full((), torch.nan)
            return graph.loss

        monkeypatch.setattr(PlainStep, "run", fake_run)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self.stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.stream)
        monkeypatch.setattr(torch.cuda, "stream", self.use)
        monkeypatch.setattr(torch.cuda, "device", nullcontext)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: FakeGraph(self))
        monkeypatch.setattr(torch.cuda, "graph", self.capture)

    @contextmanager
    def use(self, stream: object) -> Iterator[None]:
        self.in_use.append(stream)
        yield
        self.in_use.pop()

    @contextmanager
    def capture(self, graph: FakeGraph, stream: object) -> Iterator[None]:
        assert stream is self.stream and len(self.graphs) == 1, "the graph before is dropped first"
        self.capturing = graph
        yield
        self.capturing = None

    def take(self) -> str:
        """What was done since the last call, a letter each."""
        letters = "".join(name[0] for name in self.did)
        self.did.clear()
        return letters


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


class Training:
    """A model with its step, on 40 random images."""

    def __init__(self, kind: type[GraphStep] | type[PlainStep] = GraphStep) -> None:
        generator = torch.Generator().manual_seed(1)
        self.model = build_model(SPEC, 3)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.5, fused=True)
        x = torch.randint(0, 2, (40, 1, 6, 6), generator=generator, dtype=torch.uint8)
        self.step = kind(self.model, self.optimizer, x, torch.arange(40) % 3)
        self.generator = generator

    def run(self, num_steps: int, batch: int = 16, lr: float = LR) -> list[Tensor]:
        return [self.step(torch.randperm(40, generator=self.generator)[:batch], lr) for _ in range(num_steps)]


WARM_UP = "e" * EAGER_STEPS


def test_full_batches_are_captured_once_and_replayed(cuda: FakeCuda) -> None:
    training = Training()
    training.run(EAGER_STEPS)
    assert cuda.take() == WARM_UP
    training.run(3)
    assert cuda.take() == "crrr"


def test_ragged_batches_are_eager_and_no_warm_up(cuda: FakeCuda) -> None:
    training = Training()
    training.run(1)
    training.run(EAGER_STEPS, batch=7)
    training.run(EAGER_STEPS)
    assert cuda.take() == "e" * (2 * EAGER_STEPS) + "cr"
    training.run(1, batch=7)
    training.run(1)
    assert cuda.take() == "er"


def test_each_estimator_is_warmed_up_and_captured(cuda: FakeCuda) -> None:
    training = Training()
    training.run(EAGER_STEPS + 2)
    set_estimator(training.model, "ste")
    training.run(EAGER_STEPS + 2)
    assert cuda.take() == 2 * (WARM_UP + "crr")


CHANGES = [
    "weights and wiring",
    "optimizer",
    "rate as a number",
    "moved weights",
    "decay",
    "tau",
    "grad_factor",
    "frozen",
]


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_graph_cannot_see_starts_it_again(cuda: FakeCuda, what: str) -> None:
    training = Training()
    training.run(EAGER_STEPS + 2)
    cuda.take()
    state = training.optimizer.state_dict()
    match what:
        case "weights and wiring":
            training.model.load_state_dict(build_model(SPEC, 4).state_dict())
        case "optimizer":
            training.optimizer.load_state_dict(state)
        case "rate as a number":
            training.optimizer.param_groups[0] |= {"lr": 0.1, "capturable": False}
        case "moved weights":
            parameter = next(training.model.parameters())
            parameter.data = parameter.data.clone()
        case "decay":
            training.optimizer.param_groups[0]["weight_decay"] = 0.25
        case "tau":
            training.model[-1].tau = 0.3
        case "grad_factor":
            training.model[0].grad_factor = 2.0
        case "frozen":
            training.model[0].weights.requires_grad_(False)
    training.run(EAGER_STEPS + 2)
    assert cuda.take() == WARM_UP + "crr"


@pytest.mark.parametrize("of", ["module", "weights", "optimizer"])
def test_steps_with_hooks_are_eager(cuda: FakeCuda, of: str) -> None:
    """A replay would not run them."""
    training = Training()
    training.run(EAGER_STEPS + 2)
    cuda.take()
    calls: list[int] = []
    match of:
        case "module":
            handle = training.model[0].register_forward_hook(lambda *_: calls.append(1))
        case "weights":
            handle = training.model[0].weights.register_hook(lambda *_: calls.append(1))
        case "optimizer":
            handle = training.optimizer.register_step_post_hook(lambda *_: calls.append(1))
    training.run(EAGER_STEPS + 2)
    assert cuda.take() == "e" * (EAGER_STEPS + 2) and len(calls) == EAGER_STEPS + 2
    handle.remove()
    training.run(EAGER_STEPS + 2)
    assert cuda.take().endswith("rr")


def test_modes_need_no_new_graph(cuda: FakeCuda) -> None:
    """An evaluation between two steps leaves the model in eval mode; the step itself trains."""
    training = Training()
    training.run(EAGER_STEPS + 1)
    training.model.eval()
    training.run(1)
    assert cuda.take() == WARM_UP + "crr"


def test_weights_changed_in_place_need_no_new_graph(cuda: FakeCuda) -> None:
    training = Training()
    training.run(EAGER_STEPS + 1)
    with torch.no_grad():
        next(training.model.parameters()).add_(1.0)
    training.run(1)
    assert cuda.take() == WARM_UP + "crr"


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1, dtype=torch.float64)])
def test_the_rate_is_a_float32_tensor(cuda: FakeCuda, lr: float | Tensor) -> None:
    training = Training()
    (group,) = training.optimizer.param_groups
    group["lr"] = lr
    training.run(1)
    assert group["lr"].dtype == torch.float32 and group["lr"].item() == LR
    rate = group["lr"]
    training.run(EAGER_STEPS + 1, lr=LR / 2)
    assert group["lr"] is rate and rate.item() == LR / 2


def test_steps_are_those_of_the_layers(cuda: FakeCuda) -> None:
    """Rows, rate and loss of a replay are its own; ragged batches, a new estimator and a restored state fit in."""
    replayed, eager = Training(), Training(PlainStep)
    cuda.in_use = [cuda.stream]
    expected = [*eager.run(6), *eager.run(1, batch=7), *eager.run(3, lr=LR / 4)]
    set_estimator(eager.model, "ste")
    expected += eager.run(6)
    cuda.in_use = []
    cuda.take()
    losses = [*replayed.run(6), *replayed.run(1, batch=7), *replayed.run(3, lr=LR / 4)]
    replayed.optimizer.load_state_dict(replayed.optimizer.state_dict())
    set_estimator(replayed.model, "ste")
    losses += replayed.run(6)
    assert cuda.take() == WARM_UP + "crrr" + "e" + "rrr" + WARM_UP + "crrr"
    assert torch.equal(torch.stack(losses), torch.stack(expected))
    for ours, theirs in zip(replayed.model.parameters(), eager.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
