"""Random histories of one host, played on the emulator and on the naive oracle, compared after every step.

The emulator is driven only the way its users drive it, by reading and writing files. Numbers and masks are written in
every notation the files understand. The pools are small, so that adapters, domains and devices keep getting into each
other's way.

There are two tests. In the state machine everything is chosen by Hypothesis, which shrinks a failure to a few steps.
It spends most of its examples on variations of a few, though, so random walks look further around; there, only the
seed is chosen by Hypothesis, and the last of the printed writes is the one that failed.
"""

import errno
from collections.abc import Callable
from random import Random

from hypothesis import given, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from apfs.errors import KernelError
from apfs.host import Host
from apfs.scenario.reader import loads
from apfs.testing.files import Shell
from tests.examples import times

from .oracle import ALL_NUMBERS, DEFAULT_DRIVER, VFIO_DRIVER, NaiveHost, mask_text

SCENARIO = """
name = "t"

[qci]
domains = [4, 0x47]
control_domains = [4]
max_adapter = 63
max_domain = 200

[[card]]
adapter = 5
type = "CEX8C"

[[card]]
adapter = 6
type = "CEX8C"
"""

# Adapter 7 and domain 9 exist only once they have been plugged; the last ones are beyond the maximum.
REAL_ADAPTERS = (5, 6, 7)
ADAPTERS = (*REAL_ADAPTERS, 64)
REAL_DOMAINS = (4, 9, 0x47)
DOMAINS = (*REAL_DOMAINS, 255)
REAL_CONTROL_DOMAINS = (4, 9)
CONTROL_DOMAINS = (*REAL_CONTROL_DOMAINS, 255)
UUIDS = tuple(f"{digit * 8}-abcd-4def-8abc-{digit * 12}" for digit in "1ab")

AP_BUS = "/sys/bus/ap"
AP_DEVICES = "/sys/devices/ap"
MATRIX = "/sys/devices/vfio_ap/matrix"
MDEV_TYPE = f"{MATRIX}/mdev_supported_types/vfio_ap-passthrough"

# The ways to give vfio_ap something at the start.
RELEASES = ("nothing", "adapters", "adapter 5", "domains", "both", "queues")

Snapshot = dict[str, str]
Term = tuple[str, int, int]  # sign, first number, last number
Pick = tuple[str, int]  # which kind, which one of them

NUMBER_STYLES = ("{:d}", "+{:d}", "{:#x}", "0X{:X}", "0x{:04x}", "+0x{:X}", "0{:o}", "+0{:o}")
TERM_STYLES = ("{:d}", "{:#x}", "0x{:02X}", "0{:o}")

uuids = st.sampled_from(UUIDS)
mdev_picks = st.tuples(st.sampled_from(("existing",) * 7 + ("any",)), st.integers(0, 2))
queue_picks = st.tuples(st.sampled_from(("assigned", "assigned", "existing", "any")), st.integers(0, 8))
endings = st.sampled_from(("", "\n"))
numbers_as_text = st.sampled_from([style + ending for style in NUMBER_STYLES for ending in ("", "\n")])


def subsets(usual: tuple[int, ...], everything: tuple[int, ...]) -> st.SearchStrategy[set[int]]:
    """Make sets of numbers, often small, only now and then with one that is beyond the maximum."""
    one = st.sampled_from(usual).map(lambda number: {number})
    some = st.sets(st.sampled_from(usual), min_size=1)
    return st.one_of(one, some, some, st.sets(st.sampled_from(everything)))


def terms(numbers: tuple[int, ...]) -> st.SearchStrategy[list[Term]]:
    """Relative changes of a mask, such as +5 and -6-7."""
    single = st.tuples(st.sampled_from("+-"), st.sampled_from(numbers)).map(lambda term: (term[0], term[1], term[1]))
    limits = st.sampled_from((*numbers, 0, 255))
    ends = st.tuples(st.sampled_from("+-"), limits, limits)
    ranges = ends.map(lambda term: (term[0], min(term[1], term[2]), max(term[1], term[2])))
    return st.lists(st.one_of(single, single, ranges), min_size=1, max_size=3)


def apply_terms(base: set[int], changes: list[Term]) -> set[int]:
    """Work out what the changes come to, left to right."""
    result = set(base)
    for sign, first, last in changes:
        for number in range(first, last + 1):
            if sign == "+":
                result.add(number)
            else:
                result.discard(number)
    return result


