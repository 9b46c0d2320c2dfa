"""The service under requests made up from its own OpenAPI document: it answers as the document says, and never fails.

``make test`` tries some four hundred requests, always the same; ``make fuzz`` many thousands, each time others.

Run: pytest tests/test_service_fuzzed.py
"""

import os
import re
from collections import Counter

import schemathesis
from fake_shop import recommender
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import from_schema
from schemathesis.engine.events import NonFatalError, ScenarioFinished
from test_service_hostile import Kept

from serving.app import create_app
from serving.settings import Settings
from tests import promises

FEW = 5
EXAMPLES = int(os.environ.get("MOON_FUZZ", FEW))  # of each route, in each phase that draws them
PHASES = {"examples", "coverage", "fuzzing", "stateful"}
REFUSED = [400, 404, 405, 408, 409, 413, 415, 422]


def config():
    return SchemathesisConfig.from_dict(
        {
            **({"seed": 1} if EXAMPLES == FEW else {}),
            "generation": {"max-examples": EXAMPLES, "database": "none", "no-shrink": True},
            "checks": {
                "negative_data_rejection": {"expected-statuses": REFUSED},
                # A schema cannot say that only a rating has a value: what fits the schema may be refused.
                "positive_data_acceptance": {"enabled": False},
            },
        }
    )


def tried(app):
    """How often each phase called each route with each status, and what is wrong with an answer."""
    calls, wrong = Counter(), []
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=config())
    for event in from_schema(schema).execute():
        if isinstance(event, NonFatalError):
            wrong.append(f"{event.label}: {event.info}")
        if not isinstance(event, ScenarioFinished):
            continue
        recorded = event.recorder
        for case_id, done in recorded.interactions.items():
            route = recorded.cases[case_id].value.operation.label
            calls[event.phase.value, route, done.response.status_code] += 1
        for case_id, checks in recorded.checks.items():
            wrong += [
                f"{recorded.cases[case_id].value.as_curl_command()}\n{one.name}: {one.failure_info.failure}"
                for one in checks
                if one.failure_info and not measured_cleaned(str(one.failure_info.failure))
            ]
    return calls, wrong


def measured_cleaned(failure):
    """A text is measured after it is cleaned, which a schema cannot say: one that is too long as sent may fit."""
    return set(re.findall(r"violates `(\w+)`", failure)) == {"maxLength"}


def test_every_answer_is_one_that_the_document_names(tmp_path):
    settings = Settings(run=tmp_path, burst=10**9)
    app = create_app(settings, recommender(), Kept())
    calls, wrong = tried(app)
    for route in {route for _, route, _ in calls}:
        times = sum(n for (_, one, _), n in calls.items() if one == route)
        promises.record(promises.REQUESTS, f"made up: {route}", times)
    assert not wrong, f"{len(wrong)} wrong\n\n" + "\n\n".join(one[:2000] for one in wrong[:5])
    assert {phase for phase, _, _ in calls} == PHASES and sum(calls.values()) > 300
    paths = app.openapi()["paths"]
    routes = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert {route for _, route, _ in calls} == routes
    assert {status for _, _, status in calls} <= {200, 202, *REFUSED}
