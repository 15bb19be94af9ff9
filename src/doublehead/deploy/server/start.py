"""From weights to a server that listens."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from doublehead.common.console import Console
from doublehead.common.errors import DoubleheadError, require
from doublehead.common.threads import apart
from doublehead.deploy.server.settings import ServerSettings
from doublehead.evaluation.analysis.heads import model_names
from doublehead.inference.predictor import load

GRACE = 5
"""Seconds for answers to go out, beyond the time that a request may take, when the server is asked to stop."""

KEEP_ALIVE = 75
"""Seconds after which an idle connection is closed: more than clients and proxies keep one, for if the server is first,
a request may cross the closing and get no answer."""


def serve(
    weights: Sequence[str],
    settings: ServerSettings,
    device: str = "auto",
    precision: str = "fp32",
    options: Mapping[str, Any] | None = None,
    ready: Callable[[str], object] | None = None,
) -> None:
    """Answer over HTTP until Ctrl-C or SIGTERM, and then finish what was taken.

    Args:
        weights: as of `load`; several make an ensemble.
        settings: where to listen, and limits.
        device: auto, cpu, cuda, cuda:1.
        precision: fp32, bf16, fp16, or auto.
        options: inference options by their names; see `config.InferenceOptions`.
        ready: called with the server's address once it listens.

    Raises:
        DoubleheadError: the extra `serve` is missing, the weights cannot be loaded, or the port is not available.
    """
    for module in ("fastapi", "python_multipart", "prometheus_client"):
        require(module, "serve")
    uvicorn = require("uvicorn", "serve")
    from doublehead.deploy.server.app import create_app

    with _listening(settings) as sock:
        predictor = apart(load, weights, device, precision, options)
        app = create_app(predictor, " + ".join(model_names(list(weights))), settings)
        apart(app.state.service.warm_up)
        logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every malformed form
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=int(2 * settings.timeout) + GRACE,
            server_header=False,
        )
        server = uvicorn.Server(config)
        # uvicorn finishes what it took and then raises the signal again, which would end the process by the signal:
        # asked to stop, and having done so, the command ends with 0. This also catches one that comes before uvicorn.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: setattr(server, "should_exit", True))
        sock.listen()  # who connects now waits for the moment that is left
        host, port = sock.getsockname()[:2]
        address = f"[{host}]" if ":" in host else host
        Console().say(f"serving {app.state.service.name} at http://{address}:{port} - Ctrl-C stops")
        if predictor.options.decision_threshold is not None:
            threshold = predictor.decision_threshold
            least = f"showing detections with a score of at least {threshold:.2f}, the decision threshold"
            Console().say(f"{least}; ?score= changes it")
        if ready:
            ready(f"http://{address}:{port}")
        server.run(sockets=[sock])


def _listening(settings: ServerSettings) -> socket.socket:
    """A socket bound before the model is loaded, so that a port that is taken is said at once."""
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((settings.host, settings.port))
    except OSError as error:
        raise DoubleheadError(
            f"{settings.host}:{settings.port}: the server cannot listen there ({error.strerror}); give another --port "
            "or --host"
        ) from error
    return sock
