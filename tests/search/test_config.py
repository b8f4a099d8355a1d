import json
from pathlib import Path
from typing import Any

import pytest

from search.config import check_study_name, study_config
from search.errors import UsageError
from search.identity import identity_differences
from spaces import Space


def problem(**options: Any) -> str:
    """The one line that refuses these options."""
    with pytest.raises(UsageError) as caught:
        study_config(**options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_left_out_follows_from_the_space() -> None:
    config = study_config()
    assert (config.space, config.study, config.dataset) == ("digits_small", "digits_small", "digits")
    assert config.storage == "sqlite:///studies/digits_small/study.db"
    assert config.folder == Path("studies/digits_small")
    assert config.budget.rungs == (9, 27, 81)
    config = study_config(space="mnist_small", study="mine", data="fashion_mnist", epochs=2)
    assert (config.study, config.dataset, config.budget.rungs) == ("mine", "fashion_mnist", (1, 2))
    assert config.storage == "sqlite:///studies/mine/study.db"


@pytest.mark.parametrize("name", ["a", "7", "mnist_small", "A-1.b_2", "x" * 64])
def test_study_names(name: str) -> None:
    assert check_study_name(name) == name
    assert study_config(study=name).study == name


@pytest.mark.parametrize("name", [".", "..", "-x", "a/b", "a b", "x" * 65, "é", "a\n", "../up", "results"])
def test_names_that_are_no_folder_or_taken(name: str) -> None:
    assert repr(name)[:60] in problem(study=name)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (
            {"space": "nmist"},
            "unknown space 'nmist': choose one of digits_small, mnist_small, mnist_medium, cifar10_small",
        ),
        (
            {"data": "nmist"},
            "unknown dataset 'nmist': choose one of digits, mnist, fashion_mnist, cifar10, npz:FILE, folder:DIR",
        ),
        ({"data": "npz:"}, "unknown dataset 'npz:': choose one of digits, "),
        ({"data": "zip:x"}, "unknown dataset 'zip:x': choose one of digits, "),
        ({"trials": 0}, "--trials=0: "),
        ({"trials": -3}, "--trials=-3: "),
        ({"timeout_s": 0.0}, "--timeout=0.0: "),
        ({"workers": -1}, "--workers=-1: "),
        ({"gpus_per_trial": -1.0}, "--gpus-per-trial=-1.0: "),
        ({"max_gates": 0}, "--max-gates=0: "),
        ({"gates": "net"}, "--gates='net': "),
        ({"seed": -1}, "--seed=-1: "),
        ({"seed": 2**32}, "--seed=4294967296: "),
        ({"epochs": 0}, "--epochs=0: "),
        ({"limit_train": 0}, "--limit-train=0: "),
        ({"sampler": "grid"}, "--sampler='grid': "),
        ({"executor": "slurm"}, "--executor='slurm': "),
        ({"objectives": ("gates",)}, "objectives 'gates' must be accuracy,gates or accuracy"),
        ({"objectives": ("gates", "accuracy")}, "must be accuracy,gates or accuracy"),
        ({"objectives": ("speed",)}, "--objectives.0='speed': "),
        ({"objectives": ()}, "must be accuracy,gates or accuracy"),
        ({"storage": "study.db"}, "storage 'study.db' is not a URL: write sqlite:///FILE"),
        ({"spase": "x"}, "--spase="),
    ],
)
def test_each_wrong_option_is_named_with_its_value(options: dict[str, Any], part: str) -> None:
    assert part in problem(**options)


def test_identity_is_as_a_database_gives_it_back(tiny_space: Space) -> None:
    identity = study_config(space="tiny").identity()
    assert json.loads(json.dumps(identity)) == identity


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"epochs": 27}, "--epochs 9 -> 27"),
        ({"limit_train": 100}, "--limit-train none -> 100"),
        ({"seed": 1}, "--seed 0 -> 1"),
        ({"objectives": ("accuracy",)}, "--objectives accuracy,gates -> accuracy"),
        ({"data": "mnist"}, "--data digits -> mnist"),
        ({"data": "npz:a/b.npz"}, "--data digits -> npz:a/b.npz"),
        ({"images_sha256": "ab"}, "data.images_sha256: None -> ab"),
        ({"gates": "core"}, "--gates total -> core"),
        ({"max_gates": 5000}, "--max-gates none -> 5000"),
        ({"min_accuracy": 0.5}, "--min-accuracy none -> 0.5"),
    ],
)
def test_what_makes_trials_incomparable_is_identity(
    tiny_space: Space, options: dict[str, Any], difference: str
) -> None:
    stored, asked = study_config(space="tiny"), study_config(space="tiny", **options)
    (found,) = identity_differences(stored.identity(), asked.identity())
    assert found == difference


@pytest.mark.parametrize(
    "options", [{"trials": 99}, {"workers": 3}, {"executor": "inline"}, {"sampler": "random"}, {"max_gates": 5000}]
)
def test_what_may_change_from_session_to_session_is_not(tiny_space: Space, options: dict[str, Any]) -> None:
    """A limit on raw gates says what is trained from now on; one on the others is every trial's constraint."""
    raw = study_config(space="tiny", gates="raw")
    assert study_config(space="tiny", gates="raw", **options).identity() == raw.identity()


def test_other_rungs_of_as_many_epochs_are_told_as_rungs() -> None:
    assert identity_differences({"rungs": [1, 9]}, {"rungs": [3, 9]}) == ["rungs: [1, 9] -> [3, 9]"]


def test_a_space_of_the_same_name_with_another_domain_is_another(
    tiny_space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spaces import SPACES
    from spaces.space import Choice, Parameter

    stored = study_config(space="tiny").identity()
    changed = tuple(
        Parameter("kernel_1", Choice((3, 5))) if each.name == "kernel_1" else each for each in tiny_space.parameters
    )
    monkeypatch.setitem(SPACES, "tiny", Space(**{**vars(tiny_space), "parameters": changed}))
    assert identity_differences(stored, study_config(space="tiny").identity()) == [
        "parameters.kernel_1.values: [3, 5, 7] -> [3, 5]"
    ]


def test_an_integer_s_bounds_are_not_a_float_s() -> None:
    """Optuna would draw the next trial's k from another kind of distribution."""
    old, new = ({"parameters": {"k": {"low": low, "high": 8}}} for low in (4, 4.0))
    assert identity_differences(old, new) == ["parameters.k.low: 4 -> 4.0"]
    assert identity_differences(old, old) == []
