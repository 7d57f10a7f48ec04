"""Recording one card and its queues."""

from __future__ import annotations

import errno
import re
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from apfs.ap.hardware import OP_MODES, CardHardware, MasterKeys, default_serial
from apfs.ap.mask import Mask
from apfs.ap.names import Apqn, card_name
from apfs.ap.qinfo import CARD_HWINFO_MASK, FAC, FIELDS, OLDEST, Qci, hwinfo_of, mode_of, nearest_type
from apfs.recording.reader import DEVICES, PAGE, Found, Reader

if TYPE_CHECKING:
    from collections.abc import Iterable

    from apfs.kernel.profile import Profile

LATE_QUEUES = "online there although the card is offline, offline here"
_KEY = re.compile(r"(\w+) (NEW|CUR|OLD): (\S+) (\S+)")
_REGISTERS = {"AES": ("aes", 16), "APKA": ("apka", 16), "ASYM": ("asym", 32), "WK": ("wk", 64)}
_KEY_STATES = ("valid", "partial", "full", "uncommitted", "committed")
_FUNCTIONS = 0xFFFFC000
"""Bits of `ap_functions` that a scenario has names for."""
_CARD_FUNCTIONS = CARD_HWINFO_MASK >> FAC.shift

_T = TypeVar("_T")


def _commonest(values: Iterable[_T], default: _T) -> _T:
    """Return the most frequent value, the first of several."""
    counts = Counter(values)
    return max(counts, key=lambda value: counts[value]) if counts else default


