"""Interrupts reach real eventfds."""

import sys

import pytest

from tests.conftest import sh
from tests.ioctl.conftest import HERE, PYTHON, client

GUEST = """
import select
create(adapters=(5,), domains=(0x47,))
d = Device()
def fired(fd):
    # No time limit of our own: one that never fires hangs, and the run's limit ends it.
    poll = select.poll(); poll.register(fd, select.POLLIN); poll.poll()
    return os.eventfd_read(fd)
"""


def test_a_changed_configuration_and_a_request_to_release() -> None:
    result = client(f"""{GUEST}
request, changed = d.eventfd(0), d.eventfd(1)
write(f"{{MATRIX}}/{{U}}/assign_control_domain", "3")
write("/dev/apfs/ctl/console", "add-control-domain 3")
write("/dev/apfs/ctl/console", "scan")
write(f"{{MATRIX}}/{{U}}/unassign_domain", "0x47")
print("changed", fired(changed))
write("/dev/apfs/ctl/console", "unplug 5")
write("/dev/apfs/ctl/console", "scan")
print("unplugged", fired(changed) > 0)
print(refused(f"/sys/bus/mdev/devices/{{U}}/remove", "1"), fired(request), fired(changed) > 0)
d.close()
write(f"/sys/bus/mdev/devices/{{U}}/remove", "1")
print(os.path.exists(f"/sys/bus/mdev/devices/{{U}}"))
""")
    lines = result.stdout.splitlines()
    assert lines[0].split()[0] == "changed"
    assert int(lines[0].split()[1]) >= 1
    assert lines[1:] == ["unplugged True", "EBUSY 1 True", "False"]


def test_a_replaced_and_a_dropped_eventfd_stay_silent() -> None:
    result = client(f"""{GUEST}
old = d.eventfd(0)
new = d.eventfd(0)
other = d.eventfd(1)
d.set_irq(1, -1)
print(refused(f"/sys/bus/mdev/devices/{{U}}/remove", "1"), fired(new))
print([fd for fd in (old, other) if select.select((fd,), (), (), 0)[0]])
""")
    assert result.stdout.splitlines() == ["EBUSY 1", "[]"]


def test_hot_plugged_queues_change_the_configuration() -> None:
    result = client(f"""{GUEST}
write("/sys/bus/ap/apmask", "-6")
changed, silent = d.eventfd(1), d.eventfd(0)
write(f"{{MATRIX}}/{{U}}/assign_adapter", "6")
print("assigned", fired(changed), open(f"{{MATRIX}}/{{U}}/guest_matrix").read().split())
for verb in ("unplug 6", "scan"):
    write("/dev/apfs/ctl/console", verb)
print("unplugged", fired(changed) > 0, open(f"{{MATRIX}}/{{U}}/guest_matrix").read().split())
for verb in ("plug 6 CEX8C", "scan"):
    write("/dev/apfs/ctl/console", verb)
print("plugged", fired(changed) > 0, open(f"{{MATRIX}}/{{U}}/guest_matrix").read().split())
print("request", select.select((silent,), (), (), 0)[0])
""")
    assert result.stdout.splitlines() == [
        "assigned 1 ['05.0047', '06.0047']",
        "unplugged True ['05.0047']",
        "plugged True ['05.0047', '06.0047']",
        "request []",
    ]


MANY = """
from client import *
import resource, select, uuid
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
write("/sys/bus/ap/apmask", "-5")
names = [str(uuid.UUID(int=number)) for number in range(1, int(sys.argv[1]) + 1)]
for name in names:
    create(name)
devices = [Device(name) for name in names]
fds = [device.eventfd(irq) for device in devices for irq in (0, 1)]
print(len(fds), *(refused(f"/sys/bus/mdev/devices/{name}/remove", "1") for name in {names[0], names[-1]}))
for fd in {fds[0], fds[-2]}:
    poll = select.poll(); poll.register(fd, select.POLLIN); poll.poll()
    print(os.eventfd_read(fd))
"""


@pytest.mark.parametrize(
    ("before", "devices"),
    [
        # The soft limit is for the command; whoever keeps its eventfds needs one of its own for each.
        ("ulimit -Sn 60", 40),
        # What apfs exec inherits, it passes on; its own descriptors have higher numbers than select(2) knows.
        ("ulimit -n 4096; for number in {1..1100}; do exec {fd}</dev/null; done", 1),
    ],
    ids=["low limit", "high numbers"],
)
def test_eventfds_and_limits_of_descriptors(before: str, devices: int) -> None:
    command = f'PYTHONPATH={HERE} exec {sys.executable} -m apfs exec -- {PYTHON} -c "$@"'
    result = sh(f"{before}\n{command}", f"import sys\n{MANY}", str(devices))
    asked = min(devices, 2)
    assert result.stdout.split() == [str(2 * devices), *["EBUSY"] * asked, *["1"] * asked]


def test_without_an_eventfd_the_log_says_so() -> None:
    result = client(f"""{GUEST}
print(refused(f"/sys/bus/mdev/devices/{{U}}/remove", "1"))
print(open("/dev/apfs/ctl/kmsg").read().splitlines()[-1])
""")
    refusal, notice = result.stdout.splitlines()
    assert refusal == "EBUSY"
    assert notice.endswith("no device request registered: blocked until the user releases the device")


def test_an_eventfd_goes_on_when_whoever_registered_it_is_gone() -> None:
    result = client(f"""{GUEST}
e = os.eventfd(0)
if os.fork() == 0:
    d.set_irq(0, e)
    os._exit(0)
os.wait()
print(refused(f"/sys/bus/mdev/devices/{{U}}/remove", "1"), fired(e))
""")
    assert result.stdout.splitlines() == ["EBUSY 1"]
