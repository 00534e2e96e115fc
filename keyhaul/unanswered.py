"""What an HTTP client makes of a call that was not answered, or not yet: why, and when to try again."""

from __future__ import annotations

import math
import ssl
import time
from email.utils import parsedate_to_datetime

import aiohttp


def words(error: Exception) -> str:
    """What happened to a connection, without the library's inside."""
    problem: BaseException = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        problem = error.certificate_error
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name does not resolve"
    if isinstance(problem, aiohttp.ClientOSError) and problem.errno is None:  # while it was written to
        problem = problem.__cause__ or ConnectionResetError()
    if isinstance(problem, ssl.SSLError):
        return str(problem.strerror or problem)
    if isinstance(problem, ConnectionRefusedError):
        at = f" at {error.host}:{error.port}" if isinstance(error, aiohttp.ClientConnectorError) else ""
        return f"connection refused{at}"
    if isinstance(problem, aiohttp.ServerDisconnectedError | ConnectionError):
        return "it hung up"
    return str(getattr(problem, "strerror", None) or problem) or type(problem).__name__


def seconds_until(retry_after: str) -> int | None:
    """Seconds until then: Retry-After is a number or a date (RFC 9110 clause 10.2.3); None if neither."""
    if retry_after.isascii() and retry_after.isdecimal():
        return int(retry_after[:9])
    try:
        return max(0, math.ceil(parsedate_to_datetime(retry_after).timestamp() - time.time()))
    except (ValueError, TypeError, OverflowError):
        return None
