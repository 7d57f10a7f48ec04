"""Uevents of the emulated host on a real netlink socket: what the kernel would have sent, byte for byte."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from apfs.sandbox import namespaces, uevents
from tests.sandbox.conftest import exec_as_nobody
from tests.tools.conftest import inside

if TYPE_CHECKING:
    from collections.abc import Callable

LISTENER = """
import os, socket, sys, time
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15)
s.bind((0, int(sys.argv[1])))
for path, text in (line.split("=", 1) for line in sys.argv[4:]):
    open(path, "w").write(text)
end, missing = time.monotonic() + float(sys.argv[2]), int(sys.argv[3])
while missing:
    s.settimeout(max(end - time.monotonic(), 0.001))
    try:
        data, (pid, groups) = s.recvfrom(65536)
    except TimeoutError:
        print("nothing")
        break
    # The machine's own: whenever anything is mounted anywhere.
    if b"@/devices/virtual/bdi/" not in data:
        print(pid, groups, repr(data))
        missing -= 1
"""


AT_ONCE = """
import os, socket
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15)
s.bind((0, 1))
s.setblocking(False)
def store(path, text):
    file = os.open(path, os.O_WRONLY)
    os.write(file, text)
    os.close(file)
def got(begin):
    try:
        while not s.recv(65536).startswith(begin):
            pass
    except BlockingIOError:
        print("late:", begin)
for number in range(200):
    store("/sys/devices/ap/card00/uevent", b"change")
    got(b"change@/devices/ap/card00")
for number in range(20):
    name = b"node%d" % number
    store("/sys/class/zcrypt/create", name)
    got(b"add@/devices/virtual/zcrypt/" + name)
    if not os.path.lexists(b"/dev/" + name):
        print("late:", name)