def spell_terms(changes: list[Term], style: str, separator: str) -> str:
    """Write the changes down. Without a separator only a + can follow, for a - would continue a range."""
    text = ""
    for sign, first, last in changes:
        if text:
            text += separator if separator or sign == "+" else ","
        text += sign + style.format(first)
        if first != last:
            text += "-" + style.format(last)
    return text


@st.composite
def mask_spellings(draw: st.DrawFn, short: st.SearchStrategy[bool]) -> Callable[[set[int]], str]:
    """Ways to write a whole mask, without a newline."""
    prefix = draw(st.sampled_from(("0x", "x", "")))
    upper = draw(st.booleans())
    is_short = draw(short)

    def spell(numbers: set[int]) -> str:
        digits = mask_text(numbers).removeprefix("0x")
        if upper:
            digits = digits.upper()
        if is_short:
            digits = digits.rstrip("0")
        return prefix + digits

    return spell


any_mask_spelling = mask_spellings(st.booleans())


@st.composite
def mask_writes(draw: st.DrawFn, numbers: tuple[int, ...]) -> Callable[[set[int]], tuple[set[int], str]]:
    """Make writes to a bus mask: from the current mask to the wanted one and the text that says so."""
    changes = draw(terms(numbers))
    ending = draw(endings)
    kind = draw(
        st.sampled_from(("relative", "relative", "relative", "absolute", "absolute", "from none", "ones", "ones"))
    )
    if kind == "relative":
        style = draw(st.sampled_from(TERM_STYLES))
        text = spell_terms(changes, style, draw(st.sampled_from((",", "\n", ",,\n", "")))) + ending
        return lambda current: (apply_terms(current, changes), text)
    spell = draw(any_mask_spelling)

    def absolute(current: set[int]) -> tuple[set[int], str]:
        wanted = set(ALL_NUMBERS)
        if kind == "absolute":
            wanted = apply_terms(current, changes)
        elif kind == "from none":
            wanted = apply_terms(set(), changes)
        return wanted, spell(wanted) + ending or "\n"

    return absolute


BAD_NUMBERS = (
    *(
        (text, errno.EINVAL)
        for text in ("0x", "08", " 5", "5 ", "-1", "5 6", "5,6", "5\n\n", "0b1", "++5", "\n", "five")
    ),
    (str(2**64), errno.ERANGE),
    (str(2**64 - 1), errno.ENODEV),
)
BAD_FOR_MDEV = (
    *(
        (f"{verb}_{what}", text, error)
        for verb in ("assign", "unassign")
        for what in ("adapter", "domain", "control_domain")
        for text, error in BAD_NUMBERS
    ),
    *(("remove", text, errno.EINVAL) for text in ("yes", "1 ", "\n", str(2**64))),
    *(
        ("ap_config", text, errno.EINVAL)
        for text in ("0x06\n", "0X06,0x08,0x0\n", "0x06, 0x08,0x0\n", "+5,+4,\n", "x06,x08", f"{'0' * 65},,", "\n")
    ),
)
BAD_FOR_BUS = (
    *(
        (f"{AP_BUS}/{mask}", text, errno.EINVAL)
        for mask in ("apmask", "aqmask")
        for text in ("5 ", "0X5", "+256", "+5,-", "+6-5", "-5 ", "+", "g", "0x" + "f" * 65, "+5,6")
    ),
    *((f"{AP_BUS}/{file}", "05.0101", errno.ENODEV) for file in ("drivers_probe", "drivers/cex4queue/bind")),
    *((f"{AP_BUS}/drivers/vfio_ap/{file}", "0x05.0x04\n", errno.ENODEV) for file in ("bind", "unbind")),
    *((f"{MDEV_TYPE}/create", text, errno.EINVAL) for text in (UUIDS[0][:-1], UUIDS[1] + "\n\n", "{" + UUIDS[2][1:])),
)


FOCUSED_STEPS = (
    *("unbind", "unbind", "unbind", "bind", "probe", "override vfio_ap", "override cex4queue", "override"),
    *("take", "assign adapter", "assign domain", "unassign adapter", "unassign domain", "unassign domain"),
    *("rewrite", "guest", "apmask", "aqmask", "scan"),
)


