"""Checks of the features of the AP bus, its cards and queues."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apfs.ap.names import Apqn
from tests.ap.machines import ALL_ONES, BUS, CARD0, DEVICES, Q0, Q4, all_but
from tests.ap.machines import toml as machine
from tests.hosts import AP_DRIVER, ZCRYPT_DRIVER, Bench
from tests.kernels.rows import boot, row

if TYPE_CHECKING:
    from apfs.kernel.profile import Profile

CCA, EP11 = {0: "CEX7C"}, {4: "CEX7P"}
BOTH = machine(CCA | EP11, [0x29, 0x2A], top="vfio_ap = false")
PARAMETERS = "/sys/module/ap/parameters"
SECURE = machine(
    {0: "CEX7P", 1: "CEX7C"},
    [0x29],
    top='secure_execution = true\nenvironment = "kvm"',
    qci='facilities = ["APSC", "APXA", "QACT", "RC8A", "APSB"]',
    card="tapq = { bs = 2 }",
)
SE_EP11, SE_CCA = f"{DEVICES}/card00/00.0029", f"{DEVICES}/card01/01.0029"
HUGE = 2**64 + 5


def has(bench: Bench, directory: str, name: str) -> bool:
    return name in bench.names(directory)


# -- attributes of the bus and parameters -----------------------------------------------------------------------------


@row
def useirq_parameter(kernel: Profile) -> None:
    assert has(boot(kernel, BOTH), PARAMETERS, "useirq") == kernel.useirq_parameter


@row
def hwrng_seed_parameter(kernel: Profile) -> None:
    bench = boot(kernel, BOTH)
    module = "/sys/module/zcrypt"
    seen = has(bench, module, "parameters") and has(bench, f"{module}/parameters", "hwrng_seed")
    assert seen == kernel.hwrng_seed_parameter
    if seen:
        assert bench.cat(f"{module}/parameters/hwrng_seed") == "1\n"
        assert bench.stat(f"{module}/parameters/hwrng_seed").mode & 0o777 == 0o440


@row
def ap_pool_parameter(kernel: Profile) -> None:
    assert has(boot(kernel, BOTH), PARAMETERS, "msgpool_min_items") == kernel.ap_pool_parameter


@row
def zcrypt_pool_parameter(kernel: Profile) -> None:
    bench, zcrypt = boot(kernel, BOTH), "/sys/module/zcrypt"
    found = bench.names(f"{zcrypt}/parameters") if has(bench, zcrypt, "parameters") else set()
    assert ("mempool_threshold" in found) == kernel.zcrypt_pool_parameter


@row
def misc_minors(kernel: Profile) -> None:
    bench = boot(kernel, BOTH)
    major, _, minor = bench.cat("/sys/class/misc/z90crypt/dev").strip().partition(":")
    assert major == "10"
    assert (int(minor) > 255) == (kernel.misc_minors == "high")
    assert bench.exists(f"/sys/dev/char/10:{minor}")


@row
def parameters_readable(kernel: Profile) -> None:
    bench = boot(kernel, BOTH)
    modes = {name: bench.stat(f"{PARAMETERS}/{name}").mode & 0o777 for name in bench.ls(PARAMETERS)}
    pool = modes.pop("msgpool_min_items", None)
    if pool is not None and kernel.zcrypt_pool_parameter:
        assert bench.stat("/sys/module/zcrypt/parameters/mempool_threshold").mode & 0o777 == pool
    assert set(modes.values()) == {0o444 if kernel.parameters_readable else 0o440}
    assert pool in (None, 0o400 if kernel.parameters_readable else 0o440)


@row
def scans_writable(kernel: Profile) -> None:
    bench = boot(kernel, BOTH)
    before = int(bench.cat(f"{BUS}/scans"))
    assert bench.store(f"{BUS}/scans", "1") == ("" if kernel.scans_writable else "EACCES")
    assert int(bench.cat(f"{BUS}/scans")) == before + kernel.scans_writable


@row
def bus_features(kernel: Profile) -> None:
    assert has(boot(kernel, BOTH), BUS, "features") == kernel.bus_features


@row
def qci_by_flags(kernel: Profile) -> None:
    masks = ("ap_adapter_mask", "ap_usage_domain_mask", "ap_control_domain_mask")
    for qci, heeded in (("supported = false", False), ("facilities = []", not kernel.qci_by_flags)):
        bench = boot(kernel, machine({0: "CEX7C"}, [0, 15], qci=qci))
        shown = {bench.cat(f"{BUS}/{name}") for name in masks}
        assert ("not supported\n" in shown) == (not heeded)
        assert bench.status()["adapters"] == ([0] if heeded else None)
        if kernel.bus_features:
            assert bench.cat(f"{BUS}/features") == ("" if heeded else "-\n")
        bench.host.plug(1, "CEX7C")
        bench.host.scan()
        assert has(bench, DEVICES, "card01")
        if heeded:
            assert bench.cat(f"{BUS}/ap_adapter_mask") == "0xc" + 63 * "0" + "\n"


@row
def bindings_complete_count(kernel: Profile) -> None:
    assert has(boot(kernel, BOTH), BUS, "bindings_complete_count") == kernel.bindings_complete_count


@row
def bindings_event(kernel: Profile) -> None:
    """What is heard of complete bindings: in two scans, when two queues move, and when a driver is loaded."""
    bench = boot(kernel, BOTH)
    value = kernel.bindings_event
    bench.host.scan()
    bench.host.scan()
    assert completions(bench) == {"probe": 0, "scan": 2, "armed": 0, "armed_register": 0}[value]
    bench.echo("-4", f"{BUS}/apmask")  # nobody has the two queues now
    bench.echo("+4", f"{BUS}/apmask")
    bench.echo("04.0029", f"{ZCRYPT_DRIVER}/bind")
    bench.mark()
    bench.echo("04.002a", f"{ZCRYPT_DRIVER}/bind")  # the last one, told before its own event
    assert [event.action for event in bench.heard()] == (["change", "bind"] if value == "probe" else ["bind"])
    bench.host.scan()
    assert completions(bench) == (0 if value == "probe" else 1)
    bench.echo("-4", f"{BUS}/apmask")
    bench.mark()
    bench.host.modprobe("vfio_ap")  # which takes them
    assert completions(bench) == (1 if value in ("probe", "armed_register") else 0)


def told(event: object) -> bool:
    return ("BINDINGS", "complete") in event.keys  # type: ignore[attr-defined]


def completions(bench: Bench) -> int:
    return sum(map(told, bench.heard()))


@row
def mask_uevents(kernel: Profile) -> None:
    bench = boot(kernel, BOTH)
    bench.echo("-5", f"{BUS}/apmask")
    bench.echo("-5", f"{BUS}/aqmask")
    text = all_but(5)
    expected = [("APMASK", text), ("AQMASK", text)] if kernel.mask_uevents else []
    assert [event.keys[0] for event in bench.heard()] == expected


@row
def mask_number_long(kernel: Profile) -> None:
    bench = boot(kernel, BOTH)
    assert bench.store(f"{BUS}/apmask", f"-{2**32 + 5}") == ("EINVAL" if kernel.mask_number_long else "")
    assert bench.cat(f"{BUS}/apmask") == (f"{ALL_ONES}\n" if kernel.mask_number_long else all_but(5))
    assert bench.store(f"{BUS}/apmask", "-0xffffffff") == "EINVAL"


@row
def numbers_saturate(kernel: Profile) -> None:
    bench = boot(kernel, BOTH)
    refusal = "EINVAL" if kernel.numbers_saturate else ""
    assert bench.store(f"{BUS}/config_time", str(2**64 + 30)) == refusal
    assert bench.store(f"{BUS}/ap_domain", str(HUGE)) == refusal
    assert bench.store(f"{CARD0}/config", str(2**64 + 1)) == refusal
    assert bench.store(f"{CARD0}/online", str(2**64)) == refusal
    assert bench.store(f"{Q0}/online", str(2**64)) == refusal
    assert bench.store(f"{BUS}/apmask", f"-{HUGE}") == refusal
    bench.echo("node", "/sys/class/zcrypt/create")
    assert bench.store("/sys/devices/virtual/zcrypt/node/apmask", f"+{HUGE}") == refusal


@row
def poll_kstrto(kernel: Profile) -> None:
    bench = boot(kernel, BOTH)
    new = kernel.poll_kstrto
    answers = {text: bench.store(f"{BUS}/poll_thread", text) for text in ("1", "y", "2", "1x", "x")}
    assert answers == {
        "1": "",
        "y": "" if new else "EINVAL",
        "2": "EINVAL" if new else "",
        "1x": "",  # either looks at the beginning only
        "x": "EINVAL",
    }
    texts = ("0", "0x10", "17 junk", "-1", "120000000000", "120000000001")
    answers = {text: bench.store(f"{BUS}/poll_timeout", text) for text in texts}
    assert answers == {
        "0": "" if new else "EINVAL",
        "0x10": "" if new else "EINVAL",  # of which 0 is read
        "17 junk": "EINVAL" if new else "",
        "-1": "EINVAL",
        "120000000000": "",
        "120000000001": "EINVAL",
    }


def truths(kernel: Profile, letters: str) -> set[str]:
    """Return which of these letters are taken for a truth value, where one is asked for."""
    if kernel.poll_kstrto:
        bench, path = boot(kernel, BOTH), f"{BUS}/poll_thread"
    elif kernel.se_attributes:
        bench, path = boot(kernel, SECURE), f"{SE_EP11}/se_bind"
    else:
        return set()
    answers = {letter: bench.store(path, letter) for letter in letters}
    assert set(answers.values()) <= {"", "EINVAL"}
    return {letter for letter, answer in answers.items() if not answer}


@row
def kstrtobool_tf(kernel: Profile) -> None:
    asked = kernel.poll_kstrto or kernel.se_attributes
    assert truths(kernel, "fFtT") == (set("fFtT") if kernel.kstrtobool_tf and asked else set())


@row
def kstrtobool_ed(kernel: Profile) -> None:
    asked = kernel.poll_kstrto or kernel.se_attributes
    assert truths(kernel, "dDeE") == (set("dDeE") if kernel.kstrtobool_ed and asked else set())


@row
def node_admask(kernel: Profile) -> None:
    bench = boot(kernel, BOTH)
    bench.echo("node", "/sys/class/zcrypt/create")
    assert has(bench, "/sys/devices/virtual/zcrypt/node", "admask") == kernel.node_admask


# -- cards ------------------------------------------------------------------------------------------------------------


@row
def cex8(kernel: Profile) -> None:
    newest = boot(kernel, machine({0: "CEX8C"}, [0x29]))
    seen = [newest.cat(f"{CARD0}/{name}") for name in ("hwtype", "raw_hwtype", "type", "modalias")]
    known, unknown = ["14\n", "14\n", "CEX8C\n", "ap:t0E\n"], ["13\n", "14\n", "CEX7C\n", "ap:t0D\n"]
    assert seen == (known if kernel.cex8 else unknown)
    without_qact = boot(kernel, machine({0: "CEX8C"}, [0x29], qci='facilities = ["APSC", "APXA"]'))
    assert has(without_qact, DEVICES, "card00") == kernel.cex8


@row
def chkstop(kernel: Profile) -> None:
    bench = boot(kernel, BOTH)
    assert has(bench, CARD0, "chkstop") == has(bench, Q0, "chkstop") == kernel.chkstop
    bench.host.checkstop(0, on=True)
    bench.host.scan()
    status = bench.status()["cards"]["00"]
    assert (status["chkstop"], bool(status["checkstopped"])) == (kernel.chkstop, kernel.chkstop)


@row
def online_checkstop(kernel: Profile) -> None:
    bench = boot(kernel, BOTH)
    bench.host.checkstop(0, on=True)
    bench.host.scan()
    refuses = kernel.online_checkstop and kernel.chkstop
    assert bench.cat(f"{Q0}/online") == f"{int(not refuses)}\n"
    for path in (CARD0, Q0):
        assert bench.cat(f"{path}/online") == f"{int(not refuses)}\n"
        assert bench.store(f"{path}/online", "0") == ""
        assert bench.store(f"{CARD0}/online", "1") == ("ENODEV" if refuses else "")
        assert bench.store(f"{path}/online", "1") == ("ENODEV" if refuses else "")
    assert bench.cat(f"{CARD0}/serialnr") == "\n" or not kernel.chkstop  # there is nobody to ask
    bench.host.checkstop(0, on=False)
    bench.host.configure(0, on=False)
    bench.host.scan()
    assert bench.cat(f"{CARD0}/online") == "0\n"
    assert bench.store(f"{CARD0}/online", "1") == "ENODEV"


@row
def depth_plus_one(kernel: Profile) -> None:
    assert boot(kernel, BOTH).cat(f"{CARD0}/depth") == ("8\n" if kernel.depth_plus_one else "7\n")


WORD = machine(CCA, [0x29], card="tapq = { slcf = 1, class = 0x80, bs = 1 }")


@row
def card_functions(kernel: Profile) -> None:
    shown = boot(kernel, WORD).cat(f"{CARD0}/ap_functions")
    assert shown == {"raw": "0x93804000\n", "noslcf": "0x92800000\n", "slcf": "0x93800000\n"}[kernel.card_functions]


@row
def card_change_16bit(kernel: Profile) -> None:
    bench = boot(kernel, WORD)
    for fields in ({"bs": 2}, {"slcf": 0}, {"apsc": 0}):
        bench.mark()
        bench.host.set_tapq(0, fields)
        bench.host.scan()
        rebuilt = any(event.action == "remove" and event.devpath == "/devices/ap/card00" for event in bench.heard())
        if fields == {"bs": 2}:
            # A word of which these bits are not kept never changes in them.
            expected = not kernel.card_change_16bit and kernel.card_functions == "raw"
        else:
            expected = fields == {"apsc": 0} or kernel.card_functions != "noslcf"
        assert rebuilt == expected, fields


@row
def serialnr_any_domain(kernel: Profile) -> None:
    bench = boot(kernel, BOTH)
    bench.echo("0x2a", f"{BUS}/ap_domain")
    serial = bench.cat(f"{CARD0}/serialnr")
    assert len(serial) == 9
    bench.echo("0x29", f"{BUS}/ap_domain")
    bench.echo("0", f"{Q0}/online")
    assert bench.cat(f"{CARD0}/serialnr") == (serial if kernel.serialnr_any_domain else "\n")
    bench.echo("0x2a", f"{BUS}/ap_domain")
    assert bench.cat(f"{CARD0}/serialnr") == serial
    bench.echo("0x2b", f"{BUS}/ap_domain")  # which no queue is in
    assert bench.cat(f"{CARD0}/serialnr") == (serial if kernel.serialnr_any_domain else "\n")
    assert bench.cat(f"{DEVICES}/card04/serialnr") != "\n"


@row
def info_cache(kernel: Profile) -> None:
    bench = boot(kernel, BOTH)
    bench.echo("0x29", f"{BUS}/ap_domain")
    paths = (f"{CARD0}/serialnr", f"{Q0}/mkvps", *(f"{DEVICES}/card04/{name}" for name in ("serialnr", "FW_version")))
    unasked = f"{CARD0}/00.002a/mkvps"
    before = [bench.cat(path) for path in paths]
    for card in (0, 4):
        bench.echo("0", f"{DEVICES}/card{card:02}/online")
    after = [bench.cat(path) for path in paths]
    assert [text for text in after if "valid 0x" in text or text.strip().isalnum()] == (
        [text for text in before if "valid 0x" in text or text.strip().isalnum()] if kernel.info_cache else []
    )
    assert (after == before) == kernel.info_cache
    assert "valid 0x" not in bench.cat(unasked)  # which was never asked while it could answer
    assert bench.cat(f"{Q4}/mkvps") == "WK CUR: - -\nWK NEW: - -\n"


@row
def op_modes_full(kernel: Profile) -> None:
    modes = "FIPS2009 BSI2009 FIPS2011 BSI2011 SIGG-IMPORT SIGG BSICC2017 FIPS2021 FIPS2024"
    bench = boot(kernel, machine(EP11, [0x29], card=f"op_modes = {modes.split()}"))
    shown = modes if kernel.op_modes_full else "FIPS2009 BSI2009 FIPS2011 BSI2011 BSICC2017"
    assert bench.cat(f"{DEVICES}/card04/op_modes") == bench.cat(f"{Q4}/op_modes") == f"{shown}\n"


# -- queues -----------------------------------------------------------------------------------------------------------


@row
def mkvps_asym(kernel: Profile) -> None:
    lines = boot(kernel, BOTH).cat(f"{Q0}/mkvps").splitlines()
    names = ["AES", "APKA", "ASYM"] if kernel.mkvps_asym else ["AES", "APKA"]
    assert [line.split(" ")[0] for line in lines] == [name for name in names for _ in range(3)]


@row
def queue_ap_functions(kernel: Profile) -> None:
    assert has(boot(kernel, BOTH), Q0, "ap_functions") == kernel.queue_ap_functions


@row
def driver_override(kernel: Profile) -> None:
    assert has(boot(kernel, BOTH), Q0, "driver_override") == kernel.driver_override


@row
def interrupt_live(kernel: Profile) -> None:
    bench = boot(kernel, BOTH)
    assert bench.cat(f"{Q0}/interrupt") == "Interrupts enabled.\n"
    bench.echo("00.0029", f"{ZCRYPT_DRIVER}/unbind")
    off = "disabled" if kernel.interrupt_live else "enabled"
    assert bench.cat(f"{Q0}/interrupt") == f"Interrupts {off}.\n"
    bench.echo("00.0029", f"{ZCRYPT_DRIVER}/bind")
    assert bench.cat(f"{Q0}/interrupt") == "Interrupts enabled.\n"


@row
def operating_at_creation(kernel: Profile) -> None:
    bench = boot(kernel, BOTH, vfio_ap=True)
    bench.echo("-1", f"{BUS}/apmask")
    bench.host.plug(1, "CEX7C")
    bench.host.scan()
    queue = f"{DEVICES}/card01/01.0029"
    assert bench.driver(queue) == "vfio_ap"
    assert bench.cat(f"{queue}/request_count") == ("0\n" if kernel.operating_at_creation else "-\n")
    bench.echo("+1", f"{BUS}/apmask")
    assert bench.cat(f"{queue}/request_count") == "0\n"


@row
def se_attributes(kernel: Profile) -> None:
    bench = boot(kernel, SECURE)
    for name in ("se_bind", "se_associate"):
        assert has(bench, SE_EP11, name) == kernel.se_attributes


@row
def se_cca_excluded(kernel: Profile) -> None:
    bench = boot(kernel, SECURE)
    for name in ("se_bind", "se_associate"):
        assert has(bench, SE_CCA, name) == (kernel.se_attributes and not kernel.se_cca_excluded)
        if has(bench, SE_CCA, name):
            assert bench.cat(f"{SE_CCA}/{name}") == "-\n"
            assert bench.store(f"{SE_CCA}/{name}", "1") == "EINVAL"
    assert ("valid 0x" in bench.cat(f"{SE_CCA}/mkvps")) == (not kernel.se_cca_excluded)


@row
def se_bind_state_checked(kernel: Profile) -> None:
    bench = boot(kernel, SECURE)
    if not kernel.se_attributes:
        return
    checked = kernel.se_bind_state_checked
    assert bench.store(f"{SE_EP11}/se_associate", "7") == ("EINVAL" if checked else "EIO")
    assert bench.store(f"{SE_EP11}/se_bind", "1") == ""
    assert bench.store(f"{SE_EP11}/se_bind", "1") == ("EINVAL" if checked else "EIO")
    assert bench.store(f"{SE_EP11}/se_associate", "7") == ""
    assert bench.cat(f"{SE_EP11}/se_associate") == "associated 7\n"
    assert bench.store(f"{SE_EP11}/se_associate", "8") == "EINVAL"
    bench.host.configure(0, on=False)
    assert bench.store(f"{SE_EP11}/se_bind", "1") == "EIO"
    bench = associated(kernel)
    bench.host.set_tapq(0, {"bs": 2})  # as hardware would do by itself
    bench.echo("1", f"{SE_EP11}/se_bind")
    assert bench.cat(f"{SE_EP11}/se_associate") == ("unassociated\n" if checked else "association pending\n")
    bench.echo("00.0029", f"{ZCRYPT_DRIVER}/unbind")
    bench.echo("0", f"{SE_EP11}/se_bind")
    assert bench.cat(f"{SE_EP11}/request_count") == ("0\n" if checked else "-\n")


def associated(kernel: Profile) -> Bench:
    bench = boot(kernel, SECURE)
    bench.echo("1", f"{SE_EP11}/se_bind")
    bench.echo("7", f"{SE_EP11}/se_associate")
    return bench


@row
def resume_initialises(kernel: Profile) -> None:
    for how in ("configure", "checkstop"):
        bench = associated(kernel) if kernel.se_attributes else boot(kernel, SECURE)
        for usable in (False, True):
            getattr(bench.host, how)(0, on=usable == (how == "configure"))
            bench.host.scan()
        waits = not kernel.resume_initialises and (kernel.chkstop or how == "configure")
        assert bench.cat(f"{SE_EP11}/reset") == ("Reset in progress.\n" if waits else "No Reset Timer set.\n")
        if kernel.se_attributes:
            forgotten = kernel.resume_initialises and (kernel.chkstop or how == "configure")
            shown = bench.shown(f"{SE_EP11}/se_associate")
            assert shown == ("EIO" if forgotten else "associated 7\n")
        bench.echo("1", f"{SE_EP11}/reset")  # arms the timer of the poll
        assert bench.cat(f"{SE_EP11}/reset") == "No Reset Timer set.\n"


@row
def se_usable(kernel: Profile) -> None:
    bench = boot(kernel, SECURE)

    def answers() -> bool:
        return "valid 0x" in bench.cat(f"{SE_EP11}/mkvps")

    value = kernel.se_usable
    assert answers() == (value == "any")
    bench.host.set_tapq(0, {"bs": 0})
    bench.host.scan()
    assert answers() == (value in ("any", "bound"))
    bench.host.set_tapq(0, {"bs": 2})
    if kernel.se_attributes:
        bench.echo("1", f"{SE_EP11}/se_bind")
        assert answers()
        bench.echo("1", f"{SE_EP11}/reset")
        assert answers() == (value != "bound_here")


@row
def se_uevents(kernel: Profile) -> None:
    bench = boot(kernel, SECURE)
    if not kernel.se_attributes:
        return
    bench.echo("1", f"{SE_EP11}/se_bind")
    bench.echo("7", f"{SE_EP11}/se_associate")
    expected = [("SE_BIND", "1"), ("SE_ASSOC", "7")] if kernel.se_uevents else []
    assert [event.keys[0] for event in bench.heard()] == expected


# -- masks and mediated devices ---------------------------------------------------------------------------------------

UUID = "11111111-aaaa-4aaa-8aaa-111111111111"
RELEASED = machine({5: "CEX7C", 6: "CEX7C"}, [4, 0x47]) + '[masks]\napmask = "-5-6"\n'


@row
def mask_veto(kernel: Profile) -> None:
    bench = boot(kernel, RELEASED)
    bench.create(UUID)
    bench.assign(UUID, (5,), (4,))
    assert bench.store(f"{BUS}/apmask", "+5") == ("EBUSY" if kernel.mask_veto else "")
    assert bench.driver(f"{DEVICES}/card05/05.0004") == ("vfio_ap" if kernel.mask_veto else "cex4queue")
    assert bench.store(f"{BUS}/apmask", "+6") == ""


@row
def veto_all(kernel: Profile) -> None:
    bench = boot(kernel, RELEASED)
    bench.create(UUID)
    bench.assign(UUID, (5,), (4,))
    bench.echo("-4", f"{BUS}/aqmask")  # so that the masks do not reserve 05.0004 even with adapter 5 in apmask
    refused = kernel.mask_veto and kernel.veto_all
    assert bench.store(f"{BUS}/apmask", "+5") == ("EBUSY" if refused else "")
    assert bench.driver(f"{DEVICES}/card05/05.0004") == "vfio_ap"
    assert Apqn(5, 4) not in [Apqn.parse(name) for name in bench.ls(ZCRYPT_DRIVER)]
    assert "05.0004" in bench.ls(AP_DRIVER)
