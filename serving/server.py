"""Start the service: take the port, then load, then answer, in one process or in several that share the port.

Nothing heavy is imported before the port is taken: a start that cannot succeed fails at once and touches nothing.
"""

from __future__ import annotations

import gc
import logging
import socket
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from moonstore.quick_import import without_type_checks
from serving.connections import Connection
from serving.keys import require_keys, warn_of_no_keys
from serving.logs import start_logging
from serving.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger("uvicorn.error")

END_WITHIN_S = 30  # requests that are still under way this long after the last one was accepted are cut off


class PortTaken(OSError):
    """The service cannot listen where it should."""


def serve(settings: Settings) -> None:
    """Serve a run's active generation until interrupted.

    Raises:
        KeysError: other machines reach the address, and there are no API keys.
        OSError: the port is taken; nothing was loaded.
        GenerationError: none is active.
        ArtifactError: its artifacts are missing, damaged or do not belong together.
    """
    require_keys(settings)
    start_logging()
    with listen(settings.host, settings.port) as listening:
        if settings.workers == 1:
            config = _config(application(settings), settings)
            _say(settings)
            uvicorn.Server(config).run([listening])
        else:
            with tempfile.TemporaryDirectory(prefix="moon_metrics_") as folder:
                shared = replace(settings, metrics=Path(folder))
                config = _config(partial(_worker, shared), shared)
                _say(settings)
                Multiprocess(config, sockets=[listening]).run()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens: from now on nobody else can, and clients wait until the service is loaded.

    Raises:
        OSError: the address is taken or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise PortTaken(
            f"{host}:{port}: expected a free address, found {error.strerror or error}. Nothing was loaded; stop the "
            f"process that listens there, or choose another with --port."
        ) from None
    listening.set_inheritable(True)
    return listening


def application(settings: Settings) -> FastAPI:
    """The application of one process, with one thread per library."""
    gc.disable()  # what is imported and opened stays: looking through it again and again would take a second
    try:
        with without_type_checks():
            import faiss
            import torch

            from serving.app import create_app

        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)
        return create_app(settings)
    finally:
        gc.freeze()  # nor later, when it would delay some request by a few 100 ms
        gc.enable()


def _worker(settings: Settings) -> FastAPI:
    start_logging()
    try:
        return application(settings)
    except Exception:
        log.exception("the service cannot start")
        sys.exit(STARTUP_FAILURE)  # any other status: the process is started again


def _config(app: FastAPI | partial[FastAPI], settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        factory=settings.workers > 1,
        workers=settings.workers,
        host=settings.host,
        port=settings.port,
        http=partial(Connection, settings),  # type: ignore[arg-type]
        timeout_keep_alive=settings.idle_deadline_s,
        timeout_graceful_shutdown=END_WITHIN_S,
        access_log=False,  # ours (``serving.access``) has no addresses with queries in it
        server_header=False,
    )


def _say(settings: Settings) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    log.info("serving on http://%s:%d (CTRL+C to quit)", host, settings.port)
    warn_of_no_keys(settings)
