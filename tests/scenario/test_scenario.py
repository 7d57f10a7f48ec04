"""The grammar of scenarios: every key, and every mistake with the line that it is on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from apfs.ap.hardware import MasterKeys
from apfs.ap.mask import ALL, NONE, Mask
from apfs.ap.names import Apqn
from apfs.errors import KernelError
from apfs.host import Host
from apfs.kernel.profile import DEFAULT, Profile
from apfs.scenario.model import BusSettings, MdevSpec, Scenario, ScenarioError
from apfs.scenario.reader import load, loads
from apfs.scenario.writer import dumps
from apfs.testing.files import Shell

U1 = "11111111-aaaa-4aaa-8aaa-111111111111"
U2 = "22222222-bbbb-4bbb-8bbb-222222222222"
CARD = '[[card]]\nadapter = 5\ntype = "CEX8C"\n'
QCI = "[qci]\ndomains = [4, 0x47]\n"
KEY32, KEY64 = "0123456789abcdef" * 2, "0123456789abcdef" * 4

# -- every key --------------------------------------------------------------------------------------------------------

KEYS: dict[str, tuple[str, Callable[[Scenario], object], object, object]] = {
    # Text, what it makes, the value, and the value without it.
    "name": ('name = "n"', lambda s: s.name, "n", "unnamed"),
    "serial": ('serial = "A007"', lambda s: s.serial, "A007", "93AA"),
    "description": ('description = "d"', lambda s: s.description, "d", ""),
    "kernel": ('kernel = "6.8"', lambda s: s.kernel, Profile.of("6.8"), DEFAULT),
    "kernel with features": (
        'kernel = { version = "5.14", ap_config = true, reset_model = "wait", irqs = 1 }',
        lambda s: s.kernel,
        Profile.of("5.14", {"ap_config": True, "reset_model": "wait", "irqs": 1}),
        DEFAULT,
    ),
    "kernel, a table": ('[kernel]\nversion = "7.1"', lambda s: s.kernel, Profile.of("7.1"), DEFAULT),
    "driver": ('driver = "v2"', lambda s: s.driver, "v2", "v2"),
    "driver none": ('driver = "none"', lambda s: s.driver, "none", "v2"),
    "driver v4": ('driver = "v4"', lambda s: s.driver, "v4", "v2"),
    "driver next": ('driver = "next"', lambda s: s.driver, "next", "v2"),
    "environment": ('environment = "zvm"', lambda s: s.environment, "zvm", "lpar"),
    "environment kvm": ('environment = "kvm"', lambda s: s.environment, "kvm", "lpar"),
    "secure_execution": ("secure_execution = true", lambda s: s.secure_execution, True, False),
    "vfio_ap": ("vfio_ap = false", lambda s: s.vfio_ap, False, True),
    "config_events": ("config_events = true", lambda s: s.config_events, True, False),
    "qci.domains": ("[qci]\ndomains = [4, 9]", lambda s: s.qci.domains, Mask.of(4, 9), NONE),
    "qci.domains, one": ("[qci]\ndomains = 4", lambda s: s.qci.domains, Mask.of(4), NONE),
    "qci.domains, range": ('[qci]\ndomains = "0-255"', lambda s: s.qci.domains, ALL, NONE),
    "qci.domains, ranges": (
        '[qci]\ndomains = [1, "3", "0x10-0x12", "7-7"]',
        lambda s: list(s.qci.domains),
        [1, 3, 7, 16, 17, 18],
        [],
    ),
    "qci.control_domains": ("[qci]\ncontrol_domains = [1]", lambda s: s.qci.control_domains, Mask.of(1), NONE),
    "qci.control_domains, by default": ("[qci]\ndomains = [1]", lambda s: s.qci.control_domains, Mask.of(1), NONE),
    "qci.control_domains, none": (
        "[qci]\ndomains = [1]\ncontrol_domains = []",
        lambda s: (s.qci.domains, s.qci.control_domains),
        (Mask.of(1), NONE),
        (NONE, NONE),
    ),
    "qci.max_adapter": ("[qci]\nmax_adapter = 63", lambda s: s.qci.limits(), (63, 255), (255, 255)),
    "qci.max_domain": ("[qci]\nmax_domain = 84", lambda s: s.qci.limits(), (255, 84), (255, 255)),
    "qci.facilities": (
        '[qci]\nfacilities = ["APSB"]',
        lambda s: sorted(s.qci.facilities),
        ["APSB"],
        ["APSC", "APXA", "QACT", "RC8A"],
    ),
    "qci.supported": (
        "[qci]\nsupported = false",
        lambda s: (s.qci.supported, s.qci.limits(), len(s.qci.facilities)),
        (False, (63, 15), 0),
        (True, (255, 255), 4),
    ),
    "qci.adapters": ("[qci]\nadapters = [1, 9]", lambda s: s.qci.adapters, Mask.of(1, 9), NONE),
    "bus": (
        "[bus]\nap_domain = 4\nconfig_time = 60\npoll_thread = true\npoll_timeout = 0",
        lambda s: s.bus,
        BusSettings(4, 60, poll_thread=True, poll_timeout=0),
        BusSettings(None, 30, poll_thread=False, poll_timeout=None),
    ),
    "masks.apmask": ('[masks]\napmask = "-5"', lambda s: s.apmask, ~Mask.of(5), ALL),
    "masks.aqmask": ('[masks]\naqmask = "0x8"', lambda s: s.aqmask, Mask.of(0), ALL),
    "mdev.uuid": (
        f'[[mdev]]\nuuid = "{U1.upper()}"',
        lambda s: s.mdevs,
        (MdevSpec(U1, NONE, NONE, NONE, guest=False),),
        (),
    ),
    "mdev, all of it": (
        f'[[mdev]]\nuuid = "{U1}"\nadapters = 5\ndomains = "1-2"\ncontrol_domains = [9]\nguest = true',
        lambda s: s.mdevs,
        (MdevSpec(U1, Mask.of(5), Mask.of(1, 2), Mask.of(9), guest=True),),
        (),
    ),
    "mdev.secure_execution": (
        f'[[mdev]]\nuuid = "{U1}"\nsecure_execution = true',
        lambda s: s.mdevs,
        (MdevSpec(U1, NONE, NONE, NONE, secure_execution=True),),
        (),
    ),
    "mdev.config_events": (
        f'[[mdev]]\nuuid = "{U1}"\nconfig_events = true',
        lambda s: s.mdevs,
        (MdevSpec(U1, NONE, NONE, NONE, config_events=True),),
        (),
    ),
}


def test_serial_of_a_machine() -> None:
    """It is in front of the serial numbers of all cards that have none of their own, also of those that come later."""
    card = '[[card]]\nadapter = {}\ntype = "CEX8P"\n'
    host = Host(loads(f'serial = "00Z7"\n{card.format(5)}{card.format(6)}serial = "MINE"\n'))
    host.plug(0x1F, "CEX8C")
    serials = {apid: host.machine.cards[apid].serial for apid in (5, 6, 0x1F)}
    assert serials == {5: "00Z7000500000000", 6: "MINE", 0x1F: "00Z7001F00000000"}
    assert loads(dumps(host.scenario)) == host.scenario
    assert "0005" not in dumps(host.scenario)


def test_numbers_are_written_as_people_write_them() -> None:
    """Adapters, domains and classes of cards in hexadecimal, everything else in decimal."""
    text = """\
