"""The hardware: crypto cards, their queues, and which of them hypervisor and operator make available.

Nothing here is Linux. The AP bus notices a change only at its next scan, or with its next instruction to a queue.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from apfs.ap.mask import NONE, Mask
from apfs.ap.qinfo import FIELDS, Qci, Response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from apfs.ap.names import Apqn

Environment = Literal["lpar", "zvm", "kvm"]

BS_USABLE, BS_NO_KEY, BS_UNBOUND = 0, 1, 2
"""Secure execution bind states of a queue: usable, bound without a secret, available for binding."""

SECRETS = 65536
"""Number of secrets that queues can be associated with, by index."""

OP_MODES = ("FIPS2009", "BSI2009", "FIPS2011", "BSI2011", "SIGG-IMPORT", "SIGG", "BSICC2017", "FIPS2021", "FIPS2024")
"""EP11 operational modes in bit order."""
OLD_OP_MODES = ("FIPS2009", "BSI2009", "FIPS2011", "BSI2011", "BSICC2017")
"""Those that old kernels have names for."""


@dataclass(frozen=True, slots=True)
class MasterKeys:
    """Verification patterns of a domain's master keys, as hex digits; an empty text if a register has no key.

    CCA has `AES`, `APKA` (16 digits) and `ASYM` (32 digits); EP11 has the wrapping key `WK` (64 digits). Each has a
    register for the current key and one for a new key, those of CCA also one for the old key.
    """

    aes: str = "b072bc5c245aac8a"
    apka: str = "1c2f3e4d5a6b7988"
    asym: str = "8f2a6d3c1b0e5f4790a1b2c3d4e5f607"
    wk: str = "ef490ddfce10b330b86cfe6db2ae2db98d65e8c19d9cb7a1b378dec93e398eb0"
    new_aes: str = ""
    new_apka: str = ""
    new_asym: str = ""
    new_wk: str = ""
    old_aes: str = ""
    old_apka: str = ""
    old_asym: str = ""
    incomplete: frozenset[str] = frozenset()
    """Names of those whose new key cannot be set yet: parts are missing (CCA), or it is not committed (EP11)."""

    def loaded(self, name: str, pattern: str, *, complete: bool) -> MasterKeys:
        """Return the keys after a new one was loaded, or the register for it was cleared by an empty pattern."""
        incomplete = self.incomplete - {name}
        if pattern and not complete:
            incomplete |= {name}
        return replace(self, **{f"new_{name}": pattern}, incomplete=incomplete)

    def rotated(self, name: str) -> MasterKeys:
        """Return the keys after the new one became the current one; `ValueError` if there is none that is ready."""
        new = getattr(self, f"new_{name}")
        if not new or name in self.incomplete:
            msg = f"the new key {name} is {'incomplete' if new else 'empty'}"
            raise ValueError(msg)
        old = {} if name == "wk" else {f"old_{name}": getattr(self, name)}
        return replace(self, **{name: new, f"new_{name}": ""}, **old)


KEY_DIGITS = {"cca": {"aes": 16, "apka": 16, "asym": 32}, "ep11": {"wk": 64}}
"""Length of the patterns of a card's master keys, by its mode."""


SERIAL = "93AA"
"""How the serial numbers of a machine's cards begin."""


def default_serial(apid: int, start: str = SERIAL) -> str:
    """Return the serial number of a card for which none is given: 16 characters, of which CCA cards show 8."""
    return f"{start}{apid:04X}00000000"


@dataclass(slots=True)
class CardHardware:
    """One crypto card as the hardware has it."""

    hwinfo: int
    """TAPQ information word of its queues, unless `queues` says otherwise."""
    serial: str
    configured: bool = True
    checkstopped: bool = False
    firmware: tuple[int, int] = (5, 8)
    api_ordinal: int = 6
    op_modes: tuple[str, ...] = ("FIPS2009", "FIPS2011")
    master_keys: MasterKeys = field(default_factory=MasterKeys)
    queues: dict[int, int] = field(default_factory=dict)
    """Information words of domains that differ from the rest."""
    associations: dict[int, int] = field(default_factory=dict)
    """Secret index of domains that Linux has associated (secure execution) when the machine is set up."""
    domain_keys: dict[int, MasterKeys] = field(default_factory=dict)
    """Master keys of domains that differ from the rest."""
    interrupts: Mask = NONE
    """Domains whose queues interrupt."""

    def word(self, apqi: int) -> int:
        """Return the information word of a domain's queue."""
        return self.queues.get(apqi, self.hwinfo)

    def keys(self, apqi: int) -> MasterKeys:
        """Return the master keys of a domain."""
        return self.domain_keys.get(apqi, self.master_keys)

    def change_keys(self, apqi: int | None, change: Callable[[MasterKeys], MasterKeys]) -> None:
        """Change the master keys of a domain, or of all; if `change` raises for one of them, nothing is changed."""
        if apqi is None:
            domain_keys = {domain: change(keys) for domain, keys in self.domain_keys.items()}
            self.master_keys, self.domain_keys = change(self.master_keys), domain_keys
        else:
            self.domain_keys = {**self.domain_keys, apqi: change(self.keys(apqi))}


