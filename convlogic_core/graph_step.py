"""The training step on a GPU: captured in a CUDA graph once, then replayed.

Shapes: N images, B batch.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from .plain_step import PlainStep
from .premises import has_hooks, premises

EAGER_STEPS: Final = 3  # before a graph is captured: allocations and library handles are then in place


class GraphStep:
    """Full batches are replayed from a CUDA graph, others go through the layers; x and y lie on one GPU.

    A graph holds addresses and the layers as they were. Where something else is set (an estimator, tau), or weights,
    moments, wiring or rate have come to lie elsewhere (`load_state_dict`), it is dropped, and the next is captured
    `EAGER_STEPS` full batches later. With hooks, which are Python, every step goes through the layers.
    """

    def __init__(self, model: nn.Module, optimizer: AdamW, x: Tensor, y: Tensor) -> None:
        self._plain = PlainStep(model, optimizer, x, y)
        self._device = x.device
        self._stream = torch.cuda.Stream(x.device)
        self._rows: Tensor | None = None
        self._captured: tuple[torch.cuda.CUDAGraph, Tensor] | None = None
        self._eager_steps = 0
        self._premises: list[object] = []
        self._held: list[object] = []
        # step() warns of every capturable optimizer that runs outside a capture, as eager steps do here on purpose
        optimizer._warned_capturable_if_run_uncaptured = True

    def __call__(self, rows: Tensor, lr: float) -> Tensor:
        self._make_capturable()
        if self._premises != self._present_premises():
            self._forget()
        if self._rows is None:
            self._rows = rows.clone()
        full = len(rows) == len(self._rows) and not self._has_hooks()
        if not full or self._eager_steps < EAGER_STEPS:
            loss = self._eager(rows, lr)
            self._eager_steps += full
            self._premises, self._held = self._present_premises(), self._present_tensors()
            return loss
        (group,) = self._plain.optimizer.param_groups
        group["lr"].fill_(lr)
        self._rows.copy_(rows)
        if self._captured is None:
            self._captured = self._capture(self._rows)
        graph, loss = self._captured
        graph.replay()
        return loss.clone()

    def _make_capturable(self) -> None:
        """The rate as a tensor that a captured step reads; again after a state was loaded that has it as a number."""
        (group,) = self._plain.optimizer.param_groups
        lr = group["lr"]
        group["capturable"] = True
        if not isinstance(lr, Tensor) or lr.device != self._device or lr.dtype != torch.float32:
            group["lr"] = torch.tensor(float(lr), dtype=torch.float32, device=self._device)

    def _present_tensors(self) -> list[object]:
        """What a captured step reads and writes in place. Held, so that no other tensor gets one of their addresses."""
        (group,) = self._plain.optimizer.param_groups
        states = [self._plain.optimizer.state.get(parameter, {}) for parameter in group["params"]]
        moments = [value for state in states for value in state.values()]
        model = self._plain.model
        return [group["lr"], *group["params"], *moments, *model.parameters(), *model.buffers()]

    def _present_premises(self) -> list[object]:
        """All that a graph of the step depends on and does not read anew at every replay."""
        (group,) = self._plain.optimizer.param_groups
        numbers = [value for name, value in group.items() if name not in ("params", "lr")]
        addresses = [value.data_ptr() if isinstance(value, Tensor) else value for value in self._present_tensors()]
        # with versions of the wiring: ops keep it in a form of their own, made anew by the next eager step
        return [premises(self._plain.model), numbers, addresses]

    def _has_hooks(self) -> bool:
        optimizer = self._plain.optimizer
        return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks) or any(
            has_hooks(module) for module in self._plain.model.modules()
        )

    def _forget(self) -> None:
        if self._captured is not None:
            torch.cuda.synchronize(self._device)  # it may still be running
            self._plain.optimizer.zero_grad(set_to_none=True)  # gradients lie in the graph's own memory
            self._captured = None
        self._eager_steps = 0

    def _eager(self, rows: Tensor, lr: float) -> Tensor:
        # what a graph will replay must not have run on the default stream first
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            loss = self._plain(rows, lr)
        current.wait_stream(self._stream)
        return loss

    def _capture(self, rows: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        self._plain.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device), torch.cuda.graph(graph, stream=self._stream):
            loss = self._plain.run(rows)
        return graph, loss
