"""The environment of apfs, and what prevents mounts and sandboxes in it.

`look` gathers the facts. The other functions are pure: from facts they conclude what can be missing, and what to do
about it in this place. Whether something works is found out by trying; these conclusions explain a failure.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import shutil
import stat
from collections.abc import Mapping  # noqa: TC003 -- dataclasses look annotations up
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from apfs.mounts import table
from apfs.mounts.credentials import NET_ADMIN, SYS_ADMIN, may_unshare, status_of_process

Place = Literal["machine", "container", "pod"]

_INSTALL_HINT = (
    "install them with `pip install 'apfs[mount]'` "
    "(Debian: after `apt install fuse3 libfuse3-dev pkg-config gcc python3-dev`)"
)

USER_NAMESPACES = "user.max_user_namespaces"
DEBIAN_CLONE = "kernel.unprivileged_userns_clone"
UBUNTU_RESTRICT = "kernel.apparmor_restrict_unprivileged_userns"
SETTINGS = (USER_NAMESPACES, DEBIAN_CLONE, UBUNTU_RESTRICT)

# Linux gives the first namespaces of a machine these inode numbers (include/linux/proc_ns.h).
_FIRST_NAMESPACES = {"pid": 0xEFFFFFFC, "uts": 0xEFFFFFFE, "ipc": 0xEFFFFFFF}
_WHOLE_MAP = (0, 0, 0xFFFFFFFF)
_ALL = (1 << 41) - 1


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is missing."""

    key: str
    """A stable name for programs, such as `fuse-device`."""
    what: str
    remedy: str
    flags: tuple[str, ...] = ()
    """What to add to `docker run` or `podman run`, where that is the remedy."""

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}"


