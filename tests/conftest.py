"""What holds for all tests: none of them asserts times, those that draw their cases neither."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("keyhaul", deadline=None)
settings.load_profile("keyhaul")
