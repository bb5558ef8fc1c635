"""Turn every error into OpenAI's error object: {"error": {"message", "type", "param", "code"}}."""

import json
import logging
import re
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from minigpt.errors import ConfigError, MiniGPTError, RunError, UserError
from minigpt.runtime.device import out_of_memory
from minigpt.serve.engine import BusyError, UnavailableError

log = logging.getLogger(__name__)


class ErrorBody(BaseModel):
    """What went wrong: a sentence, OpenAI's kind of error, the field of the request, a code for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every answer that is not 200."""

    error: ErrorBody


KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
CODES = {401: "invalid_api_key", 413: "request_too_large", 429: "rate_limit_exceeded", 503: "unavailable"}
DESCRIPTIONS = {
    400: "The request cannot be answered as it is",
    401: "The key is missing or wrong",
    403: "The request comes from another site, or is for another host",
    404: "There is no such model",
    413: "The request is too large",
    429: "Too many texts wait; try again after the seconds in Retry-After",
    503: "The model cannot be loaded now",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text} for status, text in DESCRIPTIONS.items()
}
"""For the API's document: the error answers of each path."""


UNREADABLE = "There was an error parsing the body"
"""FastAPI's message for bytes that are not UTF-8, and for numbers that are too long."""
FIELD = re.compile(r"[a-z_]+|\d+")


class ApiError(HTTPException):
    """An error answer with its status."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, retry: int | None = None
    ):
        super().__init__(status, message)
        self.status, self.param, self.retry = status, param, retry
        self.code = code or CODES.get(status)

    def __str__(self) -> str:
        return self.detail

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        found = {"message": str(self), "type": KINDS[self.status], "param": self.param, "code": self.code}
        return {"error": found}

    def as_json(self) -> str:
        """The error object as text."""
        return json.dumps(self.body, ensure_ascii=False)

    @property
    def own_headers(self) -> dict[str, str]:
        """Headers that this answer has in addition to the usual ones."""
        found = {} if self.retry is None else {"Retry-After": str(self.retry)}
        # 413 closes the connection, so the rest of the body is not read
        more = {401: {"WWW-Authenticate": "Bearer"}, 413: {"Connection": "close"}}
        return found | more.get(self.status, {})

    def response(self, headers: Mapping[str, str] | None = None) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body, self.status, {**self.own_headers, **(headers or {})})


def as_api_error(error: BaseException) -> ApiError:
    """Turn any error into an answer for the client. Unexpected errors are logged, and their details are not sent."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BusyError):
        return ApiError(429, str(error), retry=error.seconds)
    if isinstance(error, UnavailableError):
        return ApiError(503, str(error), retry=error.seconds)
    if isinstance(error, RunError):
        return ApiError(404, str(error), "model", "model_not_found")
    if isinstance(error, ConfigError):
        first = error.problems[0].removeprefix("generation.")
        return ApiError(400, first, first.partition(":")[0] if ":" in first else None)
    if isinstance(error, UserError):
        return ApiError(400, str(error))
    if out_of_memory(error):
        return ApiError(503, "memory ran out; try again with fewer or shorter texts", retry=10)
    log.error("an unexpected error", exc_info=error)
    return ApiError(500, f"this is a bug in minigpt ({type(error).__name__}); the server's log has its details")


def install(app: FastAPI) -> None:
    """Let the app answer every error with an error object."""

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return ApiError(400, f"the body is not JSON: {first['ctx']['error']}").response()
        places = [str(place) for place in first["loc"][1:]]
        place = ".".join(takewhile(FIELD.fullmatch, places))  # later places are pydantic's names of types, not fields
        param = places[0] if places else None
        return ApiError(400, f"{place}: {first['msg']}" if place else first["msg"], param).response()

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if isinstance(error, ApiError):
            return error.response()
        if error.detail == UNREADABLE:
            return ApiError(400, "the body is not JSON in UTF-8").response()
        status = error.status_code if error.status_code in KINDS else 400
        return ApiError(status, str(error.detail)).response(error.headers)

    async def any_error(_: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    for kind in (MiniGPTError, Exception):
        app.add_exception_handler(kind, any_error)
