"""Migration between machines: both ends, over any connection that carries bytes.

The source controls the migration, as on one machine. Both ends send hello; then the source sends commands, and the
target answers:

    prepare done    take done    run done    closed

The target keeps the guest waiting until the source sends `run`, and the source sends it when the target has accepted
the stream. Until then, a lost connection makes both ends undo everything. From then on, the guest belongs to the
target: a source that gets no answer keeps its guest stopped, because it must not run twice.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import sys
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from apfs import __version__
from apfs.mounts import frames
from apfs.mounts.frames import ChannelError, LostError
from apfs.mounts.guard import Unguarded
from apfs.mounts.migration import (
    STOPPED,
    Check,
    Facts,
    NotPossibleError,
    Outcome,
    Source,
    StepError,
    Target,
    UnsureError,
    check,
    migrate,
    other_host,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from apfs.mounts.frames import Channel

_REASON = {"queue": str | None, "characteristic": str, "source": str, "target": str}
_AXES = {"adapters", "domains", "control_domains"}


@dataclass(slots=True)
class Received:
    """What happened on a target."""

    uuid: str
    ok: bool
    """Whether the guest runs here and not on the source any more."""
    stream: int = 0
    """Bytes of the stream."""
    error: str | None = None
    log: list[str] = field(default_factory=list)
    """What the kernel logged here."""

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return asdict(self)


_ASKED, _RUNS = b"a", b"r"
"""Marks for a guard: that the target is told to run the guest, and that it runs there."""


def send(
    mount: Path, uuid: str, channel: Channel, *, only_check: bool, guard: type[Unguarded] = Unguarded
) -> Outcome | Check:
    """Migrate a guest from a mount to the one at the other end of a channel, or ask what would happen.

    A `guard` puts the mount in order if this process is killed.
    """
    with _telling(channel):
        source = Source(mount, uuid)
        if not only_check:
            source.need_guest()
    _say_hello(channel, "source", source, only_check=only_check)
    theirs = _hear(channel, "target")
    _fit(source, theirs, only_check=only_check)
    if only_check:
        return check(source, _Remote(channel, _facts(theirs), lambda _: None))
    with guard(lambda told: _recover_source(source, told), [source.client]) as guarded:
        outcome = migrate(source, _Remote(channel, _facts(theirs), guarded.tell))
    if outcome.ok:
        with contextlib.suppress(LostError):
            channel.send("closed")
    return outcome


def receive(
    mount: Path, uuid: str, channel: Channel, *, only_check: bool, guard: type[Unguarded] = Unguarded
) -> Received | None:
    """Let the source at the other end of a channel migrate a guest to a mount, or ask what would happen: then None.

    If the UUID is empty, it is a guest of whatever device the source says. A `guard` puts the mount in order if this
    process is killed.
    """
    theirs = None if uuid else _hear(channel, "source")
    with _telling(channel):
        target = Target(mount, theirs["uuid"] if theirs else uuid)
    _say_hello(channel, "target", target, only_check=only_check)
    theirs = theirs or _hear(channel, "source")
    _fit(target, theirs, only_check=only_check)
    if theirs["check"]:
        _answer(target, channel)
        return None
    # Without waiting: two that wait for each other's other ends would do so for ever.
    with guard(lambda told: _recover_target(target, told), [target.client], waits=False) as guarded:
        return _serve(target, channel, guarded.tell)


def _recover_source(source: Source, told: bytes) -> None:
    if source.state() not in STOPPED:
        return
    if _RUNS in told:
        with contextlib.suppress(StepError):  # nobody is left to be told
            source.close()
    elif _ASKED in told:
        print(f"apfs: killed; {source.advice}", file=sys.stderr)  # noqa: T201 -- of a command
    else:
        source.resume()


def _recover_target(target: Target, told: bytes) -> None:
    state = target.state()
    if state and not (_ASKED in told and state == "RUNNING"):
        target.take_back()


# -- hello -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _telling(channel: Channel) -> Iterator[None]:
    """Tell the other end why this one cannot take part."""
    try:
        yield
    except NotPossibleError as error:
        with contextlib.suppress(LostError):
            channel.send("sorry", why=str(error))
        raise


def _say_hello(channel: Channel, role: str, host: Source | Target, *, only_check: bool) -> None:
    mine = {**host.facts._asdict(), "role": role, "uuid": host.uuid, "check": only_check}
    with contextlib.suppress(LostError):  # it may have said why before it went
        channel.send("hello", protocol=frames.VERSION, apfs=__version__, **mine)


def _hear(channel: Channel, role: str) -> dict[str, Any]:
    """Return the hello of the other end, which must have this role."""
    try:
        name, theirs = channel.receive("hello", "sorry")
    except ChannelError as error:
        raise NotPossibleError(str(error)) from None
    if name == "sorry":
        raise NotPossibleError(f"the {role} says: {theirs['why']}")
    if theirs["role"] != role:
        raise NotPossibleError(f"both ends are the {theirs['role']}: one has to --send, the other to --receive")
    return theirs


def _fit(host: Source | Target, theirs: dict[str, Any], *, only_check: bool) -> None:
    """Make sure that the other end fits to this one. `NotPossibleError` if not, which both ends see."""
    if theirs["uuid"] != host.uuid:
        raise NotPossibleError(f"the {theirs['role']} has {theirs['uuid']}, this end {host.uuid}")
    target_only = theirs["check"] if isinstance(host, Source) else only_check
    source_only = only_check if isinstance(host, Source) else theirs["check"]
    if target_only and not source_only:
        raise NotPossibleError("only the target has --check: add it to the source")
    other_host(host.facts, _facts(theirs))


def _facts(theirs: dict[str, Any]) -> Facts:
    return Facts(**{name: theirs[name] for name in Facts._fields})


# -- the source's end -----------------------------------------------------------------------------------


class _Remote:
    """The target, as the source has it."""

    def __init__(self, channel: Channel, facts: Facts, tell: Callable[[bytes], None]) -> None:
        self.facts = facts
        self._channel = channel
        self._tell = tell
        self._log: list[str] = []
        self._listens = True
        """Whether it waits for what is to be done next; if not, it undoes everything by itself."""

    def prepare(self) -> None:
        """Have the device opened."""
        self._ask("prepare")

    def take(self, stream: bytes) -> None:
        """Have the stream taken."""
        self._ask("take", stream=base64.b64encode(stream).decode())

    def run(self) -> None:
        """Have the guest run."""
        self._listens = False
        sent = False
        self._tell(_ASKED)
        try:
            self._channel.send("run")
            sent = True
            self._done()
        except (ChannelError, KeyboardInterrupt, SystemExit) as error:
            if isinstance(error, LostError) and not sent:
                raise StepError(str(error)) from None
            # An interrupted `send` does not tell whether the frame is on its way.
            reason = str(error) if isinstance(error, ChannelError) else "interrupted"
            raise UnsureError(reason) from None
        self._tell(_RUNS)

    def undo(self) -> list[str]:
        """Have it all undone."""
        if self._listens:
            with contextlib.suppress(StepError):
                self._ask("undo")
        return self._log

    def forecast(self, stream: bytes) -> dict[str, Any]:
        """Have the driver asked."""
        try:
            self._channel.send("forecast", stream=base64.b64encode(stream).decode())
            _, answer, findings = self._channel.receive_after("findings", "answer")
            if not all(map(_is_reason, findings)) or not all(
                _is_matrix(answer[name]) for name in ("matrix", "guest_matrix")
            ):
                raise ChannelError("the other end sends an invalid answer")
        except ChannelError as error:
            raise NotPossibleError(str(error)) from None
        return {**answer, "findings": findings}

    def _ask(self, what: str, **fields: str) -> None:
        self._listens = False
        try:
            self._channel.send(what, **fields)
            self._done()
        except ChannelError as error:
            raise StepError(str(error)) from None
        self._listens = True

    def _done(self) -> None:
        name, fields, log = self._channel.receive_after("log", "done", "failed")
        self._log = [str(line) for line in log]
        if name == "failed":
            raise StepError.of(fields["errno"], fields["path"])


def _is_reason(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == _REASON.keys()
        and all(isinstance(value[key], kind) for key, kind in _REASON.items())
    )


def _is_matrix(value: dict[str, Any] | None) -> bool:
    return value is None or (
        value.keys() == _AXES
        and all(isinstance(axis, list) and all(number in range(256) for number in axis) for axis in value.values())
    )


# -- the target's end ------------------------------------------------------------------------------------


class _TakenBackError(Exception):
    """The source does not want to go on."""


def _answer(target: Target, channel: Channel) -> None:
    try:
        answer = target.forecast(_stream(channel.receive("forecast")[1]))
        channel.send_list("findings", answer.pop("findings"))
        channel.send("answer", **answer)
    except ChannelError as error:
        raise NotPossibleError(str(error)) from None


def _serve(target: Target, channel: Channel, tell: Callable[[bytes], None]) -> Received:
    try:
        size = _take_part(target, channel, tell)
    except (StepError, _TakenBackError) as error:
        log = target.undo()
        with contextlib.suppress(LostError):
            channel.send_list("log", log)
            if isinstance(error, StepError):
                channel.send("failed", errno=error.name, path=error.path)
            else:
                channel.send("done")
        return Received(target.uuid, ok=False, error=str(error), log=log)
    except ChannelError as error:
        return Received(target.uuid, ok=False, error=str(error), log=target.undo())
    except BaseException:  # Ctrl-C and the like
        target.undo()
        raise
    # From here on the guest runs here, whatever the source hears of it.
    try:
        channel.send("done")
        channel.receive("closed")
    except ChannelError as error:
        what = f"{error}; the guest runs here, but the source may still have it open, stopped"
        return Received(target.uuid, ok=False, stream=size, error=what)
    return Received(target.uuid, ok=True, stream=size)


def _take_part(target: Target, channel: Channel, tell: Callable[[bytes], None]) -> int:
    """Do what the source says, until the guest runs here; return the size of the stream."""
    _next(channel, "prepare")
    target.prepare()
    channel.send("done")
    stream = _stream(_next(channel, "take"))
    target.take(stream)
    channel.send("done")
    _next(channel, "run")
    tell(_ASKED)
    target.run()
    return len(stream)


def _next(channel: Channel, name: str) -> dict[str, Any]:
    asked, fields = channel.receive(name, "undo")
    if asked == "undo":
        raise _TakenBackError("the source could not continue, and has undone the migration")
    return fields


def _stream(fields: dict[str, Any]) -> bytes:
    try:
        return base64.b64decode(fields["stream"], validate=True)
    except binascii.Error:
        raise ChannelError("the other end sends a stream that is not base64") from None
