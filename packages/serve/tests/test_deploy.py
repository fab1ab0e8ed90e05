"""What `deploy/` says, against what the app is."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from medqua.serve.http.app import create_app
from medqua.serve.settings import Settings

DEPLOY = Path(__file__).parents[3] / "deploy"


def documents(name: str) -> dict[str, dict[str, Any]]:
    found = list(yaml.safe_load_all((DEPLOY / name).read_text()))
    assert all(each["metadata"]["namespace"] == "medqua" for each in found)
    return {each["kind"]: each for each in found}


@pytest.fixture(scope="module")
def plain() -> dict[str, dict[str, Any]]:
    return documents("kubernetes.yaml")


def closed(pod: dict[str, Any]) -> None:
    """Every container: a named user that is not root, nothing to write on, limits."""
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == user_of_the_image()
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert set(container["resources"]["limits"]) == {"cpu", "memory"}
        name, _, tag = container["image"].partition(":")
        assert name
        assert tag.startswith("0.1.0")
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def user_of_the_image() -> int:
    [user] = re.findall(r"^USER (\d+):\1$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    return int(user)


def test_the_deployment_agrees_with_the_app(plain: dict[str, Any]):
    settings = Settings.from_dict(tomllib.loads(plain["ConfigMap"]["data"]["serve.toml"]))
    deployment = plain["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    closed(pod)
    [container] = pod["containers"]
    [port] = container["ports"]
    assert port["containerPort"] == settings.listen.port
    assert plain["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    allowed = plain["NetworkPolicy"]["spec"]["ingress"][0]["ports"]
    assert allowed == [{"protocol": "TCP", "port": settings.listen.port}]
    paths = {route.path for route in create_app(Path("none"), settings).routes}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in paths & {"/healthz", "/readyz"}  # open ones
        assert container[probe]["httpGet"]["port"] == port["name"]
    assert pod["terminationGracePeriodSeconds"] >= settings.listen.drain_seconds + 15
    assert not settings.access.open
    written = [mount["mountPath"] for mount in container["volumeMounts"] if "readOnly" not in mount]
    for path in (settings.storage.spool, settings.storage.audit):
        assert any(str(path).startswith(f"{mount}/") for mount in written)
    assert deployment["replicas"] == 1  # the spool has one owner at a time,
    assert deployment["strategy"] == {"type": "Recreate"}  # also when it is replaced
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert plain["Service"]["spec"]["selector"] == labels
    assert plain["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert plain["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels


def test_the_recipe_holds_no_secret_and_starts_the_service():
    recipe = (DEPLOY / "Dockerfile").read_text()
    assert user_of_the_image() > 0
    bases = re.findall(r"^FROM (\S+)", recipe, re.MULTILINE)
    assert len(bases) == 2
    assert len(set(bases)) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", bases[0])
    assert 'ENTRYPOINT ["medqua-serve"]' in recipe
    assert "/healthz" in recipe
    assert not re.search(r"(?i)password|token|secret|api[_-]?key", recipe)
    for copied in re.findall(r"^COPY (?!--from)(\S+)", recipe, re.MULTILINE):
        assert (DEPLOY.parent / copied).exists()
