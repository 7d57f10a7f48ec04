"""Random histories of one card and its queues, played on the emulator and on the naive oracle of queues.

Everything that tells of states is compared after every step: files, the number of scans, and the events of changes.
"""

import errno
from collections.abc import Callable
from itertools import chain

from hypothesis import given, note
from hypothesis import strategies as st

from tests.examples import times
from tests.hosts import Bench

from .queue_oracle import NaiveCard

SCENARIO = """
[qci]
domains = [4, 0x47]
[[card]]
adapter = 5
type = "CEX8C"
"""

BUS = "/sys/bus/ap"
CARD = "/sys/devices/ap/card05"
QUEUES = ("05.0004", "05.0047")
STATES = ("config", "chkstop", "online", "reset", "interrupt", "request_count")


class Comparison:
    """The emulator and the oracle side by side."""

    def __init__(self) -> None:
        self.bench = Bench(SCENARIO)
        self.oracle = NaiveCard("card05", list(QUEUES))

    def write(self, path: str, text: str, expected: int) -> None:
        """Write a file, and compare the outcome with what the oracle said."""
        answer = self.bench.store(path, text)
        assert answer == (errno.errorcode[expected] if expected else "")

    def asked(self, path: str, expected: bool | None) -> None:  # noqa: FBT001 -- an answer
        """Read an attribute that asks the card, and compare whether it was answered."""
        if expected is None:
            assert not self.bench.exists(path)
        else:
            shown = self.bench.cat(path)
            assert (shown != "\n" and "- -" not in shown) == expected

    def look(self) -> None:
        """Compare all that is to be seen."""
        bench, oracle = self.bench, self.oracle
        told = [event.removeprefix("change ") for event in bench.short_events() if event.startswith("change card")]
        assert told == oracle.told
        oracle.told.clear()
        assert bench.cat(f"{BUS}/scans") == f"{oracle.scans}\n"
        assert self.seen(CARD, ("config", "chkstop", "online")) == oracle.card_shows()
        for name in QUEUES:
            path = f"{CARD}/{name}"
            assert self.seen(path, STATES) | {"driver": bench.driver(path) or ""} == oracle.queue_shows(name), name

    def seen(self, path: str, names: tuple[str, ...]) -> dict[str, str]:
        """Return the contents of those files that are there."""
        return {name: self.bench.cat(f"{path}/{name}") for name in names if self.bench.exists(f"{path}/{name}")}


Step = Callable[[Comparison], None]


def hardware(*, configured: bool | None = None, checkstopped: bool | None = None) -> Step:
    """Make a step that changes the hardware."""

    def step(both: Comparison) -> None:
        if configured is not None:
            both.bench.host.configure(5, on=configured)
            both.oracle.configured = configured
        if checkstopped is not None:
            both.bench.host.checkstop(5, on=checkstopped)
            both.oracle.checkstopped = checkstopped

    return step


def queue_steps(name: str) -> dict[str, Step]:
    """Return what is done to a queue."""
    path = f"{CARD}/{name}"
    steps: dict[str, Step] = {
        f"reset {name}": lambda both: both.write(f"{path}/reset", "1", both.oracle.reset(name)),
        f"mkvps {name}": lambda both: both.asked(f"{path}/mkvps", both.oracle.mkvps(name)),
    }
    for driver in ("cex4queue", "vfio_ap"):
        steps[f"bind {driver} {name}"] = lambda both, driver=driver: both.write(  # type: ignore[misc]
            f"{BUS}/drivers/{driver}/bind", name, both.oracle.bind(driver, name)
        )
        steps[f"unbind {driver} {name}"] = lambda both, driver=driver: both.write(  # type: ignore[misc]
            f"{BUS}/drivers/{driver}/unbind", name, both.oracle.unbind(driver, name)
        )
    for text in "01":
        steps[f"online {text} {name}"] = lambda both, text=text: both.write(  # type: ignore[misc]
            f"{path}/online", text, both.oracle.queue_online(name, online=text == "1")
        )
    return steps


STEPS: dict[str, Step] = {
    "scan": lambda both: both.write(f"{BUS}/scans", "1", both.oracle.scan()),
    "give away": lambda both: both.write(f"{BUS}/apmask", "-5", both.oracle.reserve(reserved=False)),
    "take back": lambda both: both.write(f"{BUS}/apmask", "+5", both.oracle.reserve(reserved=True)),
    "bind the card": lambda both: both.write(f"{BUS}/drivers/cex4card/bind", "card05", both.oracle.bind_card()),
    "unbind the card": lambda both: both.write(f"{BUS}/drivers/cex4card/unbind", "card05", both.oracle.unbind_card()),
    "card online": lambda both: both.write(f"{CARD}/online", "1", both.oracle.card_online(online=True)),
    "card offline": lambda both: both.write(f"{CARD}/online", "0", both.oracle.card_online(online=False)),
    "configure": lambda both: both.write(f"{CARD}/config", "1", both.oracle.card_config(config=True)),
    "deconfigure": lambda both: both.write(f"{CARD}/config", "0", both.oracle.card_config(config=False)),
    "poll timeout": lambda both: both.write(f"{BUS}/poll_timeout", "250000", both.oracle.poll_timeout()),
    "serialnr": lambda both: both.asked(f"{CARD}/serialnr", both.oracle.serialnr()),
    "hardware configured": hardware(configured=True),
    "hardware deconfigured": hardware(configured=False),
    "hardware stopped": hardware(checkstopped=True),
    "hardware repaired": hardware(checkstopped=False),
    **queue_steps(QUEUES[0]),
    **queue_steps(QUEUES[1]),
}

CHANGES = [step for step in STEPS if step.startswith("hardware")]
# Scans are what most of the rest waits for.
steps = st.one_of(
    st.sampled_from(list(STEPS)).map(lambda step: [step]),
    st.sampled_from(CHANGES).map(lambda step: [step, "scan"]),
    st.sampled_from(CHANGES).map(lambda step: [step, "scan", "scan"]),
)


@times(3)
@given(history=st.lists(steps, min_size=5, max_size=30))
def test_histories_of_queues(history: list[list[str]]) -> None:
    both = Comparison()
    both.look()
    for step in chain.from_iterable(history):
        note(step)
        STEPS[step](both)
        both.look()