[qci]
domains = [0x04, 0x1f]

[[card]]
adapter = 0x0f
type = "CEX8C"
tapq = {class = 0x1f, nd = 17, qd = 12}
"""
    assert dumps(loads(text)) == text


def test_changes() -> None:
    """They count instead of what the text has at its top level."""
    text = 'name = "template"\nvfio_ap = false\nkernel = { version = "5.14", ap_config = true }\n'
    same = loads(text)
    changed = loads(text, changes={"name": "h=7", "serial": "0007", "vfio_ap": "true", "kernel": "6.12"})
    assert (same.name, same.serial, same.vfio_ap, same.kernel.version) == ("template", "93AA", False, "5.14")
    assert changed == replace(same, name="h=7", serial="0007", vfio_ap=True, kernel=loads('kernel = "6.12"').kernel)
    assert load("default", {"name": "other"}).name == "other"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"nam": "x"}, "t.toml, --set nam: unknown key 'nam': known here are "),
        ({"vfio_ap": "yes"}, "t.toml, --set vfio_ap: vfio_ap: expected true or false, not 'yes'"),
        ({"serial": "7"}, "t.toml, --set serial: serial: expected four digits or capital letters such as '0007', not"),
        ({"card": "CEX8C"}, "t.toml, --set card: card must be an array of tables"),
    ],
)
def test_changes_that_make_no_sense(changes: dict[str, str], why: str) -> None:
    with pytest.raises(ScenarioError, match=f"^{why}"):
        loads('name = "a"', "t.toml", changes)


@pytest.mark.parametrize("key", KEYS)
def test_keys(key: str) -> None:
    text, get, value, default = KEYS[key]
    assert get(loads(text)) == value
    assert get(loads("")) == default


CARD_KEYS: dict[str, tuple[str, Callable[[Scenario], object], object, object]] = {
    "serial": ('serial = "X"', lambda s: s.cards[5].serial, "X", "93AA000500000000"),
    "configured": ("configured = false", lambda s: s.cards[5].configured, False, True),
    "checkstopped": ("checkstopped = true", lambda s: s.cards[5].checkstopped, True, False),
    "firmware": ('firmware = "7.12"', lambda s: s.cards[5].firmware, (7, 12), (5, 8)),
    "api_ordinal": ("api_ordinal = 4", lambda s: s.cards[5].api_ordinal, 4, 6),
    "op_modes": (
        'op_modes = ["BSI2009", "SIGG"]',
        lambda s: s.cards[5].op_modes,
        ("BSI2009", "SIGG"),
        ("FIPS2009", "FIPS2011"),
    ),
    "tapq": (
        "tapq = { class = 0x40, nd = 1, ml = 15, qd = 0 }",
        lambda s: f"{s.cards[5].hwinfo:016x}",
        "924000000e010f00",
        "928000000e540307",
    ),
    "tapq, as a table": (
        "[card.tapq]\napsc = 0\nslcf = 1\nbs = 2",
        lambda s: f"{s.cards[5].hwinfo:016x}",
        "138080000e540307",
        "928000000e540307",
    ),
    "tapq, everything": (
        "tapq = { apsc=0, mex4k=1, crt4k=1, cca=0, accel=1, ep11=1, apxa=0, slcf=1, class=0xff, bs=3, at=10, nd=255 }",
        lambda s: f"{s.cards[5].hwinfo:016x}",
        "6dffc0000aff0307",
        "928000000e540307",
    ),
    "online": ("online = false", lambda s: s.offline_cards, Mask.of(5), NONE),
    "master_keys.aes": (
        f'master_keys = {{ aes = "{KEY32[:16]}" }}',
        lambda s: s.cards[5].master_keys.aes,
        KEY32[:16],
        MasterKeys().aes,
    ),
    "master_keys.apka": (
        f'[card.master_keys]\napka = "{KEY32[:16]}"',
        lambda s: s.cards[5].master_keys.apka,
        KEY32[:16],
        MasterKeys().apka,
    ),
    "master_keys.asym": (
        f'[card.master_keys]\nasym = "{KEY32}"',
        lambda s: s.cards[5].master_keys.asym,
        KEY32,
        MasterKeys().asym,
    ),
    "master_keys.wk": (
        f'[card.master_keys]\nwk = "{KEY64}"',
        lambda s: s.cards[5].master_keys.wk,
        KEY64,
        MasterKeys().wk,
    ),
    "master_keys, not set": (
        'master_keys = { aes = "", wk = "" }',
        lambda s: s.cards[5].master_keys,
        MasterKeys(aes="", wk=""),
        MasterKeys(),
    ),
}


@pytest.mark.parametrize("key", CARD_KEYS)
def test_keys_of_cards(key: str) -> None:
    text, get, value, default = CARD_KEYS[key]
    assert get(loads(CARD + text)) == value
    assert get(loads(CARD)) == default


@pytest.mark.parametrize(
    ("card", "word"),
    [
        ("CEX4A", "6a8000000a540307"),
        ("CEX5C", "928000000b540307"),
        ("CEX6P", "068000000c540307"),
        ("CEX7C", "928000000d540307"),
        ("CEX8P", "068000000e540307"),
    ],
)
def test_types(card: str, word: str) -> None:
    scenario = loads(f'[[card]]\nadapters = [3, "5-6"]\ntype = "{card}"\n')
    assert {apid: f"{hardware.hwinfo:016x}" for apid, hardware in scenario.cards.items()} == dict.fromkeys(
        (3, 5, 6), word
    )
    assert scenario.qci.adapters == Mask.of(3, 5, 6)
    assert scenario.cards[3].serial != scenario.cards[5].serial


def test_queues() -> None:
    scenario = loads(
        QCI + CARD.replace("CEX8C", "CEX7P") + '[[queue]]\napqn = "05.0047"\ntapq = { at = 14 }\n'
        '[[queue]]\napqn = "05.0047"\ntapq = { apsc = 1 }\n'
    )
    card = scenario.cards[5]
    assert f"{card.word(4):016x} {card.word(0x47):016x}" == "068000000d540307 868000000e540307"


def test_a_queue_that_is_as_its_card_again() -> None:
    """Where tables are about the same queue, the last one counts; nothing is left of those before."""
    word = '[[queue]]\napqn = "05.0047"\ntapq = { slcf = 1 }\n'
    keys = f'[[queue]]\napqn = "05.0004"\nmaster_keys = {{ aes = "{KEY32[:16]}" }}\n'
    usual = f'master_keys = {{ aes = "{MasterKeys().aes}" }}'
    again = word.replace("slcf = 1", "slcf = 0") + keys.replace(keys.splitlines()[2], usual)
    scenario = loads(QCI + CARD + word + keys + again)
    assert scenario == loads(QCI + CARD) == loads(dumps(scenario))


QUEUE_KEYS: dict[str, tuple[str, Callable[[Scenario], object], object, object]] = {
    "present": ("present = false", lambda s: s.cards[5].word(4), 0, 0x928000000E540307),
    "online": ("online = false", lambda s: s.offline_queues, {Apqn(5, 4)}, frozenset()),
    "driver_override": ('driver_override = "vfio_ap"', lambda s: s.overrides, {Apqn(5, 4): "vfio_ap"}, {}),
    "secret": ("secret = 65535", lambda s: s.cards[5].associations, {4: 65535}, {}),
    "master_keys": (
        f'master_keys = {{ aes = "{KEY32[:16]}" }}',
        lambda s: (s.cards[5].keys(4), s.cards[5].keys(0x47)),
        (MasterKeys(aes=KEY32[:16]), MasterKeys()),
        (MasterKeys(), MasterKeys()),
    ),
}


@pytest.mark.parametrize("key", QUEUE_KEYS)
def test_keys_of_queues(key: str) -> None:
    text, get, value, default = QUEUE_KEYS[key]
    queue = '[[queue]]\napqn = "05.0004"\n'
    assert get(loads(QCI + CARD + queue + text)) == value
    assert get(loads(QCI + CARD + queue)) == default


def test_many_queues_in_one_table() -> None:
    card = '[[card]]\nadapters = "5-7"\ntype = "CEX8C"\n'
    scenario = loads(QCI + card + '[[queue]]\nadapters = ["6-7"]\ndomains = [4, 0x47]\nonline = false\n')
    assert scenario.offline_queues == {Apqn(6, 4), Apqn(6, 0x47), Apqn(7, 4), Apqn(7, 0x47)}


def test_what_was_set_in_linux_is_set() -> None:
    text = (
        QCI
        + CARD
        + CARD.replace("5", "6")
        + "online = false\n[bus]\nap_domain = 0x47\nconfig_time = 7\npoll_timeout = 9\n"
        + '[[queue]]\napqn = "05.0004"\ndriver_override = "vfio_ap"\n'
        + '[[queue]]\napqn = "05.0047"\nonline = false\nmaster_keys = { aes = "" }\n'
    )
    host = Host(loads(text))
    assert list(host.journal) == []
    shell = Shell(host)
    bus = {name: shell.cat(f"/sys/bus/ap/{name}") for name in ("ap_domain", "config_time", "poll_timeout")}
    assert bus == {"ap_domain": "71\n", "config_time": "7\n", "poll_timeout": "9\n"}
    card = "/sys/devices/ap/card05"
    assert shell.readlink(f"{card}/05.0004/driver").endswith("/vfio_ap")
    assert shell.cat(f"{card}/05.0004/driver_override") == "vfio_ap\n"
    assert [shell.cat(f"{card}/{name}") for name in ("online", "05.0047/online")] == ["1\n", "0\n"]
    card = "/sys/devices/ap/card06"
    assert [shell.cat(f"{card}/{name}") for name in ("online", "06.0004/online")] == ["0\n", "0\n"]
    shell.echo(1, f"{card}/online")
    shell.echo(1, "/sys/devices/ap/card05/05.0047/online")
    assert "AES CUR: valid 0xb072bc5c245aac8a\n" in shell.cat(f"{card}/06.0047/mkvps")
    assert f"AES CUR: invalid 0x{'0' * 16}\n" in shell.cat("/sys/devices/ap/card05/05.0047/mkvps")


def test_masks_are_applied_after_the_first_scan() -> None:
    # Unlike those of the kernel's command line: the queues have been with zcrypt before.
    shell = Shell(Host(loads(f'{QCI}{CARD}[masks]\naqmask = "-4"\n')))
    card = "/sys/devices/ap/card05"
    assert shell.readlink(f"{card}/05.0004/driver").endswith("/vfio_ap")
    assert shell.cat(f"{card}/05.0004/interrupt") == "Interrupts disabled.\n"
    assert shell.cat(f"{card}/05.0004/request_count") == "-\n"
    with pytest.raises(KernelError, match="EINVAL"):
        shell.echo("vfio_ap", f"{card}/05.0047/driver_override")


def test_a_poll_thread_runs_only_without_interrupts() -> None:
    for environment, running in (("lpar", "0\n"), ("zvm", "1\n")):
        host = Host(loads(f'environment = "{environment}"\n[bus]\npoll_thread = true\n'))
        assert Shell(host).cat("/sys/bus/ap/poll_thread") == running


def test_a_secret_needs_a_queue_that_is_bound() -> None:
    text = (
        'secure_execution = true\n[qci]\ndomains = 4\nfacilities = ["APXA", "APSB"]\n'
        '[[card]]\nadapter = 5\ntype = "CEX8P"\n[[queue]]\napqn = "05.0004"\nsecret = 7\n'
    )
    queue = "/sys/devices/ap/card05/05.0004"
    assert Shell(Host(loads(text))).cat(f"{queue}/se_associate") == "associated 7\n"
    assert Shell(Host(loads(text + "tapq = { bs = 2 }\n"))).cat(f"{queue}/se_associate") == "unassociated\n"


def test_an_adapter_without_a_card_is_configured_only() -> None:
    host = Host(loads("[qci]\nadapters = [5]\ndomains = [4]\n"))
    assert Shell(host).cat("/sys/bus/ap/ap_adapter_mask").startswith("0x04000")
    assert host.ap_bus.cards == {}
    host.plug(5, "CEX8C")
    host.scan()
    assert list(host.ap_bus.cards) == [5]


def test_a_host_does_not_write_into_its_scenario() -> None:
    scenario = loads(QCI + CARD + "[masks]\napmask = '-5'\n")
    for _ in range(2):
        host = Host(scenario)
        shell = Shell(host)
        assert shell.cat("/sys/devices/ap/card05/05.0047/status") == "unassigned\n"
        shell.echo("tapq 05.0004 apsc=0", "/ctl/console")
        shell.echo("configure 5 off", "/ctl/console")
        shell.echo("scan", "/ctl/console")
        assert shell.cat("/sys/devices/ap/card05/config") == "0\n"
    assert scenario.cards[5].configured
    assert scenario.cards[5].queues == {}


# -- mistakes ---------------------------------------------------------------------------------------------------------

# The line with the mistake ends with the mark.
MARK = "  # here"
MISTAKES: dict[str, str] = {
    # Names that mean nothing.
    "unknown release of Linux": 'kernel = "6.30"  # here\n',
    "release of Linux that is too old": 'kernel = "5.13"  # here\n',
    "release with a zero in front": 'kernel = "6.08"  # here\n',
    "no release": "kernel = 6.8  # here\n",
    "features without a release": "kernel = { ap_config = true }  # here\n",
    "unknown feature": 'kernel = { version = "6.8", colour = true }  # here\n',
    "unknown value of a feature": 'kernel = { version = "6.8", irqs = 3 }  # here\n',
    "value of another kind": 'kernel = { version = "6.8", irqs = true }  # here\n',
    "feature in a table": '[kernel]\nversion = "6.8"\nirqs = 1\nap_config = 1  # here\n',
    "unknown feature in a table": '[kernel]\ncolour = true  # here\nversion = "6.8"\n',
    "unknown release in a table": '[kernel]\nirqs = 1\nversion = "6.30"  # here\n',
    "a table without a release": "[kernel]  # here\nirqs = 1\n",
    "keys with dots, one after the other": "qci.max_adapter = 3\nqci.colour = true  # here\n",
    "a table in two places": CARD + "[card.tapq]\napsc = 1\n[qci]\n" + "colour = 1  # here\n[masks]\n",
    "no release, with dots": "kernel.irqs = 1  # here\nkernel.ap_config = true\n",
    "unknown feature with a dot": 'kernel.version = "6.8"\nkernel.colour = true  # here\n',
    "unknown key": '\nname = "n"\ncolour = "red"  # here\n',
    "unknown table": "\n\n[colours]  # here\nred = 1\n",
    "unknown array of tables": 'name = "n"\n\n[[colours]]  # here\nred = 1\n[[colours]]\n',
    "unknown nested table": 'name = "n"\n[colours.red]  # here\nx = 1\n',
    "unknown dotted key": 'name = "n"\nqci.colour = 1  # here\n',
    "unknown key of qci": "[qci]\ndomains = [1]\nadaptors = [1]  # here\n",
    "unknown key of a card": CARD + "\ncolour = 1  # here\n" + CARD,
    "unknown key of the second card": CARD + CARD.replace("5", "6") + "colour = 1  # here\n",
    "unknown key of tapq": CARD + "\n[card.tapq]\napsc = 1\ncolour = 1  # here\n",
    "unknown key of inline tapq": CARD + "tapq = { apsc = 1, colour = 1 }  # here\n",
    "unknown key of master_keys": CARD + "[card.master_keys]\n\ndes = '0123'  # here\n",
    "unknown key of a queue": QCI + CARD + '[[queue]]\napqn = "05.0004"\ncolour = 1  # here\n',
    "unknown key of masks": '[masks]\napmask = "0x0"\nadmask = "0x0"  # here\n',
    "unknown key of a device": f'[[mdev]]\nuuid = "{U1}"\ncolour = 1  # here\n',
    "misspelt adapter of a card": '[[card]]\nadaptor = 5  # here\ntype = "CEX8C"\n',
    "misspelt type of a card": '[[card]]\nadapter = 5\ntipe = "CEX8C"  # here\n',
    "misspelt apqn of a queue": QCI + CARD + '[[queue]]\npresent = false\napqm = "05.0004"  # here\n',
    "misspelt uuid of a device": f'[[mdev]]\nuid = "{U1}"  # here\n',
    "unknown key, true": "\n\ncolour = true  # here\n",
    "unknown key, an array": "\n\ncolour = [1, 2]  # here\n",
    "unknown key, a time": "\n\ncolour = 1979-05-27  # here\n",
    # Tables that are none.
    "qci is no table": "\nqci = 5  # here\n",
    "qci is an array of tables": "\n[[qci]]  # here\ndomains = [1]\n",
    "masks is no table": '\nmasks = "0x0"  # here\n',
    "card is one table": "\n[card]  # here\nadapter = 5\n",
    "card is a number": "\ncard = 5  # here\n",
    "cards are numbers": "\ncard = [5]  # here\n",
    "queue is one table": QCI + CARD + "[queue]  # here\n",
    "mdev is one table": f'\n[mdev]  # here\nuuid = "{U1}"\n',
    "tapq is no table": CARD + "tapq = 5  # here\n",
    "master_keys is no table": CARD + 'master_keys = "x"  # here\n',
    # Values of the wrong sort.
    "name is a number": "\nname = 5  # here\n",
    "name is a truth value": "\n\nname = true  # here\n",
    "name is an array": "\n\nname = ['a']  # here\n",
    "description is a table": "\n[description]  # here\n",
    "driver is another": '\ndriver = "v5"  # here\n',
    "driver is a number": "\ndriver = 2  # here\n",
    "environment is another": '\nenvironment = "pr/sm"  # here\n',
    "environment is an array": "\nenvironment = []  # here\n",
    "secure_execution is a number": "\nsecure_execution = 1  # here\n",
    "secure_execution is a string": '\nsecure_execution = "true"  # here\n',
    "config_events in a KVM guest": '\nconfig_events = true  # here\nenvironment = "kvm"\n',
    "vfio_ap is a string": '\nvfio_ap = "no"  # here\n',
    "domain above 255": "[qci]\ndomains = [1, 256]  # here\n",
    "domain below 0": "[qci]\ndomains = -1  # here\n",
    "domain is a fraction": "[qci]\ndomains = [1.5]  # here\n",
    "domain is a truth value": "[qci]\ndomains = [true]  # here\n",
    "domains are a truth value": "\n[qci]\ndomains = true  # here\n",
    "domains are a table": "\n[qci]\ndomains = { a = 1 }  # here\n",
    "domain is a word": '[qci]\ndomains = "all"  # here\n',
    "range is reversed": '[qci]\ndomains = ["9-8"]  # here\n',
    "range is too long": '[qci]\ndomains = "0-256"  # here\n',
    "range has blanks": '[qci]\ndomains = "0 - 5"  # here\n',
    "range in octal": '[qci]\ndomains = "010-020"  # here\n',
    "control domain above 255": "[qci]\ncontrol_domains = [999]  # here\n",
    "max_adapter above 255": "[qci]\nmax_adapter = 256  # here\n",
    "max_domain is a string": '[qci]\nmax_domain = "84"  # here\n',
    "facility is unknown": '[qci]\nfacilities = ["APXA", "AP4"]  # here\n',
    "facilities are a string": '[qci]\nfacilities = "APXA"  # here\n',
    "facilities without QCI": '[qci]\nsupported = false\nfacilities = ["APXA"]  # here\n',
    "supported is a string": '[qci]\nsupported = "no"  # here\n',
    "domain above the maximum": "[qci]\nmax_domain = 84\ndomains = [85]  # here\n",
    "control domain above the maximum": "[qci]\nmax_domain = 84\ndomains = [84]\ncontrol_domains = [85]  # here\n",
    "domain above 15 without APXA": '[qci]\nfacilities = ["QACT"]\ndomains = [16]  # here\n',
    "domain above 15 without QCI": "[qci]\ndomains = [16]  # here\nsupported = false\n",
    "card without adapter": QCI + '[[card]]  # here\ntype = "CEX8C"\n',
    "card without type": CARD + "[[card]]  # here\nadapter = 6\n",
    "card of unknown type": '[[card]]\nadapter = 5\ntype = "CEX9C"  # here\n',
    "card of unknown mode": '[[card]]\nadapter = 5\ntype = "CEX8X"  # here\n',
    "card of no type": '[[card]]\nadapter = 5\ntype = ""  # here\n',
    "type is a number": "[[card]]\nadapter = 5\ntype = 8  # here\n",
    "adapter is a range": '[[card]]\nadapter = "5-6"  # here\ntype = "CEX8C"\n',
    "adapter above 255": '[[card]]\nadapter = 256  # here\ntype = "CEX8C"\n',
    "adapter above the maximum": '[qci]\nmax_adapter = 63\n[[card]]\nadapter = 64  # here\ntype = "CEX8C"\n',
    "adapters above the maximum": '[qci]\nmax_adapter = 63\n[[card]]\nadapters = "60-64"  # here\ntype = "CEX8C"\n',
    "adapter twice": CARD + CARD.replace("= 5\n", "= 5  # here\n"),
    "adapter twice, in a range": CARD + '[[card]]\nadapters = "0-9"  # here\ntype = "CEX8C"\n',
    "cards without one": '[[card]]\nadapters = []  # here\ntype = "CEX8C"\n',
    "adapter and adapters": '[[card]]\nadapter = 5  # here\nadapters = [5]\ntype = "CEX8C"\n',
    "serial is a number": CARD + "serial = 5  # here\n",
    "configured is a number": CARD + "configured = 1  # here\n",
    "checkstopped is a string": CARD + 'checkstopped = "no"  # here\n',
    "firmware has one part": CARD + 'firmware = "5"  # here\n',
    "firmware is a fraction": CARD + "firmware = 5.8  # here\n",
    "api_ordinal is a string": CARD + 'api_ordinal = "6"  # here\n',
    "op_mode is unknown": CARD + 'op_modes = ["FIPS1999"]  # here\n',
    "tapq field too big": CARD + "tapq = { apsc = 2 }  # here\n",
    "tapq field below 0": CARD + "[card.tapq]\nml = -1  # here\n",
    "tapq field above four bits": CARD + "[card.tapq]\n\nqd = 16  # here\n",
    "tapq field is a truth value": CARD + "[card.tapq]\n\napsc = true  # here\n",
    "master key too short": CARD + '[card.master_keys]\naes = "0123"  # here\n',
    "master key in capitals": CARD + f'[card.master_keys]\nasym = "{KEY32.upper()}"  # here\n',
    "queue without apqn": QCI + CARD + "[[queue]]  # here\ntapq = { apsc = 0 }\n",
    "queue without card": QCI + CARD + '[[queue]]\napqn = "06.0004"  # here\n',
    "queues without adapter": QCI + CARD + "[[queue]]\nadapters = []  # here\ndomains = [4]\n",
    "queues without domain": QCI + CARD + "[[queue]]\nadapters = [5]\ndomains = []  # here\n",
    "queue without domain": QCI + CARD + '[[queue]]\napqn = "05.0005"  # here\n',
    "apqn is short": QCI + CARD + '[[queue]]\napqn = "5.4"  # here\n',
    "apqn in capitals": QCI + CARD + '[[queue]]\napqn = "0A.0004"  # here\n',
    "apqn is a number": QCI + CARD + "[[queue]]\napqn = 5.4  # here\n",
    "tapq of a queue": QCI + CARD + '[[queue]]\napqn = "05.0004"\ntapq = { bs = 4 }  # here\n',
    "mask is nonsense": '[masks]\napmask = "five"  # here\n',
    "mask is a number": "[masks]\naqmask = 5  # here\n",
    "mask is too long": f'[masks]\naqmask = "0x{"0" * 65}"  # here\n',
    "mask has a bad range": '[masks]\naqmask = "-9-8"  # here\n',
    "device without uuid": "[[mdev]]  # here\nadapters = [1]\n",
    "uuid is short": f'[[mdev]]\nuuid = "{U1[:-1]}"  # here\n',
    "uuid is a number": "[[mdev]]\nuuid = 1  # here\n",
    "device's adapter above 255": f'[[mdev]]\nuuid = "{U1}"\nadapters = [256]  # here\n',
    "device's domains are a word": f'[[mdev]]\nuuid = "{U1}"\ndomains = "x"  # here\n',
    "device's control domain": f'[[mdev]]\nuuid = "{U1}"\ncontrol_domains = [-1]  # here\n',
    "guest is a number": f'[[mdev]]\nuuid = "{U1}"\nguest = 1  # here\n',
    # Settings of Linux.
    "adapters above the highest": "[qci]\nmax_adapter = 5\nadapters = 6  # here\n",
    "unknown key of the bus": "[bus]\nscans = 1  # here\n",
    "ap_domain above the highest": "[qci]\nmax_domain = 5\n[bus]\nap_domain = 6  # here\n",
    "config_time too short": "[bus]\nconfig_time = 4  # here\n",
    "poll_timeout too long": "[bus]\npoll_timeout = 120000000001  # here\n",
    "override and masks": QCI
    + CARD
    + '[[queue]]\napqn = "05.0004"\ndriver_override = "vfio_ap"  # here\n[masks]\naqmask = "-1"\n',
    "override without a name": QCI + CARD + '[[queue]]\napqn = "05.0004"\ndriver_override = ""  # here\n',
    "secret too high": QCI + CARD + '[[queue]]\napqn = "05.0004"\nsecret = 65536  # here\n',
    "many queues, no domains": QCI + CARD + "[[queue]]  # here\nadapters = [5]\n",
    "many queues, no card": QCI + CARD + "[[queue]]\nadapters = [6]  # here\ndomains = [4]\n",
    # Ways of writing.
    "inline tables": 'card = [\n  { adapter = 5, type = "CEX8C" },\n  { adapter = 6, type = "CEX9C" },  # here\n]\n',
    "an array of several lines": "[qci]\ndomains = [  # here\n  1,\n  256,\n]\n",
    "a text of several lines before": 'description = """\none\ntwo\n"""\ncolour = 1  # here\n',
    "a text of several lines": 'name = "n"\nserial = """  # here\n\nx\n"""\n',
    "a table among others": CARD + "[masks]\n[bus]\nconfig_time = 4  # here\n" + CARD.replace("5", "6"),
    "the last of tables that are apart": CARD + "[masks]\n" + CARD.replace("= 5\n", "= 5  # here\n"),
    "keys with blanks around dots": "qci . \"max_adapter\" = 3\nqci.'colour' = true  # here\n",
    "a table in an array of several lines": CARD + "[[queue]]\nadapters = 5\ndomains = [\n]\ntapq = []  # here\n",
    "brackets in texts": 'description = """[[{"""""\nname = "]}"\ncolour = 1  # here\n',
    "comments before": "# one\n# two\n\n# three\nname = 5  # here\n",
    "a quoted key": '"name" = 5  # here\n',
    "CRLF": "\r\nname = 'n'\r\ncolour = 1  # here\r\n",
    "other line separators in a string": 'description = "a\u2028b\u0085c"\ncolour = 1  # here\n',
    "other line separators in a comment": "# a\u2028b\u0085c\ncolour = 1  # here\n",
    # TOML itself.
    "no value": '\nname = "n"\nx =  # here\n',
    "no quotes": "\n\nname = n  # here\n",
    "a key twice": 'name = "a"\n\nname = "b"  # here\n',
    "a table twice": "[qci]\n[masks]\n[qci]  # here\n",
}


