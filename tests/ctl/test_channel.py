"""The protocol of `ctl/ioctl`, and what becomes of files that nobody comes for."""

from __future__ import annotations

import errno
import json
import struct
from typing import TYPE_CHECKING, Any

import pytest

from apfs.ctl.channel import Channel
from apfs.errors import KernelError
from apfs.host import Host
from apfs.journal.log import CONTENT
from apfs.journal.records import Refusal
from apfs.scenario.reader import loads
from apfs.sysfs.entries import BOTH
from apfs.testing.files import Shell
from tests.calls import calls
from tests.hosts import CREATE, M1, WORKED

if TYPE_CHECKING:
    from apfs.sysfs.tree import OpenFile


class Client:
    """A supervisor and a program in one, without processes."""

    def __init__(self) -> None:
        self.host = Host(loads(WORKED))
        self.shell = Shell(self.host)
        self.shell.echo(M1, CREATE)
        channel = self.open("/ctl/ioctl")
        assert isinstance(channel, Channel)
        self.channel = channel

    def open(self, path: str) -> OpenFile:
        return self.host.tree.open(self.host.tree.resolve(path), BOTH)

    def ask(self, *files: OpenFile, **request: object) -> Any:  # noqa: ANN401 -- JSON
        text = json.dumps({"arg": 0, "memory": "", "descriptor": None} | request).encode()
        assert self.channel.write(text) == len(text)
        for file in files:
            self.channel.watch(file)
        return self.line()

    def line(self) -> Any:  # noqa: ANN401 -- JSON
        text = b""
        while not text.endswith(b"\n"):
            text += self.channel.read(len(text), 7)
        return json.loads(text)

    def device(self) -> tuple[OpenFile, OpenFile, str]:
        """Open a device through a container; return group, container and the name of the device's file."""
        group, container = self.open("/dev/vfio/0"), self.open("/dev/vfio/vfio")
        memory = struct.pack("=i", 5).hex()
        assert self.ask(group, container, cmd=0x3B68, arg=16, memory=memory, descriptor="file")["value"] == 0
        assert self.ask(container, cmd=0x3B66, arg=3)["value"] == 0
        reply = self.ask(group, cmd=0x3B6A, arg=16, memory=f"{M1.encode().hex()}00")
        assert reply == {"value": 0, "writes": [], "file": {"name": reply["file"]["name"], "access": "rw", "at": None}}
        return group, container, reply["file"]["name"]


@pytest.fixture
def client() -> Client:
    return Client()


def test_a_file_that_is_not_of_vfio_is_left_to_the_kernel(client: Client) -> None:
    assert client.ask(client.open("/sys/bus/ap/apmask"), cmd=0x3B64) is None
    assert client.ask(cmd=0x3B64) is None


