"""Operations: is the process alive, is it ready, what has it measured."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from serving.gate import caller_of
from serving.live import Live
from serving.openapi import refused_with
from serving.telemetry import Telemetry


def add_operations(app: FastAPI, live: Live, telemetry: Telemetry) -> None:
    """Add ``/healthz``, ``/readyz`` and ``/metrics``."""

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is alive."""
        return {"status": "alive"}

    @app.get("/readyz", responses=refused_with(503))
    async def readyz(request: Request) -> JSONResponse:
        """Artifacts agree, the index is loaded, the online store answers and knows its users.

        A generation that cannot be opened is reported but leaves the service ready: the one before it still serves.
        Where keys are in force, only one of scope admin is told the details.
        """
        moon = live.current
        problems = moon.ready()
        content = {
            "status": "not ready" if problems else "ready",
            "problems": problems,
            "artifacts": moon.artifacts,
            "generation": {
                "served": moon.generation,
                "asked": live.target_generation,
                "problem": live.problem,
            },
            "items": {
                "loaded_until": moon.items.loaded_until if moon.items is not None else None,
                "problem": live.stale_reason,
                "refused": live.refused,
            },
        }
        if "admin" not in caller_of(request.scope).scopes:
            content = {"status": content["status"]}
        return JSONResponse(content, status_code=503 if problems else 200)

    @app.get("/metrics", response_class=PlainTextResponse, responses=refused_with())
    async def metrics() -> Response:
        """Prometheus text."""
        return Response(telemetry.text(), media_type="text/plain; version=0.0.4")
