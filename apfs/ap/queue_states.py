"""The states of a card's queues, and the transitions between them (drivers/s390/crypto/ap_queue.c).

Linux has two states per queue. The device state says whether the bus operates the queue: uninitiated, operating, or
error. The other state belongs to a state machine that resets the queue, waits for the end of the reset, and enables its
interrupt; then the queue is idle. The state machine advances only when the queue is polled, and only queues with a
driver are polled. The bus polls all of them whenever its poll timer expires; a queue that waits for something arms the
timer.

States are columns: one mask of domains per property.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from apfs.ap.mask import NONE, Mask

if TYPE_CHECKING:
    from apfs.ap.hardware import Machine
    from apfs.kernel.profile import Profile


class PollTimer:
    """Whether the bus is going to poll its queues (ap_poll_timer)."""

    armed = False


class QueueStates:
    """The states of all queues of a card."""

    def __init__(self, machine: Machine, apid: int, timer: PollTimer, profile: Profile) -> None:
        self._machine = machine
        self._profile = profile
        self._apid = apid
        self._timer = timer
        self.config = NONE
        self.chkstop = NONE
        self.operating = NONE
        """Queues of the device states operating and error; the others are uninitiated."""
        self.failed = NONE
        """Queues of the device state error."""
        self.resetting = NONE
        """Queues whose reset has not been seen to end, perhaps because it has not even begun."""
        self.associating = NONE
        """Queues that have not been seen to be associated with their secret (AP_SM_STATE_ASSOC_WAIT)."""
        self.interrupts = NONE
        """Queues that interrupted when they were last initialised."""
        self.unbinding = NONE
        """Queues whose next reset makes them available for binding (the F bit)."""
        self.bound_to_guest = NONE
        """Queues of a secure execution guest that were bound to it when the bus last asked."""
        self.bound_here = NONE
        """Queues that were bound with `se_bind` since their last reset (se_bound, in Linux 6.7)."""
        self.secrets: dict[int, int] = {}
        """Indexes of the secrets with which queues were associated since they were initialised."""

    @property
    def usable(self) -> Mask:
        """Return the queues that were configured and not check-stopped when the bus last looked."""
        return self.config - self.chkstop

    # -- coming and going --------------------------------------------------------------------------

    def add(self, domains: Mask, *, config: bool, chkstop: bool) -> None:
        """Have new queues, all uninitiated (ap_queue_create)."""
        self.resetting |= domains
        if config:
            self.config |= domains
        if chkstop:
            self.chkstop |= domains
        if self._machine.secure_binding:
            self.note_bind_states(domains)
            self.secrets |= dict.fromkeys(domains, 0)  # which is an index; initialising a queue takes it away

    def drop(self, domains: Mask) -> None:
        """Have queues no longer."""
        for column, mask in list(vars(self).items()):
            if isinstance(mask, Mask):
                setattr(self, column, mask - domains)
        self._forget_secrets(domains)

    def initialise(self, domains: Mask) -> None:
        """Operate queues, and reset them first (_ap_queue_init_state)."""
        self.operating |= domains
        self.failed -= domains
        self._forget_secrets(domains)
        self.reset(domains)

    def resume(self, domains: Mask) -> None:
        """Operate queues that can be used again; up to 6.5 they wait for a poll, and keep their association."""
        if self._profile.resume_initialises:
            self.initialise(domains)
        else:
            self.operating |= domains
            self.failed -= domains
            self.resetting |= domains
            self.associating -= domains

    def release(self, domains: Mask) -> None:
        """Zeroize queues whose driver has gone, and operate them no longer (ap_queue_remove)."""
        self._machine.reset_row(self._apid, domains)
        self.operating -= domains
        self.failed -= domains

    def follow(self, domains: Mask, *, config: bool, chkstop: bool) -> Mask:
        """Take over what a scan finds of queues, and return those that were (de)configured (ap_scan_domains).

        One scan makes one change of a queue: the end or the beginning of a check-stop, else that of a
        deconfiguration, else a queue in error state is initialised.
        """
        if self._machine.secure_binding:
            self.note_bind_states(domains)
        was_stopped, was_configured = self.chkstop & domains, self.config & domains
        if chkstop:
            stopped = domains - was_stopped
            self.chkstop |= stopped
            self.failed |= stopped & self.operating
            domains -= stopped
        else:
            self.chkstop -= was_stopped
            self.resume(was_stopped & self.operating)
            domains -= was_stopped
        if not config:
            changed = domains & was_configured
            self.config -= changed
            self.failed |= changed & self.operating
            return changed
        changed = domains - was_configured
        self.config |= changed
        self.resume(changed & self.operating)
        self.initialise((domains - changed) & self.failed)
        return changed

    # -- the machine -------------------------------------------------------------------------------

    def reset(self, domains: Mask) -> None:
        """Reset queues, as soon as they can be (reset_store, AP_SM_STATE_RESET_START)."""
        self.resetting |= domains
        self.associating -= domains
        if self._begin(domains & self.operating & self.usable):
            self._timer.armed = True

    def unbind_from_guest(self, domains: Mask) -> None:
        """Make queues available for binding, by a reset; up to 6.7 only if they are operated (se_bind_store)."""
        self.unbinding |= domains
        if self._profile.se_bind_state_checked:
            self.initialise(domains)
        else:
            self._forget_secrets(domains)
            self.reset(domains)

    def poll(self, domains: Mask) -> None:
        """Take queues, which have a driver, from the end of their reset to where they are idle (ap_sm_reset_wait)."""
        done = self._begin(domains & self.operating & self.usable & self.resetting)
        if done:
            self.resetting -= done
            if self._machine.secure_binding:
                self.note_bind_states(done)
            self._machine.enable_interrupts(self._apid, done)
            if self._machine.interrupts:
                self.interrupts |= done

    def _begin(self, domains: Mask) -> Mask:
        """Reset queues, and return those that did not fail: these answer at once."""
        if not domains:
            return NONE
        done = self._machine.reset_row(self._apid, domains, unbind=domains & self.unbinding)
        self.unbinding -= done
        self.interrupts -= done
        self.bound_here -= done
        self.failed |= domains - done
        return done

    # -- secure execution --------------------------------------------------------------------------

    def note_bind_states(self, domains: Mask) -> None:
        """Remember which queues the hardware has bound to this guest (se_bstate)."""
        self.bound_to_guest = self.bound_to_guest - domains | self._machine.bound_to_guest(self._apid, domains)

    def bind_to_guest(self, apqi: int) -> None:
        """Take note that a queue was bound to this guest, which since 6.8 ends its association."""
        self.bound_to_guest = self.bound_to_guest.with_(apqi)
        self.bound_here = self.bound_here.with_(apqi)
        if self._profile.se_bind_state_checked:
            self.secrets.pop(apqi, None)

    def associate(self, apqi: int, secret: int) -> bool:
        """Remember a secret; return whether the queue is associated already. Else it is so for ever: it is not polled.

        The hardware has accepted it (ap_sm_assoc_wait).
        """
        self.secrets[apqi] = secret
        self.bound_to_guest = self.bound_to_guest.with_(apqi)
        if apqi in self.operating and apqi in self.usable:
            return True
        self.associating = self.associating.with_(apqi)
        return False

    def _forget_secrets(self, domains: Mask) -> None:
        if self.secrets:
            self.secrets = {apqi: secret for apqi, secret in self.secrets.items() if apqi not in domains}
