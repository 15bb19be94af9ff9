"""Demo: the page of `serve` with a bundled detector, without data or a trained model."""

from __future__ import annotations

import webbrowser
from pathlib import Path

from doublehead.deploy.server.settings import make_settings
from doublehead.deploy.server.start import serve

WEIGHTS = Path(__file__).with_name("shapes.safetensors")
"""A double-head-nano trained on images of `synthesize`; docs/deployment.md has the commands to reproduce it."""

OPTIONS = {"short_side": 384, "long_side": 640}
"""At this input size, the shapes of the page's 640x480 sample are as large as in training."""


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