def test_long_answers_are_dropped_from_the_journal_as_long_requests_are(client: Client) -> None:
    container, group = client.open("/dev/vfio/vfio"), client.open("/dev/vfio/0")
    memory = struct.pack("=i", 5).hex()
    assert client.ask(group, container, cmd=0x3B68, arg=16, memory=memory, descriptor="file")["value"] == 0
    assert client.ask(container, cmd=0x3B66, arg=3)["value"] == 0
    size = 1 << 37
    mapped = struct.pack("=IIQQQ", 32, 3, 0, 0, size).hex()
    assert client.ask(container, cmd=0x3B71, arg=16, memory=mapped)["value"] == 0
    assert client.ask(container, cmd=0x3B75, arg=16, memory=struct.pack("=II", 8, 1).hex())["value"] == 0
    before = client.host.journal.dropped
    asked = struct.pack("=IIQQQQQ", 48, 4, 0, size, 4096, size >> 15, 0x9000).hex()
    text = json.dumps({"cmd": 0x3B75, "arg": 16, "memory": asked, "descriptor": None}).encode()
    for _ in range(CONTENT // (size >> 14) + 1):
        client.channel.write(text)
        client.channel.watch(container)
        answer = bytes(client.channel.read(0, 1 << 30))
        assert json.loads(answer)["writes"] == [[0x9000, "00" * (size >> 15)]]
    assert client.host.journal.dropped > before


def test_without_a_request_there_is_nothing_to_do(client: Client) -> None:
    assert client.line() == {"signal": [], "drop": []}


def test_reading_the_channel_to_its_end_ends(client: Client) -> None:
    assert json.loads(client.shell.cat("/ctl/ioctl")) == {"signal": [], "drop": []}
    assert client.line() == {"signal": [], "drop": []}
    assert client.channel.read(0, 100) == b""
    client.ask(client.open("/dev/vfio/vfio"), cmd=0x3B64)
    assert client.line() == {"signal": [], "drop": []}


def test_files_that_nobody_came_for_are_forgotten(client: Client) -> None:
    """A supervisor that serves for months is offered millions of files."""
    nothing = calls(lambda: client.channel.write(b"{}"))
    client.device()
    assert calls(lambda: client.channel.write(b"{}")) > nothing
    assert calls(lambda: client.channel.write(b"{}")) == nothing


def test_values_and_writes(client: Client) -> None:
    assert client.ask(client.open("/dev/vfio/vfio"), cmd=0x3B65, arg=9) == {"value": 1, "writes": [], "file": None}
    group = client.open("/dev/vfio/0")
    reply = client.ask(group, cmd=0x3B67, arg=0x1000, memory=struct.pack("=II", 8, 0).hex())
    assert reply == {"value": 0, "writes": [[0x1000, struct.pack("=II", 8, 1).hex()]], "file": None}
    assert client.ask(group, cmd=0x3B67, arg=0x1000, memory="00")["value"] == -errno.EFAULT


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b'"x"', b"[" * 100_000, b"1" * 9999])
def test_what_is_no_request(client: Client, text: bytes) -> None:
    with pytest.raises(KernelError) as refusal:
        client.channel.write(text)
    assert refusal.value.errno == errno.EINVAL


def test_a_new_file_is_opened_once_and_gone_when_it_is_closed(client: Client) -> None:
    group, _, name = client.device()
    device = client.open(f"/ctl/fds/{name}")
    with pytest.raises(KernelError) as refusal:
        client.open(f"/ctl/fds/{name}")
    assert refusal.value.errno == errno.ENXIO
    group.close()
    assert client.shell.cat(f"/dev/vfio-ap/{M1}/guest") == "1\n"
    device.close()
    assert client.shell.cat(f"/dev/vfio-ap/{M1}/guest") == "0\n"
    assert client.shell.ls("/ctl/fds") == []


@pytest.mark.parametrize("how", ["next request", "close"])
def test_a_file_that_nobody_came_for_is_closed(client: Client, how: str) -> None:
    _, container, _ = client.device()
    assert client.shell.cat(f"/dev/vfio-ap/{M1}/guest") == "1\n"
    if how == "close":
        client.channel.close()
    else:
        client.ask(container, cmd=0x3B64)
    assert client.shell.cat(f"/dev/vfio-ap/{M1}/guest") == "0\n"
    assert client.shell.ls("/ctl/fds") == []


def test_eventfds_are_signalled_and_dropped_by_number(client: Client) -> None:
    _, _, name = client.device()
    device = client.open(f"/ctl/fds/{name}")
    for number in (7, 8):
        memory = struct.pack("=5Ii", 24, 36, 0, 0, 1, 99).hex()
        assert client.ask(device, cmd=0x3B6E, arg=16, memory=memory, descriptor=number)["value"] == 0
    assert client.channel.poll()
    assert client.line() == {"signal": [], "drop": [7]}
    assert not client.channel.poll()
    with pytest.raises(KernelError):
        client.shell.echo("1", f"/sys/bus/mdev/devices/{M1}/remove")
    assert client.line() == {"signal": [8], "drop": []}
    device.close()
    assert client.line() == {"signal": [], "drop": []}  # vfio_ap_mdev_close_device keeps them
    client.shell.echo("1", f"/sys/bus/mdev/devices/{M1}/remove")
    assert client.line() == {"signal": [], "drop": [8]}


