"""Reading: where the text ends at the end of the page, and what happens when it is read in pieces."""

import pytest

from apfs.sysfs.entries import READ
from tests.hosts import BARE, M1, MATRIX, Bench, config_text, product

BIG = """
[qci]
domains = "0-19"
[[card]]
adapters = "0-29"
type = "CEX8C"
[masks]
apmask = "0x0"
"""


def expected(adapters: int, domains: int) -> str:
    return "".join(f"{line}\n" for line in product(range(adapters), range(domains)))[:4095]


@pytest.mark.parametrize("name", ["matrix", "guest_matrix"])
def test_thirty_adapters_and_twenty_domains(name: str) -> None:
    bench = Bench(BIG)
    bench.create(M1)
    bench.write(f"{MATRIX}/{M1}/ap_config", config_text(range(30), range(20)))
    text = bench.show(M1, name)
    assert len(text) == 4095
    assert text.endswith("\n19.000b")
    assert text == expected(30, 20)
    assert text.count("\n") == 511


@pytest.mark.parametrize(
    ("adapters", "domains", "length"),
    [
        (7, 73, 511 * 8),  # the last that fits: 4088 bytes
        (73, 7, 511 * 8),
        (2, 256, 4095),
        (256, 2, 4095),
        (1, 256, 2048),
        (256, 256, 4095),
        (513, 1, 0),
    ],
)
def test_other_sizes(adapters: int, domains: int, length: int) -> None:
    bench = Bench(BARE)
    bench.create(M1)
    if adapters > 256:
        adapters, length = 256, 256 * 8
    bench.write(f"{MATRIX}/{M1}/ap_config", config_text(range(adapters), range(domains)))
    text = bench.show(M1, "matrix")
    assert len(text) == length
    assert text == expected(adapters, domains)


def test_one_side_alone_always_fits() -> None:
    bench = Bench(BARE)
    bench.create(M1)
    everything = range(256)
    bench.write(f"{MATRIX}/{M1}/ap_config", config_text(everything, (), everything))
    assert bench.show(M1, "matrix") == "".join(f"{adapter:02x}.\n" for adapter in everything)
    assert bench.show(M1, "control_domains") == "".join(f"{domain:04x}\n" for domain in everything)
    bench.write(f"{MATRIX}/{M1}/ap_config", config_text((), everything))
    assert bench.show(M1, "matrix") == "".join(f".{domain:04x}\n" for domain in everything)


@pytest.mark.parametrize("size", [1, 7, 8, 100, 4094, 4095, 4096, 131072])
def test_reading_in_pieces(size: int) -> None:
    bench = Bench(BARE)
    bench.create(M1)
    bench.write(f"{MATRIX}/{M1}/ap_config", config_text(range(30), range(20)))
    assert bench.read(f"{MATRIX}/{M1}/matrix", size).decode() == expected(30, 20)
    assert bench.read(f"{MATRIX}/{M1}/ap_config", size).decode() == config_text(range(30), range(20))


def test_a_pass_is_stable_and_a_rewind_starts_afresh() -> None:
    bench = Bench(BARE)
    bench.create(M1)
    bench.assign(M1, (5,), (4, 9))
    tree = bench.host.tree
    file = tree.open(tree.resolve(f"{MATRIX}/{M1}/matrix"), READ)
    assert file.read(0, 8) == b"05.0004\n"
    bench.put(M1, "unassign_domain", 9)
    assert file.read(8, 8) == b"05.0009\n"
    assert file.read(16, 8) == b""
    assert file.read(0, 100) == b"05.0004\n"
    file.close()


def test_every_attribute_has_the_size_of_a_page() -> None:
    bench = Bench(BARE)
    bench.create(M1)
    bench.assign(M1, (5,), (4,))
    for name in bench.ls(f"{MATRIX}/{M1}"):
        found = bench.stat(f"{MATRIX}/{M1}/{name}")
        if found.mode & 0o170000 == 0o100000:
            assert found.size == 4096, name
