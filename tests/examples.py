"""How many examples Hypothesis tries. CONTRIBUTING says how to choose a profile."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Nothing here depends on how fast the machine is.
_ALWAYS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("full", _ALWAYS, max_examples=100)
settings.register_profile("quick", _ALWAYS, max_examples=10)
VARIABLE, DEFAULT = "APFS_EXAMPLES", "quick"
"""The environment variable that names a profile, and the one to take without."""


def times(factor: float) -> settings:
    """Return settings with so many times the examples of the profile in use."""
    return settings(max_examples=max(1, round(factor * settings().max_examples)))
