"""What holds for all tests: none of them asserts times, those that draw their cases neither."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("keyhaul", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("keyhaul")
