"""The recipes for compose, Kubernetes, CI and systemd: their files are read, and what they say is done.

Neither docker nor Kubernetes nor a CI service is here. podman does with the same options what they would do.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.containers.conftest import CONTAINERFILE, ROOT, Engine
from tests.rooms import Room

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXAMPLES = ROOT / "mount-examples"
BOUND = "../../../../bus/ap/drivers/vfio_ap"


def read(name: str) -> Any:  # noqa: ANN401 -- what is in a YAML file
    """Return what a recipe says."""
    return yaml.safe_load((EXAMPLES / name).read_text())


def test_compose(engine: Engine, image: str) -> None:
    """Services are run one after the other, as their dependency says; variables are doubled dollars there."""
    recipe = read("containers/compose.yaml")
    services = recipe["services"]
    assert list(services) == ["host-a", "host-b"]
    assert services["host-b"]["depends_on"] == {"host-a": {"condition": "service_completed_successfully"}}
    said = {}
    for name, service in services.items():
        assert set(service) <= {
            *("image", "build", "user", "network_mode", "devices", "cap_add", "security_opt", "volumes", "command"),
            "depends_on",
        }
        built = (EXAMPLES / "containers" / service["build"]["context"]).resolve()
        assert built / service["build"]["dockerfile"] == ROOT / CONTAINERFILE
        assert all(volume.split(":")[0] in recipe["volumes"] for volume in service["volumes"])
        options = [f"--user={service['user']}", f"--network={service['network_mode']}"]
        for key, option in (("devices", "device"), ("cap_add", "cap-add"), ("security_opt", "security-opt")):
            options += [f"--{option}={value}" for value in service[key]]
        options += [f"--volume={volume}" for volume in service["volumes"]]
        command = [word.replace("$$", "$") for word in service["command"]]
        said[name] = engine("run", "--rm", *options, image, *command)
    assert said == {
        "host-a": "the guest has left host-a\n",
        "host-b": "the guest runs on host-b with 05.0047\n",
    }


def test_pod(engine: Engine, image: str) -> None:
    """podman runs manifests of Kubernetes."""
    manifest = "mount-examples/containers/pod.yaml"
    assert read("containers/pod.yaml")["spec"]["containers"][0]["image"] == image
    engine("play", "kube", "--network=none", manifest)
    status = engine("wait", "apfs-test").strip()
    said = engine("logs", "apfs-test")
    engine("play", "kube", "--down", manifest)
    assert (status, said.splitlines()[-1]) == ("0", BOUND)
    assert "✗" not in said


def of_kubernetes(container: dict[str, Any]) -> list[str]:
    """Return the options of podman for what a manifest says of a container's rights, and its command."""
    context = container["securityContext"]
    options = [f"--user={context['runAsUser']}", *(["--privileged"] if context.get("privileged") else [])]
    options += [f"--cap-drop={name}" for name in context.get("capabilities", {}).get("drop", [])]
    if not context.get("allowPrivilegeEscalation", True):
        options.append("--security-opt=no-new-privileges")
    return options


@pytest.fixture
def shared() -> Iterator[Path]:
    """Return a directory whose mounts reach containers, as the kubelet makes them for pods."""
    with tempfile.TemporaryDirectory(prefix="p") as name:
        subprocess.run(["mount", "--bind", name, name], check=True)
        subprocess.run(["mount", "--make-shared", name], check=True)
        yield Path(name)
        subprocess.run(["umount", "--recursive", name], check=True)


def test_sidecar(engine: Engine, image: str, shared: Path) -> None:
    """podman has no sidecars: here they are containers that share a volume, and a probe asked until it succeeds."""
    spec = read("containers/pod-sidecar.yaml")["spec"]
    (sidecar,), (test,) = spec["initContainers"], spec["containers"]
    assert sidecar["restartPolicy"] == "Always"
    propagation = {"Bidirectional": "rshared", "HostToContainer": "rslave"}

    def options(container: dict[str, Any]) -> list[str]:
        (volume,) = container["volumeMounts"]
        assert volume["name"] == spec["volumes"][0]["name"]
        how = propagation[volume["mountPropagation"]]
        return [*of_kubernetes(container), f"--volume={shared}:{volume['mountPath']}:{how}"]

    engine("run", "--detach", "--name=sidecar", *options(sidecar), image, *sidecar["command"], *sidecar["args"])
    probe = sidecar["startupProbe"]
    try:
        for _ in range(probe["failureThreshold"]):
            if engine("exec", "sidecar", "sh", "-c", f"{shlex.join(probe['exec']['command'])} && echo up", status=None):
                break
        said = engine("run", "--rm", *options(test), image, *test["command"], *test["args"])
    finally:
        engine("rm", "--force", "sidecar")
    assert said == f"{BOUND}\n"


