"""What is concluded from facts, for machines and settings that a test cannot have."""

from __future__ import annotations

import dataclasses
import errno
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apfs.mounts import environment
from apfs.mounts.credentials import NET_ADMIN, SYS_ADMIN, may_unshare
from apfs.mounts.environment import UBUNTU_RESTRICT, Facts

if TYPE_CHECKING:
    from collections.abc import Callable

    from apfs.mounts.environment import Problem

CONTAINER = Facts(place="container", engine="docker", effective=0, bounding=0, filtered=True, masked=True)
POD = dataclasses.replace(CONTAINER, place="pod", engine=None)
USER = Facts(uid=1000, effective=0)
CONCLUSIONS = (
    environment.mount_problems,
    environment.allow_other_problems,
    environment.sandbox_problems,
    environment.filter_problems,
    environment.uevent_problems,
    environment.vfio_problems,
)
FACTS = st.builds(
    Facts,
    place=st.sampled_from(("machine", "container", "pod")),
    engine=st.sampled_from((None, "docker", "podman", "lxc")),
    uid=st.sampled_from((0, 1000)),
    own_users=st.booleans(),
    effective=st.sampled_from((0, SYS_ADMIN, NET_ADMIN, SYS_ADMIN | NET_ADMIN)),
    bounding=st.sampled_from((0, SYS_ADMIN, SYS_ADMIN | NET_ADMIN)),
    no_new_privileges=st.booleans(),
    filtered=st.booleans(),
    profile=st.sampled_from((None, "docker-default")),
    masked=st.booleans(),
    kernel=st.sampled_from(((4, 4), (5, 4), (6, 1))),
    fuse=st.sampled_from((0, errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENODEV)),
    null=st.sampled_from((0, errno.ENOENT, errno.EACCES)),
    fusermount=st.sampled_from(("fine", "absent", "not setuid", "not root's")),
    bwrap=st.booleans(),
    root_mounted=st.booleans(),
    missing_modules=st.sampled_from(((), ("trio",))),
    settings=st.dictionaries(st.sampled_from(environment.SETTINGS), st.sampled_from((0, 1))),
    user_allow_other=st.booleans(),
)


def keys(problems: list[Problem]) -> list[str]:
    return [problem.key for problem in problems]


@pytest.mark.parametrize("conclude", CONCLUSIONS)
def test_where_all_is_in_place_there_are_no_problems(conclude: Callable[[Facts], list[Problem]]) -> None:
    assert conclude(Facts()) == []
    assert conclude(dataclasses.replace(USER, user_allow_other=True)) == []


@given(FACTS, st.sampled_from(CONCLUSIONS))
def test_each_problem_has_a_remedy_for_the_place(facts: Facts, conclude: Callable[[Facts], list[Problem]]) -> None:
    problems = conclude(facts)
    assert len(set(keys(problems))) == len(problems)
    for problem in problems:
        assert problem.key
        assert problem.what
        assert problem.remedy
        if problem.flags:
            assert facts.place == "container"
            assert problem.flags[0].replace("=", " ", 1) in problem.remedy
        if facts.place == "machine":
            assert "container" not in problem.remedy.replace("docs/containers.md", "the name of a page")
            assert "securityContext" not in problem.remedy
        assert ("--security-opt" in problem.remedy) <= (facts.place == "container")


@pytest.mark.parametrize(
    ("setting", "value", "remedy"),
    [
        ("user.max_user_namespaces", 0, "user.max_user_namespaces=10000"),
        ("kernel.unprivileged_userns_clone", 0, "kernel.unprivileged_userns_clone=1"),
        ("kernel.apparmor_restrict_unprivileged_userns", 1, "kernel.apparmor_restrict_unprivileged_userns=0"),
    ],
)
def test_settings_that_forbid_user_namespaces(setting: str, value: int, remedy: str) -> None:
    (problem,) = environment.sandbox_problems(dataclasses.replace(USER, settings={setting: value}))
    assert problem.key == setting
    assert f"`sysctl -w {remedy}`" in problem.remedy
    assert ("docs/containers.md" in problem.remedy) == (setting == UBUNTU_RESTRICT)
    assert environment.sandbox_problems(dataclasses.replace(USER, settings={setting: 1 - value})) == []


def test_root_needs_no_user_namespace_and_no_helper() -> None:
    settings = {"user.max_user_namespaces": 0, "kernel.unprivileged_userns_clone": 0}
    root = Facts(settings=settings, fusermount="absent", no_new_privileges=True)
    assert environment.sandbox_problems(root) == environment.mount_problems(root) == []


def test_all_that_a_container_lacks_is_named_at_once() -> None:
    facts = dataclasses.replace(CONTAINER, fuse=errno.ENOENT, profile="docker-default")
    problems = environment.mount_problems(facts) + environment.sandbox_problems(facts)
    assert list(dict.fromkeys(flag for problem in problems for flag in problem.flags)) == [
        "--device=/dev/fuse",
        "--cap-add=SYS_ADMIN",
        "--security-opt=apparmor=unconfined",
        "--cap-add=NET_ADMIN",
    ]


@pytest.mark.parametrize(
    ("engine", "flag"), [("docker", "systempaths=unconfined"), ("podman", "unmask=ALL"), (None, "unmask=ALL")]
)
def test_a_user_namespace_needs_the_whole_of_proc(engine: str | None, flag: str) -> None:
    facts = dataclasses.replace(CONTAINER, engine=engine, uid=1000, bounding=SYS_ADMIN)
    (problem,) = environment.sandbox_problems(facts)
    assert problem.flags == (f"--security-opt={flag}",)
    rootless = dataclasses.replace(facts, uid=0, own_users=True, effective=SYS_ADMIN | NET_ADMIN)
    assert keys(environment.sandbox_problems(rootless)) == ["masked-proc"]


def test_a_pod_is_told_what_to_write_into_its_manifest() -> None:
    facts = dataclasses.replace(POD, fuse=errno.EPERM, profile="cri-containerd.apparmor.d")
    text = " ".join(map(str, environment.mount_problems(facts) + environment.sandbox_problems(facts)))
    for wanted in ("privileged: true", "add: [SYS_ADMIN]", "add: [NET_ADMIN]", "appArmorProfile: {type: Unconfined}"):
        assert f"`{wanted}`" in text or wanted in text
    user = dataclasses.replace(POD, uid=1000, no_new_privileges=True)
    assert "`allowPrivilegeEscalation: true`" in str(environment.helper_problems(user)[0])


def test_old_kernels() -> None:
    assert keys(environment.vfio_problems(Facts(kernel=(5, 8)))) == ["kernel"]
    assert keys(environment.vfio_problems(Facts(kernel=(5, 9)))) == []
    assert "Linux 4.18 or newer" in str(environment.uevent_problems(Facts(kernel=(4, 9)))[0])
    assert keys(environment.mount_problems(Facts(kernel=(4, 17), own_users=True))) == ["kernel"]


def test_capabilities_of_others_than_root_do_not_count() -> None:
    both = SYS_ADMIN | NET_ADMIN
    assert may_unshare(0, both, network=True)
    assert not may_unshare(0, SYS_ADMIN, network=True)
    assert may_unshare(0, SYS_ADMIN, network=False)
    assert not may_unshare(1000, both, network=True)
