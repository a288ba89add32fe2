"""Settings of all tests."""

from contextlib import suppress

with suppress(ModuleNotFoundError):  # as in the machine of tests/nested, whose tests need no hypothesis
    from hypothesis import HealthCheck, settings

    # A busy machine makes an example slow; that says nothing about the code.
    settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("tests")
