"""The page of `serve` with a bundled detector: something to try before there is data or a trained model."""

from __future__ import annotations

import webbrowser
from pathlib import Path

from doublehead.deploy.server.settings import make_settings
from doublehead.deploy.server.start import serve

WEIGHTS = Path(__file__).with_name("shapes.safetensors")
"""A double-head-nano trained on pictures of `synthesize`; docs/deployment.md has the commands that make it again."""

OPTIONS = {"short_side": 384, "long_side": 640}
"""The page's sample is 640x480. At this input size its shapes are as large as they were in training."""


def demo(host: str = "127.0.0.1", port: int = 8000, device: str = "auto", browser: bool = True) -> None:
    """Serve the bundled detector until Ctrl-C or SIGTERM.

    Args:
        host: address to listen on.
        port: port; 0: any free one.
        device: auto, cpu, cuda, cuda:1.
        browser: open the page in a browser once the server listens.

    Raises:
        DoubleheadError: as `deploy.server.start.serve`.
    """
    ready = webbrowser.open if browser else None
    serve([str(WEIGHTS)], make_settings(host=host, port=port), device, options=OPTIONS, ready=ready)