def line_of_mark(text: str) -> int:
    (number,) = (number for number, line in enumerate(text.split("\n"), 1) if line.rstrip("\r").endswith(MARK.strip()))
    return number


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_are_told_with_their_line(what: str) -> None:
    text = MISTAKES[what]
    with pytest.raises(ScenarioError) as caught:
        loads(text, "some.toml")
    error = caught.value
    assert error.reason
    assert error.source == "some.toml"
    assert (error.line, str(error)) == (line_of_mark(text), f"some.toml:{line_of_mark(text)}: {error.reason}")


@pytest.mark.parametrize(
    ("text", "line"),
    [("name = ", 1), ('name = "n"\n[qci', 2), ('a = """\n\n', 3), ("a = [1,\n2,\n", 3), ("=", 1), ("\n\n\x00", 3)],
)
def test_texts_that_end_or_break_in_the_middle(text: str, line: int) -> None:
    with pytest.raises(ScenarioError) as caught:
        loads(text)
    assert caught.value.line == line


def test_unknown_keys_are_answered_with_the_known_ones() -> None:
    known = "adapters, config_events, control_domains, domains, guest, secure_execution, uuid"
    with pytest.raises(ScenarioError, match=f"colour.*{known}"):
        loads(f'[[mdev]]\nuuid = "{U1}"\ncolour = 1\n')


