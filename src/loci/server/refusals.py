"""What goes wrong, as a status and in the form of the protocol that was spoken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any  # JSON values

from pydantic import BaseModel
from starlette.responses import JSONResponse

from loci.errors import (
    BudgetError,
    BusyError,
    ContextError,
    EndpointError,
    FormatError,
    LociError,
    MethodError,
    MissingExtraError,
    ModelError,
    NotFoundError,
    OverloadError,
    ParameterError,
    PolicyError,
    StorageError,
    StoreError,
)
from loci.units import nearest


@dataclass(eq=False, kw_only=True)
class Refusal(Exception):
    """An answer that is an error.

    Attributes:
        kind: in OpenAI's words; Anthropic's follow from the status.
        param: the field that is wrong, if it is one.
        parts: value, allowed and way out of ours.
    """

    status: int
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None
    parts: Mapping[str, Any] | None = None


_ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def of(error: LociError) -> Refusal:
    """Return what a client is told of an error of ours."""
    status, kind, code = _status(error)
    return Refusal(
        status=status,
        message=str(error),
        kind=kind,
        code=code,
        retry_after_s=error.retry_after_s if isinstance(error, OverloadError) else None,
        parts={
            "type": type(error).__name__,
            "what": error.what,
            "value": None if error.value is None else repr(error.value),
            "allowed": error.allowed,
            "way_out": list(error.way_out),
        },
    )


def _status(error: LociError) -> tuple[int, str, str | None]:
    if isinstance(error, OverloadError):
        if "stopping" in error.what:
            return 503, "server_error", "stopping"
        return 429, "rate_limit_error", "overloaded"
    if isinstance(error, NotFoundError):
        return 404, "invalid_request_error", "not_found"
    if isinstance(error, ContextError):
        return 400, "invalid_request_error", "context_length_exceeded"
    if isinstance(error, BudgetError):
        return 400, "invalid_request_error", "does_not_fit"
    if isinstance(error, StorageError):
        return 507, "server_error", "storage_full"
    if isinstance(error, BusyError):
        return 503, "server_error", "busy"
    if isinstance(error, PolicyError):
        return 403, "invalid_request_error", "forbidden"
    behind = error.__cause__ or error.__context__  # of a memory whose model is elsewhere
    if isinstance(error, EndpointError) or isinstance(behind, EndpointError):
        return 502, "server_error", "endpoint"
    if isinstance(error, (FormatError, MissingExtraError, StoreError)):
        return 500, "server_error", None
    if isinstance(error, (ParameterError, MethodError, ModelError)):
        return 400, "invalid_request_error", None
    return 500, "server_error", None


def response(refusal: Refusal, path: str) -> JSONResponse:
    """Return the answer in the form that belongs to a path."""
    headers = {}
    if refusal.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(refusal.retry_after_s)))
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body(refusal, path), status_code=refusal.status, headers=headers)


def body(refusal: Refusal, path: str) -> dict[str, Any]:
    """Return the error in the form that belongs to a path."""
    if path.startswith("/v1/messages"):
        kind = _ANTHROPIC.get(refusal.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": refusal.message}}
    if path.startswith("/v1/"):
        return {
            "error": {
                "message": refusal.message,
                "type": refusal.kind,
                "param": refusal.param,
                "code": refusal.code,
            }
        }
    return {"error": refusal.parts or {"what": refusal.message}}


def of_validation(problems: Sequence[Mapping[str, Any]], form: type[BaseModel] | None) -> Refusal:
    """Return what is wrong with a request's fields; of several, one we foresaw, else the first."""
    problem = next((one for one in problems if one["type"] == "value_error"), problems[0])
    place = [part for part in problem["loc"] if part not in ("body", "query", "path", "header")]
    name = ".".join(map(str, place)) or None
    message = f"{name or 'the body'}: {problem['msg'].removeprefix('Value error, ')}"
    if problem["type"] == "extra_forbidden":
        known = list(form.model_fields) if form is not None and len(place) == 1 else []
        near = nearest(str(place[-1]), known)
        hint = f"; did you mean {near!r}?" if near else ""
        message = f"there is no field {name!r}{hint}"
    elif problem["type"] == "json_invalid":
        message, name = f"the body is no JSON: {problem.get('ctx', {}).get('error', '')}", None
    return Refusal(status=400, message=message, param=name)
