"""Every setting of the server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator

from doublehead.common.errors import DoubleheadError, sentence
from doublehead.common.strict import Strict

Format = Literal["jpeg", "png", "webp", "bmp", "gif", "tiff"]


class ServerSettings(Strict):
    """Where the server listens, what a request may bring, and how images are gathered."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535, description="0: any that is free.")
    api_key: SecretStr | None = Field(default=None, description="What /v1 and /metrics ask for; null: nothing.")
    batch_size: int = Field(default=4, ge=1, description="Most images that go through the model at once.")
    batch_wait: float = Field(default=1.0, ge=0, description="Milliseconds an image waits for others to join it.")
    queue: int = Field(
        default=64, ge=1, description="Maximum images accepted and not yet answered; further ones are rejected."
    )
    max_megabytes: float = Field(default=20.0, gt=0, description="Of a request's body.")
    max_megapixels: float = Field(default=40.0, gt=0, description="Of all images of a request together.")
    max_images: int = Field(default=16, ge=1, description="In a request.")
    timeout: float = Field(default=30.0, gt=0, description="Seconds to receive a request, and then to answer it.")
    formats: tuple[Format, ...] = Field(default=("jpeg", "png", "webp", "bmp"), min_length=1)
    sample: Path | None = Field(default=None, description="The image that the page offers; null: one that is drawn.")

    @field_validator("formats", mode="before")
    @classmethod
    def _separated(cls, formats: object) -> object:
        return [name.strip() for name in formats.split(",")] if isinstance(formats, str) else formats

    @field_validator("api_key")
    @classmethod
    def _fits_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not re.fullmatch("[!-~]+", key.get_secret_value()):
            raise ValueError("must be printable ASCII characters without spaces")
        return key

    @model_validator(mode="after")
    def _request_fits(self) -> ServerSettings:
        if self.max_images > self.queue:
            raise ValueError(f"max_images {self.max_images} must not exceed the queue of {self.queue}")
        return self

    @property
    def max_bytes(self) -> int:
        """Of a request's body."""
        return int(self.max_megabytes * 1e6)

    @property
    def max_pixels(self) -> int:
        """Of all images of a request together."""
        return int(self.max_megapixels * 1e6)

    @property
    def queue_pixels(self) -> int:
        """Of all images decoded and not yet answered, which bounds the memory: four of the largest requests."""
        return 4 * self.max_pixels


def make_settings(**values: Any) -> ServerSettings:
    """Settings from a user's values.

    Raises:
        DoubleheadError: a value is out of its range.
    """
    try:
        return ServerSettings(**values)
    except ValidationError as error:
        raise DoubleheadError(f"the server's settings: {sentence(error)}") from error