# Devices that the rules of the driver do not allow: known only when the machine boots.
FIRST = f'[[mdev]]\nuuid = "{U1}"\nadapters = [5]\ndomains = [4]\n'
IMPOSSIBLE: dict[str, tuple[str, str]] = {
    "reserved": (f'{QCI}{CARD}\n[[mdev]]  # here\nuuid = "{U1}"\nadapters = [5]\ndomains = [4]\n', "EADDRNOTAVAIL"),
    "shared": (
        '[masks]\napmask = "0x0"\n' + FIRST + FIRST.replace("]]", "]]  # here").replace(U1, U2),
        "EADDRINUSE",
    ),
    "twice": (f'[[mdev]]\nuuid = "{U1}"\n\n[[mdev]]  # here\nuuid = "{U1.upper()}"\n', "EEXIST"),
    "above the limit": (f'[qci]\nmax_adapter = 63\n[[mdev]]  # here\nuuid = "{U1}"\nadapters = [64]\n', "ENODEV"),
    "no period in an old kernel": ('kernel = "5.14"\n[bus]\nconfig_time = 7\npoll_timeout = 0  # here\n', "EINVAL"),
    "without the module": (f'vfio_ap = false\n[[mdev]]  # here\nuuid = "{U1}"\n', "ENODEV"),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_impossible_devices(what: str) -> None:
    text, expected = IMPOSSIBLE[what]
    scenario = loads(text, "some.toml")
    with pytest.raises(ScenarioError, match=expected) as caught:
        Host(scenario)
    assert (caught.value.source, caught.value.line) == ("some.toml", line_of_mark(text))


def test_impossible_devices_of_a_scenario_without_a_text() -> None:
    scenario = Scenario(mdevs=(MdevSpec(U1, NONE, NONE, NONE, guest=False),) * 2)
    with pytest.raises(ScenarioError, match="EEXIST") as caught:
        Host(scenario)
    assert (caught.value.source, caught.value.line) == ("scenario", 0)


# -- files ------------------------------------------------------------------------------------------------------------


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.write_text('name = "mine"\n', encoding="utf-8")
    assert load(str(path)).name == "mine"
    path.write_bytes(b'description = """\r\n"""\r\n[bus]\r\nx = 1')
    with pytest.raises(ScenarioError, match="mine:4: unknown key 'x'"):
        load(str(path))
    path.write_bytes(b'name = "a"\rx = 1')
    with pytest.raises(ScenarioError, match="mine:1: "):
        load(str(path))
    path.write_bytes(b'name = "\xff"\n')
    with pytest.raises(ScenarioError, match="UTF-8"):
        load(str(path))
    path.write_text('name = "mark"\n', encoding="utf-8-sig")  # as editors of Windows do
    assert load(str(path)).name == "mark"
    path.write_text("name = 5\n", encoding="utf-8")
    with pytest.raises(ScenarioError, match=r"mine:1: name: "):
        load(str(path))


@pytest.mark.parametrize("name", ["./no-such-file", "no-such-file.toml", "/", "/no/such/file"])
def test_files_that_cannot_be_read(name: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        load(name)
    assert (caught.value.source, caught.value.line) == (name, 0)
    assert str(caught.value) == f"{name}: {caught.value.reason}"


@pytest.mark.parametrize("name", ["no-such-scenario", "", "Default", "default "])
def test_scenarios_that_are_not_in_the_gallery(name: str) -> None:
    with pytest.raises(ScenarioError, match="default"):
        load(name)


def test_files_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.toml").write_text('name = "mine"')
    monkeypatch.chdir(tmp_path)
    assert load("mine.toml").name == "mine"
    with pytest.raises(ScenarioError, match="no scenario of that name"):
        load("mine")
    with pytest.raises(ScenarioError, match="No such file"):
        load("other.toml")


@pytest.mark.parametrize("too_high", ["", "adapter", "ap_domain", "domains"])
def test_the_highest_numbers_of_a_machine_can_be_used(too_high: str) -> None:
    numbers = {name: 10 if name == too_high else 9 for name in ("domains", "adapter", "ap_domain")}
    text = """
        qci = {{ max_adapter = 9, max_domain = 9, domains = [{domains}] }}
        card = [{{ adapter = {adapter}, type = "CEX8C" }}]
        bus = {{ ap_domain = {ap_domain} }}
    """.format_map(numbers)
    if too_high:
        with pytest.raises(ScenarioError, match=f"{too_high}: 10 is above the machine's highest"):
            loads(text)
    else:
        assert list(loads(text).cards) == [9]