class HostAgainstOracle(RuleBasedStateMachine):
    """Every rule does one thing on both sides; the invariant then compares all there is to read."""

    def __init__(self) -> None:
        super().__init__()
        self.shell = Shell(Host(loads(SCENARIO)))
        self.oracle = NaiveHost({5, 6}, {4, 0x47}, {4}, max_adapter=63, max_domain=200)
        self.seen: Snapshot = {}
        self.refused = ""  # the last write, if the emulator refused it

    # ---- comparing --------------------------------------------------------------------------------------------------

    def both(self, expected: int, path: str, text: str) -> None:
        """Write on the emulator and compare its answer with what the oracle said."""
        step = f"{text!r} > {path}"
        note(step)
        answer, why, count = 0, "", 0
        try:
            count = self.shell.write(path, text)
        except KernelError as refusal:
            answer, why = refusal.errno, f" ({refusal.why})"
        assert answer == expected, f"{step}: emulator {name_of(answer)}{why}, oracle {name_of(expected)}"
        assert answer or count == len(text), f"{step}: wrote {count} of {len(text)} bytes"
        self.refused = step if answer else ""

    def look_at_emulator(self) -> Snapshot:
        """Read everything there is to compare."""
        shell = self.shell
        seen: Snapshot = {}
        for name in (
            "apmask",
            "aqmask",
            "bindings",
            "ap_adapter_mask",
            "ap_usage_domain_mask",
            "ap_control_domain_mask",
        ):
            seen[name] = shell.cat(f"{AP_BUS}/{name}")
        seen["available_instances"] = shell.cat(f"{MDEV_TYPE}/available_instances")
        for uuid in UUIDS:
            exists = shell.exists(f"{MATRIX}/{uuid}")
            seen[uuid] = str(exists)
            if exists:
                for name in ("matrix", "guest_matrix", "control_domains", "ap_config"):
                    seen[f"{uuid} {name}"] = shell.cat(f"{MATRIX}/{uuid}/{name}")
        for adapter in REAL_ADAPTERS:
            card = f"{AP_DEVICES}/card{adapter:02x}"
            seen[f"card{adapter:02x}"] = str(shell.exists(card))
            for domain in REAL_DOMAINS:
                queue = f"{adapter:02x}.{domain:04x}"
                exists = shell.exists(f"{card}/{queue}")
                seen[queue] = str(exists)
                if exists:
                    bound = shell.exists(f"{card}/{queue}/driver")
                    seen[f"{queue} driver"] = shell.readlink(f"{card}/{queue}/driver").split("/")[-1] if bound else ""
                    seen[f"{queue} driver_override"] = shell.cat(f"{card}/{queue}/driver_override")
                    has_status = shell.exists(f"{card}/{queue}/status")
                    seen[f"{queue} status"] = shell.cat(f"{card}/{queue}/status") if has_status else ""
        return seen

    def look_at_oracle(self) -> Snapshot:
        """Say what should be read."""
        oracle = self.oracle
        host_adapters, host_domains, host_control = oracle.host_masks_text()
        seen = {
            "apmask": oracle.apmask_text(),
            "aqmask": oracle.aqmask_text(),
            "bindings": oracle.bindings() + "\n",
            "ap_adapter_mask": host_adapters,
            "ap_usage_domain_mask": host_domains,
            "ap_control_domain_mask": host_control,
            "available_instances": f"{oracle.available_instances()}\n",
        }
        for uuid in UUIDS:
            seen[uuid] = str(oracle.mdev_exists(uuid))
            if oracle.mdev_exists(uuid):
                seen[f"{uuid} matrix"] = oracle.matrix(uuid)
                seen[f"{uuid} guest_matrix"] = oracle.guest_matrix(uuid)
                seen[f"{uuid} control_domains"] = oracle.control_domains(uuid)
                seen[f"{uuid} ap_config"] = oracle.ap_config_text(uuid)
        for adapter in REAL_ADAPTERS:
            seen[f"card{adapter:02x}"] = str(oracle.card_exists(adapter))
            for domain in REAL_DOMAINS:
                queue = f"{adapter:02x}.{domain:04x}"
                seen[queue] = str(oracle.queue_exists(adapter, domain))
                if oracle.queue_exists(adapter, domain):
                    driver = oracle.driver(adapter, domain)
                    seen[f"{queue} driver"] = driver or ""
                    seen[f"{queue} driver_override"] = oracle.override_text(adapter, domain)
                    seen[f"{queue} status"] = oracle.status(adapter, domain) + "\n" if driver == VFIO_DRIVER else ""
        return seen

    @invariant()
    def everything_agrees(self) -> None:
        """Compare all files, and after a refusal also with what they said before it."""
        seen = self.look_at_emulator()
        if self.refused:
            difference = differences(seen, self.seen)
            assert not difference, f"refused, but not without effect (now, before): {self.refused}: {difference}"
        difference = differences(seen, self.look_at_oracle())
        assert not difference, f"emulator and oracle differ (emulator, oracle): {difference}"
        self.seen = seen

    # ---- a start that gets somewhere --------------------------------------------------------------------------------

    @initialize(
        released=st.sampled_from(RELEASES),
        moved=st.sets(st.integers(0, 3), min_size=1),
        matrices=st.dictionaries(
            uuids, st.tuples(subsets(REAL_ADAPTERS, REAL_ADAPTERS), subsets(REAL_DOMAINS, REAL_DOMAINS)), min_size=1
        ),
    )
    def prepare(self, released: str, moved: set[int], matrices: dict[str, tuple[set[int], set[int]]]) -> None:
        """Give vfio_ap something, in one of the ways there are, and pass it to some mediated devices."""
        if released in ("adapters", "both"):
            self.both(self.oracle.set_apmask(set(ALL_NUMBERS) - {5, 6, 7}), f"{AP_BUS}/apmask", "-5-7\n")
        if released in ("domains", "both"):
            self.both(self.oracle.set_aqmask(set(ALL_NUMBERS) - {4, 9, 0x47}), f"{AP_BUS}/aqmask", "-4,-9,-0x47\n")
        if released == "adapter 5":
            self.both(self.oracle.set_apmask(set(ALL_NUMBERS) - {5}), f"{AP_BUS}/apmask", "-05")
        if released == "queues":
            for number in sorted(moved):
                self.move_queue(("existing", number), VFIO_DRIVER)
        for uuid, (some_adapters, some_domains) in sorted(matrices.items()):
            self.both(self.oracle.create(uuid), f"{MDEV_TYPE}/create", uuid)
            self.everything_agrees()
            text = f"{mask_text(some_adapters)},{mask_text(some_domains)},\n"
            self.both(
                self.oracle.ap_config(uuid, some_adapters, some_domains, set()), f"{MATRIX}/{uuid}/ap_config", text
            )

    # ---- choosing something that matters ----------------------------------------------------------------------------

    def mdev(self, pick: Pick) -> str:
        """Choose a mediated device, most often one that exists."""
        kind, number = pick
        existing = list(self.oracle.mdevs)
        candidates = existing if kind == "existing" and existing else UUIDS
        return candidates[number % len(candidates)]

    def queue(self, pick: Pick) -> tuple[int, int]:
        """Choose a queue, most often one that a mediated device has."""
        kind, number = pick
        anything = [(adapter, domain) for adapter in REAL_ADAPTERS for domain in REAL_DOMAINS]
        existing = [queue for queue in anything if self.oracle.queue_exists(*queue)]
        assigned = [queue for queue in existing if self.oracle.status(*queue) != "unassigned"]
        candidates = anything
        if kind != "any" and existing:
            candidates = existing
        if kind == "assigned" and assigned:
            candidates = assigned
        return candidates[number % len(candidates)]

    # ---- mediated devices -------------------------------------------------------------------------------------------

    @rule(
        uuid=uuids,
        number=st.sampled_from((None, None, None, 0, 1, 2)),
        upper=st.booleans(),
        style=numbers_as_text,
        ending=st.sampled_from(("", "\n", "!")),
    )
    def create_or_remove(self, uuid: str, number: int | None, style: str, ending: str, *, upper: bool) -> None:
        """Create with any 37th character, or remove, where writing zero is fine, but does nothing."""
        if number is None:
            uuid = uuid.upper() if upper else uuid
            self.both(self.oracle.create(uuid), f"{MDEV_TYPE}/create", uuid + ending)
            return
        expected = errno.ENOENT
        if self.oracle.mdev_exists(uuid):
            expected = self.oracle.remove(uuid) if number else 0
        self.both(expected, f"{MATRIX}/{uuid}/remove", style.format(number))

    @rule(pick=mdev_picks, number=st.sampled_from(ADAPTERS), style=numbers_as_text)
    def assign_adapter(self, pick: Pick, number: int, style: str) -> None:
        """Assign an adapter."""
        self.change_matrix(self.mdev(pick), "assign_adapter", number, style)

    @rule(pick=mdev_picks, number=st.sampled_from(DOMAINS), style=numbers_as_text)
    def assign_domain(self, pick: Pick, number: int, style: str) -> None:
        """Assign a usage domain."""
        self.change_matrix(self.mdev(pick), "assign_domain", number, style)

    @rule(pick=mdev_picks, number=st.sampled_from(ADAPTERS), style=numbers_as_text)
    def unassign_adapter(self, pick: Pick, number: int, style: str) -> None:
        """Unassign an adapter."""
        self.change_matrix(self.mdev(pick), "unassign_adapter", number, style)

    @rule(pick=mdev_picks, number=st.sampled_from(DOMAINS), style=numbers_as_text)
    def unassign_domain(self, pick: Pick, number: int, style: str) -> None:
        """Unassign a usage domain."""
        self.change_matrix(self.mdev(pick), "unassign_domain", number, style)

    @rule(
        pick=mdev_picks,
        verb=st.sampled_from(("assign", "assign", "unassign")),
        number=st.sampled_from(CONTROL_DOMAINS),
        style=numbers_as_text,
    )
    def change_control_domain(self, pick: Pick, verb: str, number: int, style: str) -> None:
        """Assign or unassign a control domain."""
        self.change_matrix(self.mdev(pick), f"{verb}_control_domain", number, style)

    def change_matrix(self, uuid: str, verb: str, number: int, style: str = "{:d}") -> None:
        """Write to one of the six files that take a number."""
        self.both(getattr(self.oracle, verb)(uuid, number), f"{MATRIX}/{uuid}/{verb}", style.format(number))

    @rule(
        pick=mdev_picks,
        wanted=st.tuples(
            subsets(REAL_ADAPTERS, ADAPTERS),
            subsets(REAL_DOMAINS, DOMAINS),
            subsets(REAL_CONTROL_DOMAINS, CONTROL_DOMAINS),
        ),
        spell=any_mask_spelling,
        separator=st.sampled_from(",\n"),
        ending=st.sampled_from(("", "\n", ",junk\n")),
    )
    def ap_config(
        self,
        pick: Pick,
        wanted: tuple[set[int], set[int], set[int]],
        spell: Callable[[set[int]], str],
        separator: str,
        ending: str,
    ) -> None:
        """Replace the whole matrix."""
        self.ap_config_of(self.mdev(pick), wanted, spell, separator, ending)

    def ap_config_of(
        self,
        uuid: str,
        wanted: tuple[set[int], set[int], set[int]],
        spell: Callable[[set[int]], str],
        separator: str,
        ending: str,
    ) -> None:
        """Replace the whole matrix of this device."""
        text = separator.join(spell(numbers) for numbers in wanted) + ending
        self.both(self.oracle.ap_config(uuid, *wanted), f"{MATRIX}/{uuid}/ap_config", text)

    @rule(pick=mdev_picks)
    def write_back_ap_config(self, pick: Pick) -> None:
        """Write what is read: it can be refused, and where it is not it brings a stale guest matrix up to date."""
        self.rewrite(self.mdev(pick))

    def rewrite(self, uuid: str) -> None:
        """Write the matrix of this device back."""
        if self.oracle.mdev_exists(uuid):
            mdev = self.oracle.mdevs[uuid]
            expected = self.oracle.ap_config(uuid, mdev.adapters, mdev.domains, mdev.control)
            self.both(expected, f"{MATRIX}/{uuid}/ap_config", self.shell.cat(f"{MATRIX}/{uuid}/ap_config"))

    @rule(pick=mdev_picks)
    def start_or_stop_guest(self, pick: Pick) -> None:
        """Open or close, whatever makes a difference."""
        self.toggle_guest(self.mdev(pick))

    def toggle_guest(self, uuid: str) -> None:
        """Open or close this device."""
        running = self.oracle.mdev_exists(uuid) and self.oracle.mdevs[uuid].running
        expected = self.oracle.close_guest(uuid) if running else self.oracle.open_guest(uuid)
        self.both(expected, f"/dev/vfio-ap/{uuid}/guest", "0" if running else "1")

    # ---- masks, overrides and drivers -------------------------------------------------------------------------------

    @rule(write=mask_writes(ADAPTERS))
    def apmask(self, write: Callable[[set[int]], tuple[set[int], str]]) -> None:
        """Change which adapters the default drivers own."""
        wanted, text = write(self.oracle.apmask)
        self.both(self.oracle.set_apmask(wanted), f"{AP_BUS}/apmask", text)

    @rule(write=mask_writes(DOMAINS))
    def aqmask(self, write: Callable[[set[int]], tuple[set[int], str]]) -> None:
        """Change which domains the default drivers own."""
        wanted, text = write(self.oracle.aqmask)
        self.both(self.oracle.set_aqmask(wanted), f"{AP_BUS}/aqmask", text)

    @rule(
        pick=queue_picks,
        name=st.sampled_from(("", "", VFIO_DRIVER, DEFAULT_DRIVER, "nobody")),
        ending=st.sampled_from(("\n", "\nrest")),
    )
    def driver_override(self, pick: Pick, name: str, ending: str) -> None:
        """Set or clear an override; what comes after the first newline does not matter."""
        self.write_override(*self.queue(pick), name, ending)

    def write_override(self, adapter: int, domain: int, name: str, ending: str) -> None:
        """Set or clear the override of this queue."""
        path = f"{AP_DEVICES}/card{adapter:02x}/{adapter:02x}.{domain:04x}/driver_override"
        self.both(self.oracle.driver_override(adapter, domain, name), path, name + ending)

    @rule(pick=queue_picks, where=st.sampled_from((DEFAULT_DRIVER, VFIO_DRIVER, VFIO_DRIVER, "probe")), ending=endings)
    def bind(self, pick: Pick, where: str, ending: str) -> None:
        """Give a queue to one driver or offer it to all."""
        self.bind_queue(self.queue(pick), where, ending)

    def bind_queue(self, queue: tuple[int, int], where: str, ending: str) -> None:
        """Give this queue to one driver or offer it to all."""
        text = f"{queue[0]:02x}.{queue[1]:04x}{ending}"
        if where == "probe":
            self.both(self.oracle.drivers_probe(*queue), f"{AP_BUS}/drivers_probe", text)
        else:
            self.both(self.oracle.bind(where, *queue), f"{AP_BUS}/drivers/{where}/bind", text)

    @rule(pick=queue_picks, whose=st.sampled_from(("its own",) * 4 + (DEFAULT_DRIVER, VFIO_DRIVER)), ending=endings)
    def unbind(self, pick: Pick, whose: str, ending: str) -> None:
        """Take a queue away from a driver."""
        self.unbind_queue(self.queue(pick), whose, ending)

    def unbind_queue(self, queue: tuple[int, int], whose: str, ending: str) -> None:
        """Take this queue away from a driver."""
        driver = (self.oracle.driver(*queue) or VFIO_DRIVER) if whose == "its own" else whose
        text = f"{queue[0]:02x}.{queue[1]:04x}{ending}"
        self.both(self.oracle.unbind(driver, *queue), f"{AP_BUS}/drivers/{driver}/unbind", text)

    @rule(pick=queue_picks, name=st.sampled_from((VFIO_DRIVER, VFIO_DRIVER, "")))
    def move_queue(self, pick: Pick, name: str) -> None:
        """Go all the way: override, unbind, probe. Each step is compared, even if one before it was refused."""
        queue = self.queue(pick)
        self.write_override(*queue, name, "\n")
        self.everything_agrees()
        self.unbind_queue(queue, "its own", "")
        self.everything_agrees()
        self.bind_queue(queue, "probe", "")

    # ---- many things to one queue and one device --------------------------------------------------------------------

    @rule(
        mdev_pick=mdev_picks,
        queue_pick=queue_picks,
        steps=st.lists(st.sampled_from(FOCUSED_STEPS), min_size=2, max_size=6),
    )
    def concentrate(self, mdev_pick: Pick, queue_pick: Pick, steps: list[str]) -> None:
        """Do several things to the same few objects, for the corners where one thing depends on another."""
        queue = self.queue(queue_pick)
        uuid = self.mdev(mdev_pick)
        for holder, mdev in self.oracle.mdevs.items():
            if queue[0] in mdev.adapters and queue[1] in mdev.domains:
                uuid = holder
        for step in steps:
            self.do_focused(step, uuid, queue)
            self.everything_agrees()

    def do_focused(self, step: str, uuid: str, queue: tuple[int, int]) -> None:
        """Do one of the things that can be done to a mediated device and a queue."""
        adapter, domain = queue
        actions: dict[str, Callable[[], None]] = {
            "unbind": lambda: self.unbind_queue(queue, "its own", ""),
            "bind": lambda: self.bind_queue(queue, VFIO_DRIVER, ""),
            "probe": lambda: self.bind_queue(queue, "probe", ""),
            "override vfio_ap": lambda: self.write_override(*queue, VFIO_DRIVER, "\n"),
            "override cex4queue": lambda: self.write_override(*queue, DEFAULT_DRIVER, "\n"),
            "override": lambda: self.write_override(*queue, "", "\n"),
            "take": lambda: self.ap_config_of(uuid, ({adapter}, {domain}, set()), mask_text, ",", "\n"),
            "assign adapter": lambda: self.change_matrix(uuid, "assign_adapter", adapter),
            "assign domain": lambda: self.change_matrix(uuid, "assign_domain", domain),
            "unassign adapter": lambda: self.change_matrix(uuid, "unassign_adapter", adapter),
            "unassign domain": lambda: self.change_matrix(uuid, "unassign_domain", domain),
            "rewrite": lambda: self.rewrite(uuid),
            "guest": lambda: self.toggle_guest(uuid),
            "apmask": lambda: self.apmask(lambda current: toggled(current, adapter)),
            "aqmask": lambda: self.aqmask(lambda current: toggled(current, domain)),
            "scan": lambda: self.scan("1"),
        }
        actions[step]()

    # ---- hardware ---------------------------------------------------------------------------------------------------

    @rule(adapter=st.sampled_from(REAL_ADAPTERS), scan=st.booleans())
    def change_card(self, adapter: int, *, scan: bool) -> None:
        """Plug a card or unplug it; nothing is to be seen before the scan."""
        if adapter in self.oracle.real_adapters:
            self.both(self.oracle.unplug(adapter), "/ctl/console", f"unplug {adapter:#04x}\n")
        else:
            self.both(self.oracle.plug(adapter), "/ctl/console", f"plug {adapter:#04x} CEX8C\n")
        if scan:
            self.scan("1")

    @rule(domain=st.sampled_from(REAL_DOMAINS), scan=st.booleans())
    def change_host_domain(self, domain: int, *, scan: bool) -> None:
        """Give the host a usage domain or take it away."""
        if domain in self.oracle.real_domains:
            self.both(self.oracle.remove_domain(domain), "/ctl/console", f"remove-domain {domain:#x}\n")
        else:
            self.both(self.oracle.add_domain(domain), "/ctl/console", f"add-domain {domain:#x}\n")
        if scan:
            self.scan("1")

    @rule(domain=st.sampled_from(REAL_CONTROL_DOMAINS), scan=st.booleans())
    def change_host_control_domain(self, domain: int, *, scan: bool) -> None:
        """Give the host a control domain or take it away."""
        if domain in self.oracle.real_control:
            self.both(self.oracle.remove_control_domain(domain), "/ctl/console", f"remove-control-domain {domain}\n")
        else:
            self.both(self.oracle.add_control_domain(domain), "/ctl/console", f"add-control-domain {domain}\n")
        if scan:
            self.scan("1")

    @rule(text=st.sampled_from(("1", "0\n", "please")))
    def scan(self, text: str) -> None:
        """Scan; the text does not matter."""
        self.everything_agrees()
        self.both(self.oracle.scan(), f"{AP_BUS}/scans", text)

    # ---- nonsense ---------------------------------------------------------------------------------------------------

    @rule(uuid=uuids, for_mdev=st.sampled_from(BAD_FOR_MDEV), for_bus=st.sampled_from(BAD_FOR_BUS))
    def nonsense(self, uuid: str, for_mdev: tuple[str, str, int], for_bus: tuple[str, str, int]) -> None:
        """Write text that cannot be understood. It is refused before anything else is looked at."""
        name, text, expected = for_mdev
        self.both(expected if self.oracle.mdev_exists(uuid) else errno.ENOENT, f"{MATRIX}/{uuid}/{name}", text)
        self.everything_agrees()
        path, text, expected = for_bus
        self.both(expected, path, text)


