"""What a network becomes between two passes, or is run within, is seen: the result is always that of its layers."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import Mock
from weakref import ref

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.module import register_module_forward_hook, register_module_full_backward_hook
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

from convlogic_core import ConvLogicLayer, GroupSum, LogicLayer, LogicNetwork, build_model, set_estimator
from convlogic_core.native_network import NativeNetwork
from convlogic_core.network import native_network
from convlogic_core.ops.backend import native_built
from convlogic_core.packed import is_packable

from .small_networks import SPEC, check_close, gradients_of, images, layers_of, some_loss

pytestmark = pytest.mark.skipif(not native_built(), reason="native networks need the extension")


def outcome(model: nn.Module, x: Tensor) -> list[Tensor] | str:
    """Scores and gradients, or which error there was."""
    try:
        return [model(x), *gradients_of(model, x, some_loss)]
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        return type(error).__name__


def replaced(model: Any, number: int, change: Callable[[Tensor], Tensor]) -> None:
    model[number].weights = nn.Parameter(change(model[number].weights.detach()).clone())


def in_place(model: Any, number: int, change: Callable[[Tensor], Tensor]) -> None:
    model[number].weights.data = change(model[number].weights.data)


def method(layer: Any, name: str, change: Callable[[Any], Any]) -> None:
    original = getattr(layer, name)
    setattr(layer, name, lambda *arguments: change(original(*arguments)))


def transposed(tensor: Tensor) -> Tensor:
    return tensor.mT.contiguous().mT


# what is done to a model that has run as a whole, and whether it still does
CHANGES: dict[str, tuple[bool, Callable[[Any], object]]] = {
    "fewer gates": (False, lambda m: replaced(m, 4, lambda w: w[:3])),
    "fewer logits": (False, lambda m: replaced(m, 4, lambda w: w[:, :4])),
    "fewer logits of all": (False, lambda m: [replaced(m, i, lambda w: w[..., :4]) for i in (0, 1, 3, 4, 5)]),
    "fewer gates in place": (False, lambda m: in_place(m, 4, lambda w: w[:3])),
    "fewer logits in place": (False, lambda m: in_place(m, 4, lambda w: w[:, :4])),
    "transposed weights": (False, lambda m: in_place(m, 4, transposed)),
    "weights of another type": (False, lambda m: in_place(m, 0, lambda w: w.double())),
    "weights elsewhere": (True, lambda m: in_place(m, 0, lambda w: -w)),
    "other tree_depth": (True, lambda m: setattr(m[1], "tree_depth", 3)),
    "other out_channels": (True, lambda m: setattr(m[0], "out_channels", 400)),
    "other out_dim": (True, lambda m: setattr(m[4], "out_dim", 400)),
    "a long selection": (False, lambda m: setattr(m[0], "selection", m[0].selection.long())),
    "a short selection": (False, lambda m: setattr(m[0], "selection", m[0].selection[:1])),
    "a flat selection": (False, lambda m: setattr(m[0], "selection", m[0].selection.flatten())),
    "int32 indices": (False, lambda m: [setattr(m[i], "indices_0", m[i].indices_0.int()) for i in (3, 4, 5)]),
    "fewer indices": (False, lambda m: setattr(m[3], "indices_0", m[3].indices_0[:-1])),
    "another parametrization": (False, lambda m: setattr(m[1], "parametrization", "iwp")),
    "mixed estimators": (False, lambda m: setattr(m[0], "estimator", "ste")),
    "a learnable temperature": (False, lambda m: setattr(m[-1], "tau", nn.Parameter(torch.tensor(0.4)))),
    "a tensor as temperature": (False, lambda m: setattr(m[-1], "tau", torch.tensor(0.4))),
    "numpy's temperature": (True, lambda m: setattr(m[-1], "tau", np.float64(0.4))),
    "other classes": (True, lambda m: setattr(m[-1], "k", 2)),
    "classes that do not divide": (False, lambda m: setattr(m[-1], "k", 5)),
    "numpy's factor": (False, lambda m: setattr(m[4], "grad_factor", np.float32(2.0))),
    "numpy's double factor": (False, lambda m: setattr(m[4], "grad_factor", np.float64(2.0))),
    "another forward": (False, lambda m: method(m[0], "forward", lambda y: 1 - y)),
    "other coefficients": (False, lambda m: method(m[0], "coefficients", lambda c: c * 0.5)),
    "another flatten": (False, lambda m: method(m[2], "forward", lambda y: 1 - y)),
    "another head": (False, lambda m: method(m[-1], "forward", lambda y: 1 - y)),
    "a layer twice": (False, lambda m: m.insert(5, m[4])),
}


@pytest.mark.parametrize("case", CHANGES)
def test_changes_are_seen(case: str, whole: Mock) -> None:
    as_a_whole, change = CHANGES[case]
    x, model, layers = images(40), build_model(SPEC, 3), layers_of(SPEC, 3)
    model(x)
    for each in (model, layers):
        change(each)
    whole.reset_mock()
    found, expected = outcome(model, x), outcome(layers, x)
    if isinstance(expected, str):
        assert found == expected
    else:
        check_close(found, expected)
    assert whole.called == as_a_whole


@pytest.mark.parametrize("kind", [float, np.float64, np.float32, torch.tensor])
def test_a_temperature_that_is_annealed(kind: Callable[[float], Any]) -> None:
    x, model, layers = images(9), build_model(SPEC, 3), layers_of(SPEC, 3)
    for tau in (0.5, 1.0, 2.0):
        for each in (model, layers):
            each[-1].tau = kind(tau)
            each.train()
        torch.testing.assert_close(model(x), layers(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.eval()(x), layers.eval()(x), rtol=1e-5, atol=1e-5)


def test_a_factor_that_is_changed() -> None:
    x, model, layers = images(9), build_model(SPEC, 3), layers_of(SPEC, 3)
    for factor in (1.0, 2.0, 3.0):
        for each in (model, layers):
            each[4].grad_factor = np.float32(factor)
        check_close(gradients_of(model, x, some_loss), gradients_of(layers, x, some_loss))


def test_a_learnable_temperature_gets_its_gradient() -> None:
    gradients = []
    for model in (build_model(SPEC, 3), layers_of(SPEC, 3)):
        model(images(9))
        model[-1].tau = nn.Parameter(torch.tensor(0.4))
        gradients.append(gradients_of(model, images(9), some_loss))
    assert len(gradients[0]) == 6
    check_close(*gradients)


def test_a_layer_twice_runs_twice() -> None:
    def build(kind: type[nn.Sequential]) -> nn.Sequential:
        conv, again = ConvLogicLayer(2, 4, seed=1), ConvLogicLayer(4, 4, pool=1, seed=5)
        dense = LogicLayer(80, 80, seed=2)
        return kind(conv, again, again, nn.Flatten(), dense, dense, GroupSum(4, 2.0))

    model, layers, x = build(LogicNetwork), build(nn.Sequential), images(9)
    check_close(outcome(model, x), outcome(layers, x))
    assert native_network(layers, x.shape[1:]) is None
    for each in (model.eval(), layers.eval()):
        assert not is_packable(each)
    torch.testing.assert_close(model(x), layers(x))


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("register", [register_module_forward_hook, register_module_full_backward_hook])
def test_hooks_of_all_modules(register: Callable[..., Any]) -> None:
    calls: list[set[type]] = []
    for model in (build_model(SPEC, 3), layers_of(SPEC, 3)):
        model(images(9))
        seen: set[type] = set()
        handle = register(lambda module, *_, seen=seen: seen.add(type(module)))
        try:
            model(images(9)).sum().backward()
        finally:
            handle.remove()
        calls.append(seen - {LogicNetwork, nn.Sequential})
    assert calls[0] == calls[1] == {ConvLogicLayer, nn.Flatten, LogicLayer, GroupSum}


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_mode_sees_the_operations_of_the_layers(whole: Mock) -> None:
    seen = []
    for model in (build_model(SPEC, 3), layers_of(SPEC, 3)):
        with Operations() as operations:
            model(images(9))
        seen.append(operations.seen)
    assert seen[0] == seen[1] and "convlogic.logic_tree.default" in seen[0]
    assert not whole.called


@pytest.mark.parametrize("implementation", ["auto", "python"])
def test_function_transforms(implementation: str, whole: Mock) -> None:
    x, found = images(5), []
    for build in (build_model(SPEC, 3, implementation), nn.Sequential(*build_model(SPEC, 3, implementation))):
        stacked = {name: torch.stack([w.detach(), -w.detach()]) for name, w in build.named_parameters()}
        found.append(vmap(lambda weights, model=build: functional_call(model, weights, x))(stacked))
        weights = {name: w.detach() for name, w in build.named_parameters()}
        loss = torch.func.grad(lambda weights, model=build: some_loss(functional_call(model, weights, x)))
        found[-1] = [found[-1], *loss(weights).values()]
    torch.testing.assert_close(*found)
    assert not whole.called


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_traces_run_on_other_images() -> None:
    model, x = build_model(SPEC, 3), images(9)
    traced = torch.jit.trace(model, x, check_trace=False)
    torch.testing.assert_close(traced(x.flip(0)), model(x.flip(0)), rtol=1e-5, atol=1e-5)


def test_weights_of_a_subclass_go_through_the_layers(whole: Mock) -> None:
    x, found = images(9), []
    for model in (build_model(SPEC, 3), layers_of(SPEC, 3)):
        for layer in (model[0], model[1], model[3], model[4], model[5]):
            layer.weights = nn.Parameter(TwoTensor(layer.weights.detach().clone(), layer.weights.detach().clone()))
        found.append(model(x).a)
    torch.testing.assert_close(*found)
    assert not whole.called


def test_images_of_another_type_are_refused_as_by_the_layers() -> None:
    for model in (build_model(SPEC, 3), layers_of(SPEC, 3)):
        with pytest.raises(ValueError, match="of one dtype"):
            model(images(9).double())


def test_layers_of_two_parametrizations(whole: Mock) -> None:
    def build(kind: type[nn.Sequential]) -> nn.Sequential:
        conv = ConvLogicLayer(2, 4, seed=1, parametrization="iwp")
        return kind(conv, nn.Flatten(), LogicLayer(80, 60, seed=2), GroupSum(3, 2.0))

    x = images(9)
    check_close(outcome(build(LogicNetwork), x), outcome(build(nn.Sequential), x))
    assert not whole.called


def two_sizes(kind: type[nn.Sequential]) -> tuple[nn.Sequential, list[Tensor]]:
    """A network, and images of two sizes that it takes."""
    layers = ConvLogicLayer(2, 4, seed=1), nn.Flatten(), LogicLayer(80, 60, seed=2), GroupSum(3, 2.0)
    generator = torch.Generator().manual_seed(0)
    return kind(*layers), [torch.rand(9, 2, *size, generator=generator) for size in ((11, 9), (10, 8))]


def test_images_of_two_sizes_in_turn(whole: Mock) -> None:
    model, sizes = two_sizes(LogicNetwork)
    layers, _ = two_sizes(nn.Sequential)
    for x in (*sizes, *sizes):
        check_close(outcome(model, x), outcome(layers, x))
    assert whole.call_count == 8
    network = native_network(model, sizes[0].shape[1:])
    assert network is not None and [network.trains_on(x) for x in sizes] == [True, False]


def test_images_of_another_size_while_a_network_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread's pass, in the middle of this one's look for a way."""
    model, (x, other) = two_sizes(LogicNetwork)
    layers, _ = two_sizes(nn.Sequential)
    make, during = NativeNetwork.of, [other]

    def interrupted(*arguments: Any) -> NativeNetwork | None:
        network = make(*arguments)
        if during:
            model(during.pop())
        return network

    monkeypatch.setattr(NativeNetwork, "of", interrupted)
    for images_of_a_size in (x, other, x):
        torch.testing.assert_close(model(images_of_a_size), layers(images_of_a_size), rtol=1e-5, atol=1e-5)


