"""The recipes of docs/cluster.md are what Ray's cluster launcher and KubeRay take."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

DOCS = Path(__file__).parents[2] / "docs" / "cluster.md"


@pytest.fixture
def recipes() -> list[dict[str, Any]]:
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)]


@pytest.mark.filterwarnings("ignore")
def test_the_cluster_launcher_takes_its_recipe(recipes: list[dict[str, Any]]) -> None:
    pytest.importorskip("jsonschema")
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(recipes[0])
    validate_config(config)
    assert config["max_workers"] == len(config["provider"]["worker_ips"])


def test_the_kuberay_recipe_has_a_head_without_cores_and_gpu_workers(recipes: list[dict[str, Any]]) -> None:
    spec = recipes[1]["spec"]
    assert recipes[1]["apiVersion"] == "ray.io/v1" and recipes[1]["kind"] == "RayCluster"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = spec["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