@pytest.fixture
def home() -> Iterator[Path]:
    """Return a home directory for an ordinary user."""
    if os.geteuid():
        pytest.skip("only root can be the runner's user")
    with tempfile.TemporaryDirectory(prefix="p") as name:
        os.chown(name, 65534, 65534)
        yield Path(name)


def test_github_container(engine: Engine, image: str) -> None:
    job = read("ci/github-actions.yaml")["jobs"]["container"]
    options = job["container"]["options"].split()
    for step in job["steps"]:
        if "run" in step:
            said = engine("run", "--rm", *options, image, "bash", "-e", "-c", step["run"])
    assert said.splitlines()[-1] == "12/12 (complete)"


def test_github_runner(wheels: Callable[[str], Path], home: Path) -> None:
    """The steps are done by an ordinary user on this machine, which has the packages already."""
    job = read("ci/github-actions.yaml")["jobs"]["runner"]
    place = wheels("wheel")
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", f"HOME={home}", "PIP_NO_INDEX=1")
    with Room(users=False) as room:
        room.run("mount", "--bind", str(place), "/mnt")
        lines = [line for step in job["steps"] if "run" in step for line in step["run"].splitlines()]
        (install,) = [line for line in lines if "apt-get install" in line]
        for package in install.split("--yes ")[1].split():
            room.run("dpkg-query", "--show", package)
        script = "\n".join(line for line in lines if "sudo apt-get" not in line)
        said = room.run(*user, "PIP_FIND_LINKS=/mnt", "bash", "-e", "-c", f"cd /\n{script}")
    assert said.splitlines()[-1] == "12/12 (complete)"


def test_gitlab(engine: Engine, image: str) -> None:
    """A runner gives what its configuration says; GitLab runs the lines as one script."""
    job = read("ci/gitlab-ci.yaml")["test"]
    runner = tomllib.loads((EXAMPLES / "ci/gitlab-runner.toml").read_text())["runners"][0]["docker"]
    options = [f"--user={job['image']['docker']['user']}"]
    for key, option in (("devices", "device"), ("cap_add", "cap-add"), ("security_opt", "security-opt")):
        options += [f"--{option}={value}" for value in runner[key]]
    said = engine("run", "--rm", *options, image, "sh", "-e", "-c", "\n".join(job["script"]))
    assert said.splitlines()[-1] == "12/12 (complete)"


def test_ci_keeps_what_the_plugin_draws() -> None:
    jobs = read("ci/github-actions.yaml")["jobs"]
    for name in ("runner", "container"):
        keep = jobs[name]["steps"][-1]
        assert (keep["if"], keep["with"]["name"]) == ("failure()", f"apfs-reports-{name}")
        assert jobs[name]["env"] == {"PYTEST_ADDOPTS": f"--apfs-report={keep['with']['path']}"}
    job = read("ci/gitlab-ci.yaml")["test"]
    kept = job["artifacts"]
    options = f"--apfs-report={kept['paths'][0]} --junitxml={kept['reports']['junit']}"
    assert job["variables"] == {"PYTEST_ADDOPTS": options}
    assert kept["when"] == "always"


def test_systemd_unit() -> None:
    """systemd accepts the unit, and its commands do what it says."""
    if os.geteuid():
        pytest.skip("only root can mount in a mount namespace of its own")
    unit = EXAMPLES / "systemd/apfs@.service"
    with Room(users=False) as room:
        room.run("mount", "-t", "tmpfs", "none", "/opt")
        room.run("mount", "-t", "tmpfs", "none", "/run")
        room.run("mkdir", "-p", "/opt/apfs/bin", "/run/apfs-unit")
        room.run("ln", "-s", str(ROOT / ".venv/bin/apfs"), "/opt/apfs/bin/apfs")
        room.run("cp", str(unit), "/run/apfs-unit/apfs@z.service")
        room.run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", "/run/apfs-unit/apfs@z.service")
        lines = dict(re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE))
        assert lines["RuntimeDirectory"] == "apfs/%i"
        start, stop = (
            lines[key].replace("/run/apfs/%i", "/run/apfs-unit/z").replace("${SCENARIO}", "default")
            for key in ("ExecStart", "ExecStop")
        )
        room.run("mkdir", "/run/apfs-unit/z")
        room.run(*start.split())
        assert room.run("cat", "/run/apfs-unit/z/sys/bus/ap/bindings") == "12/12 (complete)\n"
        room.run(*stop.split())
        assert room.run("ls", "/run/apfs-unit/z") == ""