class CardReader:
    """One card with its queues."""

    def __init__(
        self,
        files: Reader,
        kernel: Profile,
        apid: int,
        apqis: list[int],
        drivers: dict[Apqn, str],
        notes: dict[str, list[object]],
    ) -> None:
        self._files = files
        self._kernel = kernel
        self._apid = apid
        self._name = card_name(apid)
        self._path = f"{DEVICES}/{self._name}"
        self._apqns = [Apqn(apid, apqi) for apqi in apqis]
        self._drivers = drivers
        self._notes = notes

    def read(self, qci: Qci, found: Found) -> None:
        """Add the card and its queues to what was found."""
        files, path = self._files, self._path
        word = self._word()
        if word is None:
            return
        configured = files.text(f"{path}/config") != "0"
        checkstopped = files.text(f"{path}/chkstop") == "1"
        words = {apqn.apqi: self._queue_word(apqn, word) for apqn in self._apqns}
        hwinfo = _commonest(words.values(), word)
        card = CardHardware(hwinfo, default_serial(self._apid), configured, checkstopped)
        card.queues = {apqi: own for apqi, own in words.items() if own != hwinfo}
        card.queues |= dict.fromkeys(qci.domains - Mask.from_numbers(words), 0)
        found.cards[self._apid] = card
        mode = mode_of(word)
        if mode in ("cca", "ep11"):
            self._ask(card, mode)
        if "APSB" in qci.facilities and mode in ("accel", "ep11"):
            self._read_secure_execution(card, found)
        if configured and not checkstopped:
            self._read_online(found)
        for apqn in self._apqns:
            override = files.text(f"{path}/{apqn}/driver_override")
            if override and override != "(null)":
                found.overrides[apqn] = override

    def _word(self) -> int | None:
        """Return the card's TAPQ word, None if there is no such card on an emulated host, or no longer here."""
        files, path = self._files, self._path
        at = files.number(f"{path}/raw_hwtype") or files.number(f"{path}/hwtype")
        if at is None or at >> FIELDS["at"].width > 0:
            self._notes["left out: hwtype was not readable"].append(self._name)
            return None
        if at < OLDEST:
            self._notes["left out: cards older than CEX4 are not emulated"].append(self._name)
            return None
        functions = files.number(f"{path}/ap_functions", 16)
        if functions is None:
            kind = files.text(f"{path}/type") or ""
            try:
                usual = hwinfo_of(kind)
            except ValueError:
                usual = hwinfo_of(nearest_type(FIELDS["at"].set(0, at)))
                self._notes["mode of operation unknown: CCA is assumed"].append(self._name)
            functions = FAC.get(usual)
        word = FIELDS["at"].set((functions & _CARD_FUNCTIONS) << FAC.shift, at & 0xFF)
        usual = hwinfo_of(nearest_type(word))
        for name in ("nd", "ml", "qd"):
            word = FIELDS[name].set(word, FIELDS[name].get(usual))
        size = files.number(f"{path}/max_msg_size")
        if size and 0 < size // PAGE < 1 << FIELDS["ml"].width:
            word = FIELDS["ml"].set(word, size // PAGE)
        depth = files.number(f"{path}/depth")
        if depth is not None:
            word = FIELDS["qd"].set(word, max(depth - self._kernel.depth_plus_one, 0) & 0xF)
        return word

    def _queue_word(self, apqn: Apqn, word: int) -> int:
        functions = self._files.number(f"{self._path}/{apqn}/ap_functions", 16)
        if functions is None:
            return word
        if functions & ~_FUNCTIONS:
            self._notes[f"ap_functions has bits that no scenario has names for: {functions:#010x}"].append(apqn)
        return FAC.set(word, functions & _FUNCTIONS)

    # -- what only zcrypt tells --------------------------------------------------------------------

    def _ask(self, card: CardHardware, mode: str) -> None:
        """Read what the drivers ask the card itself: serial number, firmware, master keys."""
        files, path = self._files, self._path
        serial = (files.text(f"{path}/serialnr") or "").lstrip()
        if not serial:
            self._notes["serial number and master keys cannot be read without an online queue of zcrypt"].append(
                self._name
            )
            return
        length = 8 if mode == "cca" else 16
        if serial != default_serial(self._apid)[:length]:
            card.serial = serial
        if mode == "ep11":
            self._ask_ep11(card)
        keys = {apqn.apqi: self._keys(apqn) for apqn in self._apqns if self._drivers.get(apqn) == "cex4queue"}
        default = MasterKeys()
        card.master_keys = MasterKeys(
            *(
                _commonest((own[name] for own in keys.values() if name in own), getattr(default, name))
                for name in MasterKeys.__dataclass_fields__
            )
        )
        for apqi, own in keys.items():
            domain_keys = replace(card.master_keys, **own)
            if domain_keys != card.master_keys:
                card.domain_keys[apqi] = domain_keys

    def _ask_ep11(self, card: CardHardware) -> None:
        files, path = self._files, self._path
        version = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", files.text(f"{path}/FW_version") or "")
        if version:
            card.firmware = int(version[1]), int(version[2])
        ordinal = files.number(f"{path}/API_ordinalnr")
        if ordinal is not None:
            card.api_ordinal = ordinal
        shown = files.text(f"{path}/op_modes")
        if shown is not None:
            modes = tuple(name for name in OP_MODES if name in shown.split())
            if len(modes) < len(shown.split()):
                self._notes[f"operational modes that are not emulated: {shown}"].append(self._name)
            card.op_modes = modes
        for apqn in self._apqns:
            own = files.text(f"{path}/{apqn}/op_modes")
            if own and own != shown:
                self._notes[f"operational modes differ from those of the card: {own}"].append(apqn)

    def _keys(self, apqn: Apqn) -> dict[str, Any]:
        """Return the master keys that are shown, as fields of `MasterKeys`."""
        keys: dict[str, str] = {}
        incomplete: set[str] = set()
        for register, which, state, pattern in _KEY.findall(self._files.text(f"{self._path}/{apqn}/mkvps") or ""):
            name, digits = _REGISTERS.get(register, ("", 0))
            key = {"NEW": "new_", "CUR": "", "OLD": "old_"}[which] + name
            if not name or key not in MasterKeys.__dataclass_fields__:
                continue
            if state in ("empty", "invalid"):
                keys[key] = ""
            elif state in _KEY_STATES and re.fullmatch(rf"0x[0-9a-f]{{{digits}}}", pattern):
                keys[key] = pattern.removeprefix("0x")
                if state in ("partial", "uncommitted"):
                    incomplete.add(name)
        return {**keys, "incomplete": frozenset(incomplete)} if keys else {}

    def _read_online(self, found: Found) -> None:
        states = {
            apqn: self._files.text(f"{self._path}/{apqn}/online")
            for apqn in self._apqns
            if self._drivers.get(apqn) == "cex4queue"
        }
        if self._files.text(f"{self._path}/online") == "0":
            found.offline_cards.add(self._apid)
            # A queue that was bound later is not switched off with its card.
            self._notes[LATE_QUEUES] += [apqn for apqn, state in states.items() if state == "1"]
        else:
            found.offline_queues.update(apqn for apqn, state in states.items() if state == "0")

    def _read_secure_execution(self, card: CardHardware, found: Found) -> None:
        for apqn in self._apqns:
            names = self._files.names(f"{self._path}/{apqn}")
            found.se_guest |= "se_bind" in names
            # EIO: it is usable, but this Linux has not associated it (se_associate_show).
            shown = self._files.text(f"{self._path}/{apqn}/se_associate", refusal=errno.EIO)
            state = re.fullmatch(r"associated (\d{1,5})", shown or "")
            if state:
                card.associations[apqn.apqi] = int(state[1])
