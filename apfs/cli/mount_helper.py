"""`mount -t fuse.apfs`: the helper that mount(8) runs, and with it fstab(5) and systemd's mount units.

mount(8) runs /sbin/mount.fuse.apfs. If that does not exist, mount.fuse3(8) runs `apfs` with the same arguments. In both
cases the exit status becomes that of mount(8), which has its own numbers.
"""

from __future__ import annotations

import contextlib
import fnmatch
import re
from dataclasses import dataclass, field

import click

from apfs import __version__
from apfs.cli import streams

NAME = "mount.fuse.apfs"
USAGE, SYSTEM, FAILED = 1, 2, 32

KERNEL = {"ro": "rw", "noexec": "exec", "noatime": "atime", "sync": "async", "dirsync": None}
"""Options that are handed on to the kernel, and what takes them back; `nosuid` and `nodev` always hold."""

GENERIC = (
    *("rw", "suid", "nosuid", "dev", "nodev", "exec", "async", "atime", "diratime", "nodiratime", "relatime"),
    *("norelatime", "strictatime", "nostrictatime", "lazytime", "nolazytime", "silent", "loud"),
    *("defaults", "auto", "noauto", "nofail", "_netdev", "user", "user=*", "nouser", "users", "nousers"),
    *("owner", "noowner", "group", "nogroup", "comment=*", "x-*", "X-*"),
)
"""Options of any file system, as patterns, that mount(8) or systemd has carried out or that change nothing here."""

_NO_SOURCE = {"none", "apfs"}
_OPTION = re.compile(r'(?:[^,"]|"[^"]*")+')


class OptionError(Exception):
    """An option that cannot be granted; the message names it and says what to do."""


@dataclass(slots=True)
class MountOptions:
    """What the text behind -o asks for."""

    scenario: str | None = None
    server: list[str] = field(default_factory=list)
    """Options of `apfs mount`."""
    kernel: set[str] = field(default_factory=set)
    """Keys of KERNEL."""


def parse(text: str, *, sloppy: bool = False) -> MountOptions:
    """Read mount options: separated by commas, values with a comma in double quotes, the last of a kind counts.

    `OptionError` for what is unknown, unless `sloppy`, and for values that make no sense.
    """
    options = MountOptions()
    words = _OPTION.findall(text)
    if "remount" in words:  # before the others: mount(8) also names those that the mount has, such as user_id=
        raise OptionError(
            "remount is not possible: unmount and mount again; for ro or rw alone, use `mount -i -o remount,ro`"
        )
    for word in words:
        name, _, value = word.replace('"', "").partition("=")
        options.kernel = {option for option in options.kernel if KERNEL[option] != word}
        if name == "scenario" and value:
            options.scenario = value
        elif name == "clock" and value in ("real", "manual"):
            options.server += ["--clock", value]
        elif word in ("allow_other", "noallow_other"):
            options.server.append(f"--{word.replace('_', '-').replace('noallow', 'no-allow')}")
        elif word in KERNEL:
            options.kernel.add(word)
        elif name in ("scenario", "clock"):
            raise OptionError(f"{word}: expected scenario=NAME, scenario=/FILE, clock=real or clock=manual")
        elif not sloppy and not any(fnmatch.fnmatchcase(word, pattern) for pattern in GENERIC):
            raise OptionError(
                f"unknown option {word!r}: apfs has scenario=, clock=, allow_other and noallow_other "
                "besides the options of any file system"
            )
    return options


def _escape(text: str) -> str:
    r"""Write a text so that FUSE finds no further option in it: `a,b` as `a\,b`."""
    return re.sub(r"([\\,])", r"\\\1", text)


