"""A second, deliberately simple-minded opinion about the queues of one CCA card: what they go through, one by one.

It follows the description of Linux (ap_queue.c, the scan of ap_bus.c, zcrypt_card.c and zcrypt_queue.c) step by step,
with a word for each state and a loop for each "all". The host is an LPAR with vfio_ap loaded. Operations return 0 or a
positive error number. `told` has the changes that events tell of, as `NAME KEY=value`.
"""

import errno
from dataclasses import dataclass, field
from typing import Literal


@dataclass
class NaiveZcryptCard:
    """What zcrypt remembers of a card from its binding on."""

    online: bool = True
    queues: list["NaiveQueue"] = field(default_factory=list)  # in order of binding


@dataclass
class NaiveQueue:
    """What Linux remembers of a queue, and one thing that the hardware does."""

    name: str
    driver: str | None = None
    device_state: Literal["uninitiated", "operating", "error"] = "uninitiated"
    machine_state: Literal["reset", "idle"] = "reset"
    config: bool = True
    chkstop: bool = False
    online: bool = True
    zcrypt_card: NaiveZcryptCard | None = None
    interrupts: bool = False  # of the hardware


class NaiveCard:
    """One card with its queues, all bound to zcrypt."""

    def __init__(self, name: str, queue_names: list[str]) -> None:
        self.name = name
        self.configured = True  # the hardware
        self.checkstopped = False
        self.config = True  # what Linux knows
        self.chkstop = False
        self.reserved = True  # for zcrypt, by apmask
        self.zcrypt_card: NaiveZcryptCard | None = NaiveZcryptCard()
        self.queues = {name: NaiveQueue(name) for name in queue_names}
        self.timer = False
        self.scans = 1
        self.told: list[str] = []
        for queue in self.queues.values():
            self._probe_by_zcrypt(queue)
        self._let_time_pass()

    # ---- the machine of a queue -------------------------------------------------------------------------------------

    def _hardware_answers(self) -> bool:
        return self.configured and not self.checkstopped

    def _start_reset(self, queue: NaiveQueue) -> None:
        queue.machine_state = "reset"
        if queue.device_state == "uninitiated" or not queue.config or queue.chkstop:
            return
        if self._hardware_answers():
            queue.interrupts = False
            self.timer = True
        else:
            queue.device_state = "error"

    def _initialise(self, queue: NaiveQueue) -> None:
        queue.device_state = "operating"
        self._start_reset(queue)

    def _let_time_pass(self) -> None:
        if not self.timer:
            return
        self.timer = False
        for queue in self.queues.values():
            if queue.driver is None or queue.device_state == "uninitiated" or not queue.config or queue.chkstop:
                continue
            if queue.machine_state == "reset" and self._hardware_answers():
                queue.machine_state = "idle"
                queue.interrupts = True
            elif queue.machine_state == "reset":
                queue.device_state = "error"

    # ---- drivers ----------------------------------------------------------------------------------------------------

    def _probe_by_zcrypt(self, queue: NaiveQueue) -> None:
        assert self.zcrypt_card is not None
        queue.driver = "cex4queue"
        queue.online = True
        queue.zcrypt_card = self.zcrypt_card
        self.zcrypt_card.queues.append(queue)
        self._initialise(queue)

    def _detach(self, queue: NaiveQueue) -> None:
        if queue.zcrypt_card is not None:
            queue.zcrypt_card.queues.remove(queue)
            queue.zcrypt_card = None
        queue.driver = None
        queue.device_state = "uninitiated"
        if self._hardware_answers():
            queue.interrupts = False

    def _offer(self, queue: NaiveQueue) -> None:
        if not self.reserved:
            queue.driver = "vfio_ap"
        elif self.zcrypt_card is not None:
            self._probe_by_zcrypt(queue)

    def bind(self, driver: str, name: str) -> int:
        """Bind a queue."""
        queue = self.queues[name]
        if queue.driver is not None:
            return errno.EBUSY
        if self.reserved != (driver == "cex4queue"):
            return errno.ENODEV
        if self.reserved and self.zcrypt_card is None:
            return errno.ENODEV  # where Linux crashes
        self._offer(queue)
        self._let_time_pass()
        return 0

    def unbind(self, driver: str, name: str) -> int:
        """Unbind a queue."""
        if self.queues[name].driver != driver:
            return errno.ENODEV
        self._detach(self.queues[name])
        return 0

    def bind_card(self) -> int:
        """Bind the card."""
        if self.zcrypt_card is not None:
            return errno.EBUSY
        self.zcrypt_card = NaiveZcryptCard()
        return 0

    def unbind_card(self) -> int:
        """Unbind the card; its queues keep what they have."""
        if self.zcrypt_card is None:
            return errno.ENODEV
        self.zcrypt_card = None
        return 0

    def reserve(self, *, reserved: bool) -> int:
        """Change apmask. A queue without a driver counts as one that zcrypt has."""
        if reserved == self.reserved:
            return 0
        self.reserved = reserved
        for queue in self.queues.values():
            if (queue.driver != "vfio_ap") != reserved:
                if queue.driver is not None:
                    self._detach(queue)
                self._offer(queue)
        self._let_time_pass()
        return 0

    # ---- files ------------------------------------------------------------------------------------------------------

    def reset(self, name: str) -> int:
        """Write `reset`."""
        self._start_reset(self.queues[name])
        self._let_time_pass()
        return 0

    def poll_timeout(self) -> int:
        """Write `poll_timeout`."""
        self.timer = True
        self._let_time_pass()
        return 0

    def card_online(self, *, online: bool) -> int:
        """Write `online` of the card."""
        if self.zcrypt_card is None:
            return errno.ENOENT
        if online and (not self.config or self.chkstop):
            return errno.ENODEV
        self.zcrypt_card.online = online
        self.told.append(f"{self.name} ONLINE={int(online)}")
        for queue in self.zcrypt_card.queues:
            if queue.online != online:
                queue.online = online
                self.told.append(f"{self.name}/{queue.name} ONLINE={int(online)}")
        return 0

    def queue_online(self, name: str, *, online: bool) -> int:
        """Write `online` of a queue."""
        queue = self.queues[name]
        if queue.zcrypt_card is None:
            return errno.ENOENT
        if online and (not queue.config or queue.chkstop or not self.config or self.chkstop):
            return errno.ENODEV
        if online and not queue.zcrypt_card.online:
            return errno.EINVAL
        queue.online = online
        self.told.append(f"{self.name}/{queue.name} ONLINE={int(online)}")
        return 0

    def card_config(self, *, config: bool) -> int:
        """Write `config` of the card."""
        if config != self.config:
            self.configured = config
        self.config = config
        self.told.append(f"{self.name} CONFIG={int(config)}")
        return 0

    def scan(self) -> int:
        """Scan the bus."""
        self.scans += 1
        stopped = self.configured and self.checkstopped
        self.chkstop = stopped
        if self.config != self.configured:
            self.config = self.configured
            self.told.append(f"{self.name} CONFIG={int(self.config)}")
        for queue in self.queues.values():
            self._scan_queue(queue, stopped=stopped)
        self._let_time_pass()
        return 0

    def _scan_queue(self, queue: NaiveQueue, *, stopped: bool) -> None:
        is_operated = queue.device_state != "uninitiated"
        if stopped and not queue.chkstop:
            queue.chkstop = True
            if is_operated:
                queue.device_state = "error"
        elif not stopped and queue.chkstop:
            queue.chkstop = False
            if is_operated:
                self._initialise(queue)
        elif queue.config and not self.configured:
            queue.config = False
            if is_operated:
                queue.device_state = "error"
            self.told.append(f"{self.name}/{queue.name} CONFIG=0")
        elif not queue.config and self.configured:
            queue.config = True
            if is_operated:
                self._initialise(queue)
            self.told.append(f"{self.name}/{queue.name} CONFIG=1")
        elif self.configured and queue.device_state == "error":
            self._initialise(queue)

    def _asked(self, queues: list[NaiveQueue]) -> bool:
        """Whether a request to some of the queues is answered; if none takes it, the bus scans, to no avail."""
        zcrypt_card = self.zcrypt_card
        if zcrypt_card is not None and zcrypt_card.online and self.config and not self.chkstop:
            for queue in zcrypt_card.queues:
                usable = queue.config and not queue.chkstop and queue.device_state == "operating"
                if queue in queues and queue.online and usable:
                    return self._hardware_answers()
        self.scan()
        return False

    def serialnr(self) -> bool | None:
        """Whether `serialnr` has one; None without the file."""
        return None if self.zcrypt_card is None else self._asked(list(self.queues.values()))

    def mkvps(self, name: str) -> bool | None:
        """Whether `mkvps` has patterns; None without the file."""
        queue = self.queues[name]
        if queue.zcrypt_card is None:
            return None
        if self.zcrypt_card is None or queue not in self.zcrypt_card.queues:
            return False
        return self._asked([queue])

    # ---- what can be read -------------------------------------------------------------------------------------------

    def card_shows(self) -> dict[str, str]:
        """Contents of the card's files that tell of its state."""
        shown = {"config": f"{int(self.config)}\n", "chkstop": f"{int(self.chkstop)}\n"}
        if self.zcrypt_card is not None:
            shown["online"] = f"{int(self.zcrypt_card.online and self.config and not self.chkstop)}\n"
        return shown

    def queue_shows(self, name: str) -> dict[str, str]:
        """Contents of a queue's files that tell of its state, and the name of its driver."""
        queue = self.queues[name]
        shown = {
            "config": f"{int(queue.config)}\n",
            "chkstop": f"{int(queue.chkstop)}\n",
            "request_count": "-\n" if queue.device_state == "uninitiated" else "0\n",
            "reset": "Reset in progress.\n" if queue.machine_state == "reset" else "No Reset Timer set.\n",
            "interrupt": "Interrupts enabled.\n" if queue.interrupts else "Interrupts disabled.\n",
            "driver": queue.driver or "",
        }
        if queue.zcrypt_card is not None:
            shown["online"] = f"{int(queue.online and queue.config and not queue.chkstop)}\n"
        return shown
