"""What a simulated device reads from a request, and the one place where its errors become HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import msgspec
from aiohttp import web

from keyhaul.errors import InsufficientKey, KeyhaulError, Malformed

CALLER = web.RequestKey("caller", str)
"""The identity in the client's certificate; set before any handler runs."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class KeyRequest(msgspec.Struct):
    """014 "Key request"; unknown members are ignored."""

    number: int = 1
    size: int | None = None
    additional_slave_SAE_IDs: list[str] = []  # noqa: N815 - the standard's spelling
    extension_mandatory: list[dict[str, Any]] = []
    extension_optional: list[dict[str, Any]] = []


class KeyId(msgspec.Struct):
    """014 "Key IDs" item."""

    key_ID: str  # noqa: N815


class KeyIds(msgspec.Struct):
    """014 "Key IDs"."""

    key_IDs: Annotated[list[KeyId], msgspec.Meta(min_length=1)]  # noqa: N815


_S = TypeVar("_S", bound=msgspec.Struct)


def parse(body: bytes, kind: type[_S]) -> _S:
    """A request body as `kind`; raises Malformed, saying which member is wrong."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError) as error:  # msgspec.DecodeError, and what is not UTF-8
        raise Malformed(f"the request body is not what the interface says: {error}") from None


def answer(value: Any, status: int = 200, **headers: str) -> web.Response:
    """JSON that no cache may keep; bytes in it become base64."""
    return web.Response(
        body=msgspec.json.encode(value),
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store", **headers},
    )


def errors_as_json(empty_status: int) -> Any:
    """Middleware: every error becomes a 014 Error body; `empty_status` is this vendor's code for "no key"."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except KeyhaulError as error:
            body: dict[str, Any] = {"message": error.cause}
            if error.details:
                body["details"] = [{name: value} for name, value in error.details.items()]
            status = empty_status if isinstance(error, InsufficientKey) else error.status
            headers = {"Retry-After": str(error.retry_after)} if status == 503 and error.retry_after else {}
            return answer(body, status, **headers)
        except web.HTTPException as error:
            headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            return answer({"message": error.reason}, error.status, **headers)

    return middleware