def test_an_eventfd_that_outlives_its_supervisor_is_signalled_to_nobody(client: Client) -> None:
    """A device keeps it after its close, and so signals it to whoever has it open next."""
    _, _, name = client.device()
    device = client.open(f"/ctl/fds/{name}")
    memory = struct.pack("=5Ii", 24, 36, 0, 0, 1, 99).hex()
    assert client.ask(device, cmd=0x3B6E, arg=16, memory=memory, descriptor=7)["value"] == 0
    channel = client.channel
    channel.close()
    with pytest.raises(KernelError):
        client.shell.echo("1", f"/sys/bus/mdev/devices/{M1}/remove")
    device.close()
    client.shell.echo("1", f"/sys/bus/mdev/devices/{M1}/remove")
    assert not channel.poll()


def test_a_refused_stream_of_a_descriptor_is_one_record(client: Client) -> None:
    """The mount and the descriptor of an ioctl lead to the same file, and it is the file that records."""
    client.shell.echo("0x47", f"/sys/devices/vfio_ap/matrix/{M1}/assign_domain")
    client.shell.echo("5", f"/sys/devices/vfio_ap/matrix/{M1}/assign_adapter")
    _, _, name = client.device()
    device = client.open(f"/ctl/fds/{name}")
    resuming = struct.pack("=IIIi", 16, 1 << 17 | 2, 4, 0).hex()
    reply = client.ask(device, cmd=0x3B75, arg=16, memory=resuming)
    stream = client.open(f"/ctl/fds/{reply['file']['name']}")
    before = client.host.journal.last
    for call, operation in ((lambda: stream.write(b"\0\0\0\7"), "write"), (lambda: stream.read(0, 1), "read")):
        with pytest.raises(KernelError) as refused:
            call()
        *_, (before, record) = client.host.journal.since(before)
        assert isinstance(record, Refusal)
        assert (record.operation, record.errno) == (operation, refused.value.name)
        assert record.path == f"/dev/vfio-ap/{M1}/data_stream"
        assert record.why == refused.value.why
    assert len(client.shell.journal.refusals()) == 2


@pytest.mark.parametrize(
    ("cmd", "arg", "memory", "expected"),
    [
        (0x3B6C, 0, "", "EINVAL"),  # GET_REGION_INFO
        (0x3BFF, 0, "", "EOPNOTSUPP"),
        (0x3B6B, 16, "", "EFAULT"),
    ],
)
def test_a_refused_ioctl_is_one_record_with_the_error_as_others_call_it(
    client: Client, cmd: int, arg: int, memory: str, expected: str
) -> None:
    _, _, name = client.device()
    device = client.open(f"/ctl/fds/{name}")
    assert client.ask(device, cmd=cmd, arg=arg, memory=memory)["value"] == -getattr(errno, expected)
    (record,) = client.shell.journal.refusals()
    assert (record.operation, record.path, record.errno) == ("ioctl", M1, expected)


@pytest.mark.parametrize(
    ("operation", "data"),
    [
        ("write", "[]"),
        ("read", '{"cmd": 1}'),
        ("read", '{"cmd": 1, "arg": "x", "memory": ""}'),
        ("read", '{"cmd": 1, "arg": 1, "memory": "0"}'),
        ("read", '{"cmd": 1, "arg": 1, "memory": "", "pointed": "xy"}'),
    ],
)
def test_what_is_no_request_is_one_record(client: Client, operation: str, data: str) -> None:
    container = client.open("/dev/vfio/vfio")
    before = client.host.journal.last

    def ask() -> None:
        client.channel.write(data.encode())
        client.channel.watch(container)
        client.channel.read(0, 100)

    with pytest.raises(KernelError):
        ask()
    ((_, record),) = client.host.journal.since(before)
    assert isinstance(record, Refusal)
    assert (record.operation, record.path, record.errno) == (operation, "/ctl/ioctl", "EINVAL")


def test_ioctls_are_in_the_journal(client: Client) -> None:
    container = client.open("/dev/vfio/vfio")
    client.ask(container, cmd=0x3B64)
    client.ask(container, cmd=0x3B66, arg=3)
    records = [json.loads(line) for line in client.shell.cat("/ctl/journal").splitlines()][-2:]
    assert [record["type"] for record in records] == ["ioctl", "refusal"]
    assert records[1]["data"] == "VFIO_SET_IOMMU"
    assert records[1]["errno"] == "EINVAL"