def test_threads_may_use_a_new_network() -> None:
    expected = gradients_of(build_model(SPEC, 3), images(40), some_loss)
    for _ in range(10):
        model = build_model(SPEC, 3)
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _, m=model: gradients_of(m, images(40), some_loss), range(4)):
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_wiring_is_held_until_other_wiring_is_seen() -> None:
    """Or other wiring could come to lie in its place, and be taken for it."""
    model, x = build_model(SPEC, 3), images(9)
    model(x)
    wiring = ref(model[3].indices_0)
    model[3].indices_0 = model[3].indices_1.clone()
    assert wiring() is not None
    model(x)
    assert wiring() is None


def test_a_network_is_made_once_whatever_weights_it_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    make = Mock(side_effect=NativeNetwork.of)
    monkeypatch.setattr(NativeNetwork, "of", make)
    model, x = build_model(SPEC, 3), images(9)
    for _ in range(3):
        weights = {name: -w for name, w in model.named_parameters()}
        functional_call(model, weights, x).sum().backward()
        for w in model.parameters():
            w.data = w.data - 0.1 * w.grad
    assert make.call_count == 1


def test_evaluation_makes_no_native_network() -> None:
    model, x = build_model(SPEC, 3).eval(), images(9)
    model(x)
    ways = model._fast_ways.of(model, x)
    assert ways is not None and "_network" not in vars(ways.network)
    model.train()(x)
    assert "_network" in vars(ways.network)


def test_a_network_pickled_by_an_earlier_version() -> None:
    model, x = build_model(SPEC, 3), images(9)
    state = {name: value for name, value in copy.deepcopy(model).__getstate__().items() if name != "_fast_ways"}
    twin = LogicNetwork.__new__(LogicNetwork)
    twin.__setstate__(state)
    set_estimator(twin, "ste")
    set_estimator(model, "ste")
    assert torch.equal(twin(x), model(x))
