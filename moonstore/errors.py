"""The errors raised by the stores and the code around them."""

import sqlite3

import redis
from feast.errors import FeastError


class StoreError(RuntimeError):
    """The store is missing or not as expected; the message names the next command."""


class FutureRowError(FeastError, ValueError):
    """Rows with event times in the future, which no newer row would replace until then."""

    def http_status_code(self) -> int:
        """What ``feast serve`` answers to who pushes such a row."""
        return 422


# What the clients of the online stores raise when the store does not answer.
UNREACHABLE = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.ClusterError,
    redis.exceptions.RedisClusterException,
    sqlite3.OperationalError,
)
