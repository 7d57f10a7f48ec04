"""The hosts that are fuzzed: all revisions of the migration series, old kernels, z/VM, Secure Execution."""

from tests.hosts import M1, M2

HARDWARE = """
[qci]
domains = [4, 9, 0x47]
facilities = ["APSC", "APXA", "QACT", "RC8A", "APSB"]
[[card]]
adapter = 5
type = "CEX8C"
[[card]]
adapter = 6
type = "CEX7P"
[[card]]
adapter = 1
type = "CEX8A"
tapq = { bs = 2 }
"""
IN_USE = f"""{HARDWARE}
[masks]
apmask = "-5-6"
[[mdev]]
uuid = "{M1}"
adapters = [5]
domains = [4, 9]
guest = true
[[mdev]]
uuid = "{M2}"
adapters = [6]
domains = [0x47]
"""
HOSTS = (
    HARDWARE,
    IN_USE,
    *(f'driver = "{revision}"\n{IN_USE}' for revision in ("none", "v4", "next")),
    *(f'kernel = "{release}"\n{IN_USE}' for release in ("6.1", "6.8", "6.12")),
    f'kernel = "5.14"\n{HARDWARE}',
    f"secure_execution = true\n{IN_USE}",
    f"config_events = true\n{IN_USE}",
    *(f'environment = "{environment}"\n{HARDWARE}' for environment in ("zvm", "kvm")),
)
