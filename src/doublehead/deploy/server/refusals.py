"""Rejected requests: an HTTP status, a machine-readable code and a message."""

from __future__ import annotations

from doublehead.common.errors import printable

MEANING = {
    400: "The body holds no image, or a damaged one.",
    401: "The API key is missing or wrong.",
    404: "There is no such path.",
    405: "The path knows no such method.",
    408: "The body came too slowly.",
    413: "Too many bytes, pixels or images.",
    415: "The body, or an image in it, is of a kind that is not taken.",
    422: "A parameter is unknown or out of its range, or asks for a head that the model does not have.",
    500: "The server failed; its log says how.",
    503: "Too much is waiting, or the answer took too long: try again after the seconds that Retry-After names. "
    "Without Retry-After the device has failed, and the server must be restarted.",
}
"""What each status says in the OpenAPI document."""


class Refused(Exception):
    """A request that cannot be answered.

    Args:
        status: of HTTP.
        error: a word that programs can rely on, such as `too_large`.
        detail: a sentence with the image, field or limit, and the fix.
        retry_after: seconds after which it is worth another try.
    """

    def __init__(self, status: int, error: str, detail: str, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.error, self.detail, self.retry_after = status, error, printable(detail), retry_after

    @property
    def headers(self) -> dict[str, str]:
        """What goes with the status."""
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after else {}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})