"""


def listen(count: int, *stores: str, group: int = 1, timeout: int = 60, options: tuple[str, ...] = ()) -> list[str]:
    """Make stores inside a sandbox and return `count` messages as the listener got them."""
    script = 'exec python3 -c "$@"'
    result = inside(script, LISTENER, str(group), str(timeout), str(count), *stores, options=options)
    return result.stdout.splitlines()


def without_seqnum(line: str) -> tuple[str, bytes]:
    source, data = line.split(" b", 1)
    message: bytes = eval("b" + data)  # noqa: S307 -- printed by repr
    keys = message.split(b"\0")
    assert keys[-1] == b""
    assert keys[-2].startswith(b"SEQNUM=")
    return source, b"\0".join(keys[:-2])


def test_kernel_messages() -> None:
    card, bus = "/sys/devices/ap/card01", "/sys/bus/ap"
    lines = listen(4, f"{card}/config=0", f"{bus}/aqmask=-0x0b", f"{card}/uevent=add")
    (source, config), *rest = map(without_seqnum, lines)
    assert source == "0 1"
    assert config.split(b"\0") == [
        b"change@/devices/ap/card01", b"ACTION=change", b"DEVPATH=/devices/ap/card01", b"SUBSYSTEM=ap", b"CONFIG=0",
        b"DEVTYPE=ap_card", b"DRIVER=cex4card", b"DEV_TYPE=000E", b"MODALIAS=ap:t0E", b"MODE=ep11",
    ]  # fmt: skip
    assert [message.split(b"\0")[0] for _, message in rest] == [
        b"unbind@/devices/ap/card00/00.000b",
        b"bind@/devices/ap/card00/00.000b",
        b"unbind@/devices/ap/card01/01.000b",
    ]


def test_the_value_of_apmask_ends_with_a_newline_on_the_wire() -> None:
    (line,) = listen(1, "/sys/bus/ap/apmask=+7,-7,-200")
    _, message = without_seqnum(line)
    assert message.split(b"\0")[0] == b"change@/devices/ap"
    (mask,) = [key for key in message.split(b"\0") if key.startswith(b"APMASK=")]
    assert mask.endswith(b"f\n")
    assert len(mask) == len("APMASK=0x") + 64 + 1


def test_order_and_sequence_numbers() -> None:
    lines = listen(8, "/sys/devices/ap/card00/online=0", "/sys/devices/ap/card00/online=1")
    numbers = [int(line.rsplit("SEQNUM=", 1)[1].split("\\")[0]) for line in lines]
    assert numbers == sorted(numbers)
    devices = [without_seqnum(line)[1].split(b"\0")[2].decode().rsplit("/", 1)[1] for line in lines]
    assert devices == ["card00", "00.0006", "00.000b", "00.001f"] * 2


def test_events_and_nodes_are_there_when_the_write_returns() -> None:
    """As in Linux. Without waiting for it a few of a hundred would be late, more on a busy machine."""
    result = inside('exec python3 -c "$@"', AT_ONCE)
    assert result.stdout == ""


def test_udevd_group_without_udevd() -> None:
    (line,) = listen(1, "/sys/devices/ap/card00/uevent=change", group=2)
    assert line.split(" b")[0].endswith(" 2")
    assert "libudev\\x00\\xfe\\xed\\xca\\xfe" in line


def test_network_of_the_machine_gets_nothing() -> None:
    # Other events of the machine itself may arrive.
    lines = listen(1000, "/sys/devices/ap/card00/uevent=change", timeout=1, options=("--net", "host"))
    assert [line for line in lines if "/devices/ap" in line] == []
    assert lines[-1] == "nothing"


def test_ordinary_user_gets_events_too(tmp_path: Path) -> None:
    said = exec_as_nobody(tmp_path, "python3", "-c", LISTENER, "1", "60", "1", "/sys/devices/ap/card05/uevent=change")
    assert said.startswith("0 1 b'change@/devices/ap/card05")


@pytest.mark.parametrize("text", [b"", b"a", b"ap", b"dev", b"mdev", b"ap_queue", b"vfio-dev", b"ap_card", b"matrix"])
def test_murmur2(text: bytes, murmur_reference: Callable[[bytes], int]) -> None:
    assert uevents.murmur2(text) == murmur_reference(text)


@pytest.fixture(scope="session")
def murmur_reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], int]:
    """The hash in C, after its author's description, with the machine's own unsigned arithmetic."""
    directory = tmp_path_factory.mktemp("murmur")
    (directory / "hash.c").write_text("""
        #include <stdint.h>
        #include <stdio.h>
        #include <string.h>
        int main(int argc, char **argv) {
            const unsigned char *p = (const unsigned char *) argv[1];
            uint32_t left = strlen(argv[1]), h = left, k;
            for (; left >= 4; p += 4, left -= 4) {
                memcpy(&k, p, 4); k *= 0x5bd1e995u; k ^= k >> 24; k *= 0x5bd1e995u;
                h *= 0x5bd1e995u; h ^= k;
            }
            if (left > 2) h ^= (uint32_t) p[2] << 16;
            if (left > 1) h ^= (uint32_t) p[1] << 8;
            if (left > 0) { h ^= p[0]; h *= 0x5bd1e995u; }
            h ^= h >> 13; h *= 0x5bd1e995u; h ^= h >> 15;
            return printf("%u", h) < 0;
        }
    """)
    subprocess.run(["gcc", "-o", directory / "hash", directory / "hash.c"], check=True)

    def reference(text: bytes) -> int:
        return int(subprocess.run([directory / "hash", text], check=True, capture_output=True).stdout)

    return reference


def test_kernel_message_layout() -> None:
    event = uevents.Event((("ACTION", "add"), ("DEVPATH", "/x"), ("SUBSYSTEM", "ap"), ("K", "v")), "7")
    message = uevents.kernel_message(event)
    body = b"add@/x\0ACTION=add\0DEVPATH=/x\0SUBSYSTEM=ap\0K=v\0"
    assert message == struct.pack("=IHHII", 16 + len(body), 16, 5, 7, 0) + body


def test_parse_undoes_the_control_file() -> None:
    text = "change@/a\nACTION=change\nDEVPATH=/a\nSUBSYSTEM=ap\nAPMASK=0xff\nSEQNUM=3\n\n"
    text += "add@/b\nACTION=add\nDEVPATH=/b\nSEQNUM=4\n\n"
    first, second = uevents.parse(text)
    assert first.get("APMASK") == "0xff\n"
    assert (first.sequence, second.sequence) == ("3", "4")
    assert second.keys == (("ACTION", "add"), ("DEVPATH", "/b"))


def test_a_user_namespace_is_joined_when_it_has_users() -> None:
    command = ["unshare", "--user", "sh", "-c", "echo ready; read -r _"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        of_process = Path(f"/proc/{process.pid}")
        assert not namespaces.is_mapped(process.pid)
        (of_process / "uid_map").write_text(f"0 {os.getuid()} 1")
        assert not namespaces.is_mapped(process.pid)
        (of_process / "setgroups").write_text("deny")
        (of_process / "gid_map").write_text(f"0 {os.getgid()} 1")
        assert namespaces.is_mapped(process.pid)
        process.stdin.close()
