"""Interrupts reach real eventfds."""

from tests.ioctl.conftest import client

GUEST = """
import select
create(adapters=(5,), domains=(0x47,))
d = Device()
def fired(fd):
    # No time limit of our own: one that never fires hangs, and the run's limit ends it.
    select.select((fd,), (), ())
    return os.eventfd_read(fd)
def refused(path, text):
    try:
        write(path, text)
    except OSError as error:
        return errno.errorcode[error.errno]
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
