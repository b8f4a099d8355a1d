"""What every space keeps, whichever family it is of."""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from convlogic_core import PRESETS, ConvSpec, raw_gates
from spaces import SPACES, Budget, Candidate, DataSpec, Space, TrainSpec
from spaces.space import Choice, InputInfo, Parameter, Range, Value

INPUT_INFO = {
    "digits": InputInfo((1, 28, 28), 10),
    "mnist": InputInfo((1, 28, 28), 10),
    "cifar10": InputInfo((3, 32, 32), 10),
}
EPOCHS = 9
every_space = pytest.mark.parametrize("space", SPACES.values(), ids=list(SPACES))


class UniformTrial:
    """What a space needs of a trial, drawn uniformly (log-uniformly where the domain says so), ends included."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.asked: list[str] = []

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return round(self._draw(name, low, high, log))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return self._draw(name, low, high, log)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.asked.append(name)
        return self._random.choice(choices)

    def _draw(self, name: str, low: float, high: float, log: bool) -> float:
        self.asked.append(name)
        if self._random.random() < 0.2:
            return self._random.choice([low, high])
        value = (
            math.exp(self._random.uniform(math.log(low), math.log(high))) if log else self._random.uniform(low, high)
        )
        return min(max(value, low), high)


def build(space: Space, params: dict[str, Value], epochs: int = EPOCHS) -> Candidate:
    return space.build(params, space.data, INPUT_INFO[space.data.dataset], epochs)


def contains(domain: Range | Choice, value: Value) -> bool:
    if isinstance(domain, Choice):
        return any(value == choice and type(value) is type(choice) for choice in domain.values)
    wants_integer = isinstance(domain.low, int) and isinstance(domain.high, int)
    return type(value) is (int if wants_integer else float) and domain.low <= value <= domain.high


def check_params(space: Space, params: dict[str, Value]) -> None:
    assert set(params) <= {parameter.name for parameter in space.parameters}
    for parameter in space.parameters:
        assert (parameter.name in params) == parameter.applies(params), parameter.name
        if parameter.name in params:
            assert contains(parameter.domain, params[parameter.name]), (parameter.name, params[parameter.name])


def test_the_registry_knows_each_space_by_its_name() -> None:
    assert SPACES
    for name, space in SPACES.items():
        assert space.name == name
        assert space.description


@every_space
def test_parameter_names_are_distinct_and_conditions_look_back(space: Space) -> None:
    seen: dict[str, Range | Choice] = {}
    for parameter in space.parameters:
        assert parameter.name not in seen
        if parameter.when is not None:
            name, values = parameter.when
            assert values
            assert all(contains(seen[name], value) for value in values)
        seen[parameter.name] = parameter.domain


@every_space
def test_a_baseline_is_known_and_everything_known_is_in_the_space(space: Space) -> None:
    assert "published" in space.known[0].name
    assert len({known.name for known in space.known}) == len(space.known)
    for known in space.known:
        assert known.source
        check_params(space, known.params)
        candidate = build(space, known.params)
        assert candidate.data == space.data
        assert candidate.train.epochs == EPOCHS


@pytest.mark.parametrize(
    ("name", "preset", "batch_size"), [("mnist_small", "mnist_s", 512), ("mnist_medium", "mnist_m", 256)]
)
def test_baseline_on_mnist_is_the_published_network(name: str, preset: str, batch_size: int) -> None:
    space = SPACES[name]
    candidate = build(space, space.known[0].params, epochs=50)
    assert candidate.model == PRESETS[preset]
    assert candidate.train == TrainSpec(lr=0.01, batch_size=batch_size, epochs=50, weight_decay=0.0, decay_fraction=0.0)


def test_baseline_of_cifar10_small_is_the_published_network() -> None:
    space = SPACES["cifar10_small"]
    assert space.data == DataSpec("cifar10", num_thresholds=3)
    candidate = build(space, space.known[0].params, epochs=50)
    assert candidate.model == PRESETS["cifar10_s"]
    assert candidate.train == TrainSpec(lr=0.02, batch_size=128, epochs=50, weight_decay=0.002)


def test_a_shallower_cifar10_network_is_the_same_without_its_last_block() -> None:
    space = SPACES["cifar10_small"]
    params = {name: value for name, value in space.known[0].params.items() if name != "kernel_4"}
    params |= {"num_blocks": 3, "kernel_1": 5}
    check_params(space, params)
    model = build(space, params).model
    assert model.conv == (ConvSpec(32, kernel=5, padding=2), ConvSpec(128), ConvSpec(512))
    assert model.flat_features == 512 * 4 * 4
    assert model.dense == PRESETS["cifar10_s"].dense


def test_configurations_with_iwp_gates_are_the_ones_that_were_measured() -> None:
    softer, harder = (build(SPACES["mnist_small"], known.params) for known in SPACES["mnist_small"].known[1:])
    assert softer.model == replace(PRESETS["mnist_s"], tau=7.919596, parametrization="iwp")
    assert softer.train == TrainSpec(lr=0.1, batch_size=128, epochs=EPOCHS, decay_fraction=0.4)
    assert harder == replace(softer, train=replace(softer.train, hard_finish=0.2))
    digits = build(SPACES["digits_small"], SPACES["digits_small"].known[1].params)
    assert digits.model == replace(
        PRESETS["mnist_s"],
        input_shape=(3, 28, 28),
        dense=PRESETS["mnist_s"].dense[1:],
        tau=11.313708,
        parametrization="iwp",
    )
    assert digits.train == TrainSpec(lr=0.1, batch_size=32, epochs=EPOCHS, decay_fraction=0.4)


def test_baseline_of_digits_small_has_the_published_architecture() -> None:
    space = SPACES["digits_small"]
    model = build(space, space.known[0].params).model
    assert replace(model, input_shape=(1, 28, 28)) == PRESETS["mnist_s"]


@every_space
def test_samples_build_valid_candidates(space: Space) -> None:
    sizes, drawn = set(), {parameter.name: set() for parameter in space.parameters}
    for seed in range(200):
        trial = UniformTrial(seed)
        params = space.sample(trial)
        assert trial.asked == list(params)
        check_params(space, params)
        candidate = build(space, params)
        info = INPUT_INFO[space.data.dataset]
        assert candidate.model.input_shape == (
            info.image_shape[0] * space.data.num_thresholds,
            *info.image_shape[1:],
        )
        assert candidate.model.num_classes == info.num_classes
        assert candidate.data == space.data
        assert json.loads(json.dumps(candidate.to_json()))["train"]["epochs"] == EPOCHS
        assert build(space, params) == candidate
        sizes.add(raw_gates(candidate.model))
        for name, value in params.items():
            drawn[name].add(value)
    assert len(sizes) > 100
    assert all(len(values) > 1 for values in drawn.values())


@every_space
def test_every_parameter_makes_a_difference(space: Space) -> None:
    changed: set[str] = set()
    for seed in range(40):
        params = space.sample(UniformTrial(seed))
        for parameter in space.parameters:
            # A parameter that others depend on would change which of them apply.
            if parameter.name in params and not any(p.when and p.when[0] == parameter.name for p in space.parameters):
                other = parameter.domain.suggest(UniformTrial(seed + 1000), parameter.name)
                if build(space, params | {parameter.name: other}) != build(space, params):
                    changed.add(parameter.name)
    conditions = {p.when[0] for p in space.parameters if p.when}
    assert changed == {p.name for p in space.parameters} - conditions


@every_space
def test_conditions_change_the_candidate(space: Space) -> None:
    for name in {p.when[0] for p in space.parameters if p.when}:
        candidates = {}
        for seed in range(100):
            params = space.sample(UniformTrial(seed))
            candidates[params[name]] = build(space, params)
        assert len(candidates) > 1
        assert len({repr(candidate) for candidate in candidates.values()}) == len(candidates)


@every_space
def test_too_small_an_image_is_a_value_error(space: Space) -> None:
    params = space.known[0].params
    with pytest.raises(ValueError, match=r"conv block [12]: a (3x3|1x1) image"):
        space.build(params, space.data, InputInfo((1, 3, 3), 10), EPOCHS)


@every_space
def test_rungs_rise_to_the_full_budget(space: Space) -> None:
    assert len(space.budget.rungs) == space.budget.num_rungs
    for epochs in (None, 1, 2, 3, 10, 100):
        budget = space.budget.with_epochs(epochs)
        rungs = budget.rungs
        assert rungs[0] >= 1
        assert list(rungs) == sorted(set(rungs))
        assert rungs[-1] == budget.epochs == (epochs or space.budget.epochs)


@pytest.mark.parametrize(
    ("budget", "rungs"),
    [
        (Budget(27), (3, 9, 27)),
        (Budget(81, num_rungs=4), (3, 9, 27, 81)),
        (Budget(10, num_rungs=2, reduction=4), (2, 10)),
        (Budget(2), (1, 2)),
        (Budget(1), (1,)),
    ],
)
def test_rungs(budget: Budget, rungs: tuple[int, ...]) -> None:
    assert budget.rungs == rungs


def changes(parameter: Parameter) -> list[Parameter]:
    """The parameter with each thing about it changed that a study depends on."""
    domain = parameter.domain
    if isinstance(domain, Choice):
        domains: list[Range | Choice] = [Choice((*domain.values, 99)), Choice(domain.values[:-1])]
        domains.append(Choice(domain.values[::-1]))
    else:
        domains = [replace(domain, high=domain.high * 2), replace(domain, log=not domain.log)]
        domains.append(replace(domain, low=domain.low / 2))
    return [
        *(replace(parameter, domain=changed) for changed in domains),
        replace(parameter, when=("another", (1,))),
        replace(parameter, name=parameter.name + "_renamed"),
    ]


def as_json(space: Space) -> str:
    return json.dumps(space.fingerprint(), sort_keys=True)


@every_space
def test_fingerprint_is_json_and_shows_every_change(space: Space) -> None:
    fingerprint = as_json(space)
    assert as_json(replace(space, budget=Budget(5), known=space.known[:1], description="")) == fingerprint
    for i, parameter in enumerate(space.parameters):
        for changed in changes(parameter):
            parameters = (*space.parameters[:i], changed, *space.parameters[i + 1 :])
            assert as_json(replace(space, parameters=parameters)) != fingerprint, changed
    assert as_json(replace(space, parameters=space.parameters[1:])) != fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"weight_decay": math.inf}, "weight_decay=inf"),
        ({"decay_fraction": 1.1}, "decay_fraction=1.1"),
        ({"decay_fraction": math.nan}, "decay_fraction=nan"),
        ({"estimator": "hard"}, "estimator 'hard' is not one of soft, gumbel, ste"),
        ({"hard_finish": -0.1}, "hard_finish=-0.1"),
        ({"hard_finish": math.nan}, "hard_finish=nan"),
        ({"shift": -1}, "shift=-1"),
    ],
)
def test_training_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TrainSpec(lr=0.01, batch_size=32, epochs=3), **change)


def test_a_shift_leaves_something_of_the_image_and_is_told_only_where_there_is_one() -> None:
    candidate = SPACES["mnist_small"].build(
        SPACES["mnist_small"].known[0].params, DataSpec("mnist"), InputInfo((1, 28, 28), 10), EPOCHS
    )
    assert "shift" not in candidate.to_json()["train"]  # identities of configurations from before there were any
    shifted = replace(candidate, train=replace(candidate.train, shift=27))
    assert shifted.to_json()["train"]["shift"] == 27
    with pytest.raises(ValueError, match="shift=28 must be less than the image's 28 pixels"):
        replace(candidate, train=replace(candidate.train, shift=28))


def test_domains_as_people_read_them() -> None:
    assert str(Range(4, 32, log=True)) == "4 to 32, log"
    assert str(Range(0.2, 2.0)) == "0.2 to 2"
    assert str(Choice((True, "iwp", 3))) == "True | iwp | 3"
