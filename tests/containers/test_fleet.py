"""The recipes for fleets: podman plays its own; what the others say of one host is done here, without a container."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.conftest import TIMEOUT, UUID, apfs
from tests.containers.conftest import CONTAINERFILE, ROOT, Engine
from tests.mounted.test_migration import client
from tests.mounted.test_remote import between, guest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FLEET = ROOT / "mount-examples/fleet"


def documents(name: str) -> list[dict[str, Any]]:
    """Return what is in a YAML file."""
    return list(yaml.safe_load_all((FLEET / name).read_text()))


def test_all_have_the_same_hosts() -> None:
    """The pod is that of the StatefulSet, without what podman does not know; the scenario is everywhere the same."""
    config, service, fleet = documents("statefulset.yaml")
    template = tomllib.loads((FLEET / "host.toml").read_text())
    del template["description"]
    assert tomllib.loads(config["data"]["host.toml"]) == template
    assert (service["metadata"]["name"], service["spec"]["clusterIP"]) == (fleet["spec"]["serviceName"], "None")
    labels = fleet["spec"]["template"]["metadata"]["labels"]
    assert labels == service["spec"]["selector"] == fleet["spec"]["selector"]["matchLabels"]
    assert fleet["spec"]["replicas"] == 20
    theirs, pod = documents("pod.yaml")
    assert theirs == config
    (container,), (other,) = pod["spec"]["containers"], fleet["spec"]["template"]["spec"]["containers"]
    assert container == {name: value for name, value in other.items() if name not in {"readinessProbe", "resources"}}
    assert pod["spec"]["volumes"] == fleet["spec"]["template"]["spec"]["volumes"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[list[str], str], Path]]:
    """Return a function that does what a container of a name does, and returns its /host."""
    if os.geteuid():
        pytest.skip("only root may give a process a host name of its own")
    made: list[Path] = []

    def run(command: list[str], name: str) -> Path:
        place = tmp_path / name
        made.append(place)
        *shell, script = command
        assert script.count("exec apfs mount --foreground") == 1
        script = script.replace("exec apfs mount --foreground", "apfs mount")
        script = re.sub(r"/host$", str(place), script, flags=re.MULTILINE)
        script = script.replace("/etc/fleet/host.toml", str(FLEET / "host.toml"))
        env = {**os.environ, "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}"}
        named = ["unshare", "--uts", *shell, f"hostname {name}\n{script}"]
        subprocess.run(named, check=True, env=env, timeout=TIMEOUT)
        return place

    yield run
    for place in made:
        apfs("umount", "--lazy", str(place))


def test_pods_of_the_set(start: Callable[[list[str], str], Path]) -> None:
    (container,) = documents("statefulset.yaml")[2]["spec"]["template"]["spec"]["containers"]
    hosts = [start([*container["command"], *container["args"]], name) for name in ("host-0", "host-19")]
    probe = container["readinessProbe"]["exec"]["command"]
    for host, name, serial in zip(hosts, ("host-0", "host-19"), ("0000", "0019"), strict=True):
        said = subprocess.run([word.replace("/host", str(host)) for word in probe], check=True, capture_output=True)
        assert json.loads(said.stdout)["scenario"] == name
        assert (host / "sys/devices/ap/card05/serialnr").read_text() == f"{serial}0005\n"
    (client(hosts[0]) / "guest").write_text("1")
    sent, received, *_ = between(hosts[0], hosts[1])
    assert (sent.ok, received.ok) == (True, True)
    assert [guest(host) for host in hosts] == [None, "RUNNING"]


def told(recipe: str, pattern: str) -> str:
    """Return a command that the comment at the head of a recipe tells."""
    comment = "\n".join(line.removeprefix("#") for line in recipe.splitlines() if line.startswith("#"))
    (found,) = re.findall(rf"^   ({pattern})$", comment, re.MULTILINE)
    return str(found)


def ready(engine: Engine, container: str) -> str:
    """Return the state of a container's host as soon as it is mounted."""
    for _ in range(100):
        status = engine("exec", container, "cat", "/host/ctl/status", status=None)
        if status:
            return status
    raise AssertionError(engine("logs", container, status=None))


def test_pods_of_podman(engine: Engine, image: str) -> None:
    """Two of them, by the commands that the file itself tells, and a guest that migrates through `podman exec`."""
    recipe = (FLEET / "pod.yaml").read_text()
    assert documents("pod.yaml")[1]["spec"]["containers"][0]["image"] == image
    play, migrate = told(recipe, r"sed .*"), told(recipe, r"socat .*\n.*")
    names = ("host-0", "host-7")
    try:
        for name in names:
            engine.script("sh", "-euc", play.replace("podman", "$ENGINE").replace("/host-7/", f"/{name}/"))
        for name, serial in zip(names, ("0000", "0007"), strict=True):
            assert json.loads(ready(engine, f"{name}-apfs"))["scenario"] == name
            assert engine("exec", f"{name}-apfs", "cat", "/host/sys/devices/ap/card05/serialnr") == f"{serial}0005\n"
        engine("exec", "host-0-apfs", "sh", "-c", f"echo 1 > /host/dev/vfio-ap/{UUID}/guest")
        script = f"U={UUID}\n{migrate.replace('podman', '$ENGINE')}"
        engine.script("sh", "-euc", script)
        guests = [engine("exec", f"{name}-apfs", "cat", f"/host/dev/vfio-ap/{UUID}/guest") for name in names]
        assert guests == ["0\n", "1\n"]
    finally:
        engine("pod", "rm", "--force", *names, status=None)


def test_compose(start: Callable[[list[str], str], Path]) -> None:
    """The name and the serial numbers are those of the container's id."""
    (service,) = documents("compose.yaml")[0]["services"].values()
    assert (FLEET / service["build"]["context"]).resolve() / service["build"]["dockerfile"] == ROOT / CONTAINERFILE
    assert service["volumes"] == ["./host.toml:/etc/fleet/host.toml:ro"]
    assert (FLEET / "host.toml").is_file()
    host = start([word.replace("$$", "$") for word in service["command"]], "1a2b3c4d5e6f")
    assert (host / "sys/devices/ap/card05/serialnr").read_text() == "1A2B0005\n"