@click.command(NAME, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name=NAME)
@click.argument("source")
@click.argument("mountpoint", type=click.Path(readable=False))
@click.option("-o", "options", metavar="OPTIONS", multiple=True, help="Mount options, separated by commas.")
@click.option("-s", "sloppy", is_flag=True, help="Ignore unknown options.")
@click.option("-f", "fake", is_flag=True, help="Check everything, but do not mount.")
@click.option("-v", "verbose", is_flag=True, help="Print what was mounted.")
@click.option("-n", "_no_mtab", is_flag=True, help="Do not write /etc/mtab; apfs never does.")
@click.option("-N", "namespace", metavar="NS", help="Refused: use nsenter(1).")
@click.option("-t", "_type", metavar="TYPE", help="The type; always fuse.apfs.")
def command(
    source: str,
    mountpoint: str,
    *,
    options: tuple[str, ...],
    sloppy: bool,
    fake: bool,
    verbose: bool,
    _no_mtab: bool,
    namespace: str | None,
    _type: str | None,
) -> None:
    """Mount an emulated IBM Z host, for mount(8).

    Do not run this by hand; use `apfs mount` instead. `mount -t fuse.apfs SOURCE MOUNTPOINT` and lines of fstab(5)
    run it if it is installed as /sbin/mount.fuse.apfs. To unmount, use umount(8).

    SOURCE is the name of a scenario (`apfs scenario list`) or, if it contains a / or a ., the name of a TOML file.
    findmnt(8) shows it. `none` and `apfs` mean the scenario default. With the option scenario=, the source is only
    a label.

    \b
    MOUNT OPTIONS
        scenario=NAME|FILE               the host to emulate
        clock=real|manual                whether the AP bus scans by itself (real)
        allow_other, noallow_other       whether other users have access (if mounted by root)
        ro, noexec, noatime, sync, dirsync
                                         as for any file system; with ro, nobody can change the host
        nosuid, nodev                    always in effect

    Other options of mount(8) and systemd, such as user, nofail, _netdev and x-systemd.automount, have their usual
    meaning. Any other option is refused. Put values with a comma in double quotes.

    \b
    EXAMPLE
        ln -s "$(command -v mount.fuse.apfs)" /sbin/
        mount -t fuse.apfs migration-source /mnt/a
        umount /mnt/a
        echo 'default /mnt/z fuse.apfs noauto,user,clock=manual 0 0' >> /etc/fstab
        mount /mnt/z

    \b
    EXIT STATUS
         0  mounted
         1  wrong usage or options
         2  something is missing: packages, /dev/fuse
        32  could not be mounted
    """
    from apfs.mounts import environment, server, table
    from apfs.scenario.model import DEFAULT, ScenarioError
    from apfs.scenario.reader import load

    if namespace:
        streams.fail("-N is not supported: use `nsenter --mount=NAMESPACE mount ...`", USAGE, NAME)
    try:
        wanted = parse(",".join(options), sloppy=sloppy)
    except OptionError as error:
        streams.fail(str(error), USAGE, NAME)
    scenario = wanted.scenario or (DEFAULT if source in _NO_SOURCE else source)
    try:
        environment.check_packages()
        environment.check_fuse()
    except table.MountsError as error:
        streams.fail(str(error), SYSTEM, NAME)
    try:
        load(scenario)
        server.check_mountpoint(mountpoint)
        if not fake:
            fuse = [f"--fuse-option={option}" for option in (f"fsname={_escape(source)}", *sorted(wanted.kernel))]
            server.start_server(mountpoint, ["--scenario", scenario, *wanted.server, *fuse])
    except (ScenarioError, table.MountsError) as error:
        streams.fail(str(error), FAILED, NAME)
    if verbose:
        with contextlib.suppress(streams.OutputError):  # the mount exists, whether or not that can be printed
            click.echo(f"{NAME}: {source} {'would be ' if fake else ''}mounted on {mountpoint}")


def main(arguments: list[str] | None = None) -> None:
    """Run the helper with the statuses of mount(8): click's for wrong usage is another one."""
    streams.prepare()
    try:
        command.main(arguments, prog_name=NAME, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        raise SystemExit(USAGE) from None