CHROOT = Problem(
    "chroot", "apfs exec does not work in a chroot", "enter the file tree by pivot_root(8) or systemd-nspawn(1) instead"
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What matters about a machine and a process. The defaults are root on a machine where everything is in place."""

    place: Place = "machine"
    engine: str | None = None
    """What runs the container, if known: docker, podman, lxc, systemd-nspawn ..."""
    virtual: bool = False
    uid: int = 0
    own_users: bool = False
    """Whether this is a user namespace, as of a rootless container: its root is an ordinary user of the machine."""
    effective: int = _ALL
    bounding: int = _ALL
    no_new_privileges: bool = False
    filtered: bool = False
    """Whether a seccomp filter is in force."""
    profile: str | None = None
    """The AppArmor profile that confines this process."""
    masked: bool = False
    """Whether parts of /proc are masked, as container engines do."""
    kernel: tuple[int, int] = (6, 1)
    fuse: int = 0
    """The errno of opening /dev/fuse; 0 if it can be opened."""
    null: int = 0
    """The errno of opening /dev/null; 0 if it can be opened."""
    fusermount: Literal["fine", "absent", "not setuid", "not root's"] = "fine"
    """`not root's`: root of the machine, whom it belongs to, has no number in this user namespace."""
    bwrap: bool = True
    missing_modules: tuple[str, ...] = ()
    root_mounted: bool = True
    """Whether the root directory is a mount point; not in a chroot, in which no mount namespace can be arranged."""
    settings: Mapping[str, int] = field(default_factory=dict)
    """The sysctls about user namespaces, as far as the kernel has them."""
    user_allow_other: bool = False

    @property
    def root(self) -> bool:
        """Whether this is uid 0, even if only in a user namespace."""
        return self.uid == 0

    @property
    def contained(self) -> bool:
        """Whether this is in a container, so that options of its engine could be changed."""
        return self.place != "machine"


def look() -> Facts:
    """Gather the facts about this machine and process. Nothing is changed; devices are opened and closed.

    `MountsError` without /proc.
    """
    status = status_of_process()
    mountpoints = {mount.mountpoint for mount in table.mounted()}
    place, engine = _place()
    return Facts(
        place=place,
        engine=engine,
        virtual="hypervisor" in _text("/proc/cpuinfo") or "VM00" in _text("/proc/sysinfo"),
        uid=os.geteuid(),
        own_users=tuple(map(int, _text("/proc/self/uid_map").split())) != _WHOLE_MAP,
        effective=int(status["CapEff"], 16),
        bounding=int(status["CapBnd"], 16),
        no_new_privileges=status.get("NoNewPrivs") == "1",
        filtered=status.get("Seccomp") == "2",
        profile=_profile(),
        masked=any(mountpoint.startswith("/proc/") for mountpoint in mountpoints),
        kernel=_kernel(os.uname().release),
        fuse=open_fuse(),
        null=_open(os.devnull),
        fusermount=_fusermount(),
        bwrap=shutil.which("bwrap") is not None,
        missing_modules=missing_modules(),
        root_mounted="/" in mountpoints,
        settings={name: int(text) for name in SETTINGS if (text := _sysctl(name))},
        user_allow_other="user_allow_other" in map(str.strip, _text("/etc/fuse.conf").splitlines()),
    )


def _text(path: str) -> str:
    """Return what a file says; nothing if it cannot be read."""
    try:
        return Path(path).read_text("utf-8", "surrogateescape")
    except OSError:
        return ""


def _sysctl(name: str) -> str:
    return _text(f"/proc/sys/{name.replace('.', '/')}").strip()


def _place() -> tuple[Place, str | None]:
    engine = None
    if Path("/run/.containerenv").exists():
        engine = "podman"
    elif Path("/.dockerenv").exists():
        engine = "docker"
    else:
        # systemd's convention, which LXC and systemd-nspawn follow; only root may read it of process 1.
        found = re.search(r"(?:^|\0)container=([^\0]+)", _text("/proc/1/environ"))
        engine = _text("/run/systemd/container").strip() or (found[1] if found else None)
    if "KUBERNETES_SERVICE_HOST" in os.environ or Path("/var/run/secrets/kubernetes.io").exists():
        return "pod", engine
    # The files also exist in a root file system that was once an image and is now a machine's.
    if all(_namespace(name) == number for name, number in _FIRST_NAMESPACES.items()):
        return "machine", None
    return ("container", engine) if engine else ("machine", None)


def _namespace(name: str) -> int:
    return Path(f"/proc/self/ns/{name}").stat().st_ino


def _profile() -> str | None:
    name = _text("/proc/self/attr/apparmor/current").strip("\0\n ")
    return name.removesuffix(" (enforce)") if name.endswith(" (enforce)") else None


def _kernel(release: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def open_fuse() -> int:
    """Return the errno of opening /dev/fuse, 0 if it can be opened."""
    return _open("/dev/fuse")


def _open(device: str) -> int:
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _fusermount() -> Literal["fine", "absent", "not setuid", "not root's"]:
    path = shutil.which("fusermount3")
    if path is None:
        return "absent"
    status = Path(path).stat()
    if not status.st_mode & stat.S_ISUID:
        return "not setuid"
    if status.st_uid == 0:
        return "fine"
    return "not root's" if status.st_uid == int(_sysctl("kernel.overflowuid")) else "not setuid"


def missing_modules() -> tuple[str, ...]:
    """Return the Python packages that a mount needs and that cannot be imported."""
    return tuple(name for name in ("pyfuse3", "trio") if importlib.util.find_spec(name) is None)


def _by_place(facts: Facts, machine: str, pod: str, *flags: str) -> tuple[str, tuple[str, ...]]:
    """Return the remedy for a place, and the flags of docker and podman that bring it about."""
    if facts.place == "machine":
        return machine, ()
    if facts.place == "pod":
        return pod, ()
    return f"start the container with {' '.join(flag.replace('=', ' ', 1) for flag in flags)}", flags


def device_problems(facts: Facts) -> list[Problem]:
    """Return what is wrong with /dev/fuse, and with /dev/null, which all that goes on in the background has open."""
    return _null_problems(facts) + _fuse_problems(facts)


def _null_problems(facts: Facts) -> list[Problem]:
    if not facts.null:
        return []
    if facts.null == errno.ENOENT:
        return [Problem("null-device", "there is no /dev/null", "as root, `mknod -m 666 /dev/null c 1 3`")]
    remedy = "as root, `chmod 666 /dev/null`; its file system must not be mounted with nodev"
    return [Problem("null-device", f"/dev/null cannot be opened ({os.strerror(facts.null)})", remedy)]


def _fuse_problems(facts: Facts) -> list[Problem]:
    if not facts.fuse:
        return []
    pod = "`privileged: true` in its securityContext, or a device plugin that provides /dev/fuse"
    if facts.fuse == errno.EACCES:
        return [
            Problem("fuse-access", "no permission for /dev/fuse", "as root on the machine, `chmod 0666 /dev/fuse` "
                    "(what udev usually does)")
        ]  # fmt: skip
    if facts.fuse in (errno.ENODEV, errno.ENXIO):
        return [Problem("fuse-module", "the kernel has no FUSE", "as root on the machine, `modprobe fuse`")]
    what = "there is no /dev/fuse"
    if facts.fuse != errno.ENOENT:
        what = f"/dev/fuse cannot be opened ({os.strerror(facts.fuse)})"
    machine = "as root, `modprobe fuse`, or where /dev is not the machine's, `mknod -m 666 /dev/fuse c 10 229`"
    return [Problem("fuse-device", what, *_by_place(facts, machine, pod, "--device=/dev/fuse"))]


def helper_problems(facts: Facts) -> list[Problem]:
    """Return what is wrong with fusermount3, by which users other than root mount."""
    if facts.root:
        return []
    if facts.fusermount == "absent":
        return [Problem("fusermount", "fusermount3 is missing", "install the package fuse3, or run as root")]
    if facts.fusermount == "not root's":
        what = "this user namespace has no root, whom fusermount3 would have to become"
        remedy = "run apfs outside of it, or as its root (`unshare --map-root-user`, `bwrap --uid 0 --cap-add ALL`)"
        return [Problem("user-namespace", what, remedy)]
    problems = []
    if facts.fusermount == "not setuid":
        remedy = "as root, `chmod u+s $(command -v fusermount3)`, or install the package fuse3 again"
        problems.append(Problem("fusermount-setuid", "fusermount3 is not set-user-ID root", remedy))
    if facts.no_new_privileges:
        remedy, _ = _by_place(
            facts,
            "run apfs outside of what forbids it (systemd's NoNewPrivileges=, bwrap, setpriv)",
            "`allowPrivilegeEscalation: true` in its securityContext",
            "",
        )
        if facts.place == "container":
            remedy = "start the container without --security-opt no-new-privileges"
        problems.append(Problem("no-new-privileges", "no_new_privs prevents fusermount3 from becoming root", remedy))
    return problems


def _sys_admin(facts: Facts) -> list[Problem]:
    """Return the lack of CAP_SYS_ADMIN: root needs it, for others fusermount3 gets what the bounding set leaves."""
    if (facts.effective if facts.root else facts.bounding) & SYS_ADMIN:
        return []
    remedy, flags = _by_place(
        facts,
        "run apfs with it, or outside of what drops it (systemd's CapabilityBoundingSet=, capsh, setpriv)",
        "`capabilities: {add: [SYS_ADMIN]}` in its securityContext",
        "--cap-add=SYS_ADMIN",
    )
    return [Problem("cap-sys-admin", "CAP_SYS_ADMIN is missing", remedy, flags)]


def _apparmor(facts: Facts) -> list[Problem]:
    """Return the AppArmor profile of a container: those of the engines forbid mount(2)."""
    if facts.profile is None:
        return []
    remedy, flags = _by_place(
        facts,
        f"change the profile {facts.profile}, or run apfs outside of it",
        "`appArmorProfile: {type: Unconfined}` in its securityContext",
        "--security-opt=apparmor=unconfined",
    )
    return [Problem("apparmor", f"the AppArmor profile {facts.profile} confines apfs", remedy, flags)]


def _kernel_problems(facts: Facts, needed: tuple[int, int], what: str) -> list[Problem]:
    if facts.kernel >= needed:
        return []
    version, running = (".".join(map(str, numbers)) for numbers in (needed, facts.kernel))
    return [Problem("kernel", f"Linux {running} is too old for {what}", f"Linux {version} or newer is needed")]


def module_problems(missing: tuple[str, ...]) -> list[Problem]:
    """Return what is wrong if these Python packages are missing, which the extra `mount` installs."""
    if not missing:
        return []
    return [Problem("python-modules", f"mounting needs {' and '.join(missing)}", _INSTALL_HINT)]


def import_problem(error: ImportError) -> Problem:
    """Return what is wrong if what the extra `mount` installs is there, and is too old or lacks its own libraries."""
    remedy = "install the package fuse3, and then `pip install --upgrade --force-reinstall pyfuse3 trio`"
    return Problem("python-modules", f"pyfuse3 or trio cannot be used ({error})", remedy)


def mount_problems(facts: Facts) -> list[Problem]:
    """Return every possible reason why a host cannot be mounted."""
    problems = module_problems(facts.missing_modules) + device_problems(facts) + helper_problems(facts)
    problems += _sys_admin(facts) + _apparmor(facts)
    if facts.own_users:
        problems += _kernel_problems(facts, (4, 18), "FUSE in a user namespace")
    return problems


def allow_other_problems(facts: Facts) -> list[Problem]:
    """Return why other users may not be let into a mount."""
    if facts.root or facts.user_allow_other:
        return []
    remedy = "as root, `echo user_allow_other >> /etc/fuse.conf`"
    return [Problem("user-allow-other", "/etc/fuse.conf does not allow users to mount with allow_other", remedy)]


def check_packages() -> None:
    """Make sure that what the extra `mount` installs is there. `MountsError` if not."""
    for problem in module_problems(missing_modules()):
        raise table.MountsError(str(problem))


def check_fuse() -> None:
    """Make sure that this process may use FUSE. `MountsError`, with all that is missing, if not."""
    facts = look()
    if facts.missing_modules or device_problems(facts) or helper_problems(facts):
        raise table.MountsError("; ".join(map(str, mount_problems(facts))))


def sandbox_problems(facts: Facts) -> list[Problem]:
    """Return every possible reason why bwrap cannot make a sandbox with a private network."""
    if not facts.bwrap:
        return [Problem("bwrap", "bwrap is missing", "install the package bubblewrap")]
    if not facts.root_mounted:
        return [CHROOT]
    problems = []
    privileged = may_unshare(facts.uid, facts.effective, network=True)
    if facts.root and facts.contained and not privileged:
        problems = _sys_admin(facts)
        if not facts.effective & NET_ADMIN:
            remedy, flags = _by_place(
                facts, "", "`capabilities: {add: [NET_ADMIN]}` in its securityContext", "--cap-add=NET_ADMIN"
            )
            problems.append(Problem("cap-net-admin", "CAP_NET_ADMIN is missing", remedy, flags))
    elif not privileged:
        problems = _user_namespace_problems(facts)
    if facts.masked and facts.contained and (facts.own_users or not facts.root):
        # In a user namespace a new /proc can only be mounted where nothing of the old one is hidden.
        option = "systempaths=unconfined" if facts.engine == "docker" else "unmask=ALL"
        remedy, flags = _by_place(
            facts, "", "`hostUsers: false` and `procMount: Unmasked`, or run it as root", f"--security-opt={option}"
        )
        problems.append(Problem("masked-proc", "parts of /proc are masked", remedy, flags))
    return problems + _apparmor(facts)


def _user_namespace_problems(facts: Facts) -> list[Problem]:
    wrong = {USER_NAMESPACES: (0, 10000), UBUNTU_RESTRICT: (1, 0)}
    if not facts.root:
        wrong[DEBIAN_CLONE] = (0, 1)
    problems = []
    for name, (bad, good) in wrong.items():
        if facts.settings.get(name) == bad:
            what = "user namespaces are not allowed"
            remedy = f"as root on the machine, `sysctl -w {name}={good}`"
            if name == UBUNTU_RESTRICT:
                what = "AppArmor takes all rights from user namespaces"
                remedy += ", or an AppArmor profile for bwrap (docs/containers.md has one)"
            problems.append(Problem(name, f"{what} ({name}={bad})", remedy))
    if facts.filtered and facts.contained and not facts.bounding & SYS_ADMIN:
        # Docker's filter lets namespaces be made if the container has the capability, no matter which user is in it.
        problems += _sys_admin(facts)
    return problems


def filter_problems(facts: Facts) -> list[Problem]:
    """Return the seccomp filter of a container, for a failure that only a forbidden system call can explain."""
    if not facts.filtered:
        return []
    remedy, flags = _by_place(
        facts,
        "run apfs outside of what filters system calls (systemd's SystemCallFilter=)",
        "`seccompProfile: {type: Unconfined}` in its securityContext",
        "--security-opt=seccomp=unconfined",
    )
    return [Problem("seccomp", "a seccomp filter forbids system calls", remedy, flags)]


def uevent_problems(facts: Facts) -> list[Problem]:
    """Return why no uevents can be sent in a sandbox that can be made."""
    return _kernel_problems(facts, (4, 18), "uevents from user space")


def vfio_problems(facts: Facts) -> list[Problem]:
    """Return why VFIO ioctls cannot be served in a sandbox that can be made."""
    # SECCOMP_IOCTL_NOTIF_ADDFD is as old.
    return _kernel_problems(facts, (5, 9), "serving ioctls") or filter_problems(facts)