def toggled(mask: set[int], number: int) -> tuple[set[int], str]:
    """Turn one bit of a mask over."""
    sign = "-" if number in mask else "+"
    return apply_terms(mask, [(sign, number, number)]), f"{sign}{number}"


def name_of(error: int) -> str:
    """Symbolic name of an error number, for messages."""
    return errno.errorcode[error] if error else "success"


def differences(one: Snapshot, other: Snapshot) -> dict[str, tuple[str | None, str | None]]:
    """List what two snapshots disagree about."""
    return {key: (one.get(key), other.get(key)) for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


def some_of(random: Random, numbers: tuple[int, ...]) -> set[int]:
    """Choose a set, the beyond-the-maximum last one rarely."""
    usual = numbers if random.random() < RARELY else numbers[:-1]
    return set(random.sample(usual, random.randint(1, len(usual))))


def mask_around(random: Random, numbers: tuple[int, ...]) -> tuple[set[int], str]:
    """Choose a bus mask that has all bits but some of these numbers."""
    wanted = set(ALL_NUMBERS)
    if random.random() > RARELY:
        wanted -= some_of(random, numbers)
    return wanted, mask_text(wanted)


def wander(machine: HostAgainstOracle, random: Random) -> None:
    """Do many things, half of them to the same mediated device and the same queue for a while."""
    device: Pick = ("existing", 0)
    queue: Pick = ("assigned", 0)
    for _ in range(WALK_LENGTH):
        if random.random() < CHANGE_OF_FOCUS:
            device = ("existing", random.randrange(3))
            queue = (random.choice(("assigned", "existing", "any")), random.randrange(9))
        if random.random() < FOCUSED:
            machine.concentrate(device, queue, [random.choice(FOCUSED_STEPS)])
        else:
            do_anything(machine, random, device)
        machine.everything_agrees()


def do_anything(machine: HostAgainstOracle, random: Random, device: Pick) -> None:
    """Do one of the things that matter. All choices are made first, whether they are used or not."""
    uuid = random.choice(UUIDS)
    number = random.choice((None, None, 1))
    adapter, domain = random.choice(REAL_ADAPTERS), random.choice(REAL_DOMAINS)
    wanted = some_of(random, ADAPTERS), some_of(random, DOMAINS), some_of(random, CONTROL_DOMAINS)
    apmask, aqmask = mask_around(random, ADAPTERS), mask_around(random, DOMAINS)
    queue: Pick = ("existing", random.randrange(9))
    override = random.choice((VFIO_DRIVER, VFIO_DRIVER, ""))
    scan = random.random() < MOSTLY
    actions: tuple[Callable[[], None], ...] = (
        lambda: machine.create_or_remove(uuid, number, "{:d}", "\n", upper=False),
        lambda: machine.assign_adapter(device, adapter, "{:#x}"),
        lambda: machine.assign_domain(device, domain, "{:#x}"),
        lambda: machine.unassign_adapter(device, adapter, "{:#x}"),
        lambda: machine.unassign_domain(device, domain, "{:#x}"),
        lambda: machine.ap_config(device, wanted, mask_text, ",", "\n"),
        lambda: machine.apmask(lambda _: apmask),
        lambda: machine.aqmask(lambda _: aqmask),
        lambda: machine.move_queue(queue, override),
        lambda: machine.change_card(adapter, scan=scan),
        lambda: machine.change_host_domain(domain, scan=scan),
        lambda: machine.scan("1"),
    )
    random.choice(actions)()


WALK_LENGTH = 60
FOCUSED = 0.55
CHANGE_OF_FOCUS = 0.15
RARELY = 0.2
MOSTLY = 0.7


@times(1)
@given(random=st.randoms(use_true_random=True), released=st.sampled_from(RELEASES))
def test_random_walk(random: Random, released: str) -> None:
    machine = HostAgainstOracle()
    machine.everything_agrees()
    matrices = {uuid: (some_of(random, ADAPTERS[:-1]), some_of(random, DOMAINS[:-1])) for uuid in UUIDS[:2]}
    machine.prepare(released, {random.randrange(4), random.randrange(4)}, matrices)
    machine.everything_agrees()
    wander(machine, random)


HostAgainstOracle.TestCase.settings = settings(times(1.5), stateful_step_count=40)
TestHostAgainstOracle = HostAgainstOracle.TestCase
