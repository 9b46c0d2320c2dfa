"""Operations: is the process alive, is it ready, what has it measured."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from serving.drain import Drain
from serving.gate import caller_of
from serving.intake import Intake
from serving.live import Live
from serving.openapi import refused_with
from serving.recommend import Recommender
from serving.telemetry import Telemetry
from serving.work import Work


def add_operations(
    app: FastAPI, live: Live, intake: Intake | None, drain: Drain, examining: Work, telemetry: Telemetry
) -> None:
    """Add ``/healthz``, ``/readyz`` and ``/metrics``; ``examining`` looks at store and disk."""

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is alive."""
        return {"status": "alive"}

    @app.get("/readyz", responses=refused_with(503))
    async def readyz(request: Request) -> JSONResponse:
        """May this process get requests: 200 when it is ready or degraded, 503 when it is not ready or draining.

        Degraded: it answers, but with popular items, because the online store is away or empty, or it cannot keep
        what it is sent. A generation that cannot be opened leaves it ready: the one before it still serves. So do
        records in the dead letter: everything else is processed.
        Where keys are in force, only one of scope admin is told the details.
        """
        moon = live.current
        unready = moon.unready()
        degraded = await examining.run(_degraded, moon, intake)
        refused = await examining.run(live.count_refused)
        state = "not ready" if unready else "degraded" if degraded else "ready"
        if drain.began:
            state = "draining"
        content = {
            "status": state,
            "problems": [*unready, *degraded],
            "artifacts": moon.artifacts,
            "generation": {
                "served": moon.generation,
                "asked": live.target_generation,
                "problem": live.problem,
            },
            "items": {
                "loaded_until": moon.items.loaded_until if moon.items is not None else None,
                "problem": live.stale_reason,
                "withdrawn": len(moon.withdrawn),
            },
            "writes": {
                "failed": intake.failed if intake is not None else 0,
                "problem": intake.problem if intake is not None else "",
            },
            "dead_letters": refused,
        }
        if "admin" not in caller_of(request.scope).scopes:
            content = {"status": state}
        return JSONResponse(content, status_code=200 if state in ("ready", "degraded") else 503)

    @app.get("/metrics", response_class=PlainTextResponse, responses=refused_with())
    async def metrics() -> Response:
        """Prometheus text."""
        await examining.run(live.count_refused)
        return Response(telemetry.text(), media_type="text/plain; version=0.0.4")


def _degraded(moon: Recommender, intake: Intake | None) -> list[str]:
    problems = moon.degraded()
    if intake is not None:
        problems += [one for one in (intake.unwritable(), intake.problem) if one]
    return problems
