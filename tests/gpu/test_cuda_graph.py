"""A training step captured in a CUDA graph computes what the eager step computes."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from convlogic_core import ConvLogicLayer, GroupSum, LogicLayer

pytestmark = pytest.mark.gpu

NUM_STEPS, WARM_UP = 8, 3


def small_model():
    return torch.nn.Sequential(
        ConvLogicLayer(1, 8, seed=1, implementation="cuda"),
        ConvLogicLayer(8, 16, seed=2, tree_depth=2, implementation="cuda"),
        torch.nn.Flatten(),
        LogicLayer(16 * 3 * 3, 200, seed=3, implementation="cuda"),
        GroupSum(10, tau=4.0),
    ).cuda()


def train(captured):
    """The weights after the steps, WARM_UP of them eager and the others replayed where captured."""
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, capturable=True)
    optimizer._warned_capturable_if_run_uncaptured = True  # eager steps are meant here
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(NUM_STEPS, 96, 1, 12, 12, generator=generator).cuda()
    labels = torch.randint(0, 10, (NUM_STEPS, 96), generator=generator).cuda()
    x, target = images[0].clone(), labels[0].clone()

    def step():
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(model(x), target).backward()
        optimizer.step()

    def load(index):
        x.copy_(images[index])
        target.copy_(labels[index])

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for index in range(WARM_UP):
            load(index)
            step()
    torch.cuda.current_stream().wait_stream(stream)
    replay = step
    if captured:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        replay = graph.replay
    for index in range(WARM_UP, NUM_STEPS):
        load(index)
        replay()
    torch.cuda.synchronize()
    return [parameter.detach().cpu() for parameter in model.parameters()]


def test_captured_steps_equal_eager_steps():
    eager, captured = train(captured=False), train(captured=True)
    before = [parameter.detach().cpu() for parameter in small_model().parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(eager, before, strict=True))
    for ours, expected in zip(captured, eager, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_same_seed_gives_the_same_bits():
    assert all(torch.equal(a, b) for a, b in zip(train(captured=True), train(captured=True), strict=True))
