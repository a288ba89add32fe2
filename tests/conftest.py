"""Settings of all tests."""

from hypothesis import HealthCheck, settings

# A busy machine makes an example slow; that says nothing about the code.
settings.register_profile("tests", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")