@dataclass(frozen=True, slots=True)
class Traffic:
    """What users of zcrypt have under way on a queue."""

    waiting: int = 0
    """Requests that the queue does not have yet (requestq_count)."""
    pending: int = 0
    """Requests that it has, and that are not answered yet (pendingq_count)."""
    load: int = 0
    """Weight of what is under way."""


class Machine:
    """The AP hardware that one operating system sees."""

    def __init__(
        self, qci: Qci, environment: Environment = "lpar", *, secure_execution: bool = False, serial: str = SERIAL
    ) -> None:
        self._qci = qci
        self.serial = serial
        """How the serial numbers of its cards begin, unless they have their own."""
        self.environment: Environment = environment
        self.secure_execution = secure_execution
        self.cards: Mapping[int, CardHardware] = {}
        self.failing_resets: dict[Apqn, int] = {}
        """Response code that the next reset of a queue ends with, once."""
        self.unanswered: dict[Apqn, int] = {}
        """How many of the drivers' next requests to a queue get no answer."""
        self.traffic: dict[Apqn, Traffic] = {}
        """What users send. Nobody does here, so this is what somebody says."""

    @property
    def interrupts(self) -> bool:
        """Whether AP adapter interrupts can be used: always, except under z/VM."""
        return self.environment != "zvm"

    @property
    def sclp_configure(self) -> bool:
        """Whether the operating system may configure and deconfigure adapters itself: in an LPAR only."""
        return self.environment == "lpar"

    @property
    def secure_binding(self) -> bool:
        """Whether the operating system binds queues: in a secure execution guest with the facility."""
        return self.secure_execution and "APSB" in self.qci().facilities

    def qci(self) -> Qci:
        """Execute PQAP(QCI): the present configuration, with empty masks if the facility is missing."""
        configuration = self.configuration
        if configuration.supported:
            return configuration
        return replace(configuration, adapters=NONE, domains=NONE, control_domains=NONE, facilities=frozenset())

    def change(
        self, *, adapters: Mask | None = None, domains: Mask | None = None, control_domains: Mask | None = None
    ) -> None:
        """Replace masks of the configuration, as the hypervisor or the operator would."""
        old = self._qci
        self._qci = replace(
            old,
            adapters=old.adapters if adapters is None else adapters,
            domains=old.domains if domains is None else domains,
            control_domains=old.control_domains if control_domains is None else control_domains,
        )
        for card in self.cards.values():
            card.interrupts &= self._qci.domains

    @property
    def configuration(self) -> Qci:
        """The configuration as it is, whether or not QCI can report it."""
        return self._qci

    def reprogrammed(self) -> None:
        """Learn that the hypervisor has changed what it passes to this machine. Only that of a guest reacts."""

    def plug(self, apid: int, card: CardHardware) -> None:
        """Insert a card and make it available."""
        self.cards = {**self.cards, apid: card}
        self.change(adapters=self._qci.adapters.with_(apid))

    def unplug(self, apid: int) -> None:
        """Remove a card."""
        self.cards = {other: card for other, card in self.cards.items() if other != apid}
        self.change(adapters=self._qci.adapters.without(apid))

    def domains_of(self, apid: int) -> Mask:
        """Return the domains of an adapter for which TAPQ gives information, in one step."""
        card = self.cards.get(apid)
        if card is None or apid not in self._qci.adapters:
            return NONE
        domains = self._qci.domains
        for apqi, word in card.queues.items():
            if not word:
                domains = domains.without(apqi)  # an all-zero word means "no information"
        return domains if card.hwinfo else domains & Mask.from_numbers(card.queues)

    def tapq(self, apid: int, apqi: int) -> tuple[Response, int]:
        """Execute PQAP(TAPQ): response code and information word, which is 0 unless the response is a valid one."""
        if apqi not in self.domains_of(apid):
            return Response.Q_NOT_AVAIL, 0
        card = self.cards[apid]
        if not card.configured:
            return Response.DECONFIGURED, card.word(apqi)
        if card.checkstopped:
            return Response.CHECKSTOPPED, card.word(apqi)
        return Response.NORMAL, card.word(apqi)

    def answering(self, apid: int, domains: Mask) -> Mask:
        """Return those of some domains of an adapter whose queues answer instructions normally."""
        card = self.cards.get(apid)
        return domains & self.domains_of(apid) if card and card.configured and not card.checkstopped else NONE

    def interrupting(self, apid: int, apqi: int) -> bool:
        """Whether TAPQ says that a queue interrupts."""
        return apqi in self.domains_of(apid) and apqi in self.cards[apid].interrupts

    def enable_interrupts(self, apid: int, domains: Mask) -> None:
        """Execute PQAP(AQIC) for domains of an adapter that answer; nothing happens where there are no interrupts."""
        if self.interrupts:
            self.cards[apid].interrupts |= domains

    def reset_row(self, apid: int, domains: Mask, *, unbind: Mask = NONE) -> Mask:
        """Execute PQAP(RAPQ) or PQAP(ZAPQ) for some domains of an adapter, and return those that answered normally.

        They interrupt no longer. Those of `unbind` have the F bit: if they were bound, they are available for binding.
        """
        done = self.answering(apid, domains)
        if done:
            self.cards[apid].interrupts -= done
        for apqi in done & unbind & self.bound_to_guest(apid, unbind):
            self.set_bind_state(apid, apqi, BS_UNBOUND)
        return done

    def bound_to_guest(self, apid: int, domains: Mask) -> Mask:
        """Return those of some domains of an adapter whose bind state is that of a queue bound to this system."""
        card = self.cards.get(apid)
        return Mask.from_numbers(
            apqi for apqi in domains if card and FIELDS["bs"].get(card.word(apqi)) in (BS_USABLE, BS_NO_KEY)
        )

    def tapq_row(self, apid: int, domains: Mask) -> Iterator[tuple[Response, int, Mask]]:
        """Execute PQAP(TAPQ) for some domains of an adapter: the answers, each with the neighbours that have it."""
        card = self.cards.get(apid)
        if domains and card and not card.queues and self.domains_of(apid).issuperset(domains):
            yield (*self.tapq(apid, domains.lowest()), domains)  # the usual case: all are alike
            return
        for answer, neighbours in groupby(domains, lambda apqi: self.tapq(apid, apqi)):
            yield (*answer, Mask.from_numbers(neighbours))

    def zapq_row(self, apid: int, domains: Mask) -> dict[int, int]:
        """Execute PQAP(ZAPQ) for domains of an adapter, wait for the results, return response codes other than 0."""
        there = self.domains_of(apid)
        card = self.cards.get(apid)
        answers = card and card.configured and not card.checkstopped
        if card and answers and there.issuperset(domains) and not self.failing_resets:
            card.interrupts -= domains
            return {}  # the usual case
        missing = domains - there
        bad = {apqi: int(Response.Q_NOT_AVAIL) for apqi in missing}
        if card and not answers:
            response = Response.CHECKSTOPPED if card.configured else Response.DECONFIGURED
            bad |= dict.fromkeys(domains - missing, int(response))
        for apqn in [apqn for apqn in self.failing_resets if apqn.apid == apid and apqn.apqi in domains]:
            bad[apqn.apqi] = self.failing_resets.pop(apqn)
        self.reset_row(apid, domains - Mask.from_numbers(bad))
        return {apqi: response for apqi, response in sorted(bad.items()) if response}

    def stays_silent(self, apqn: Apqn) -> bool:
        """Whether a request to a queue gets no answer, which is counted."""
        left = self.unanswered.pop(apqn, 0)
        if left > 1:
            self.unanswered[apqn] = left - 1
        return left > 0

    def set_bind_state(self, apid: int, apqi: int, state: int) -> None:
        """Keep the outcome of a secure execution bind, association or reset with F bit, if the card is there."""
        card = self.cards.get(apid)
        if card:
            card.queues[apqi] = FIELDS["bs"].set(card.word(apqi), state)
