"""The errors raised by the stores and the code around them."""

import sqlite3

import redis


class StoreError(RuntimeError):
    """The store is missing or not as expected; the message names the next command."""


# What the clients of the online stores raise when the store does not answer.
UNREACHABLE = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.ClusterError,
    redis.exceptions.RedisClusterException,
    sqlite3.OperationalError,
)
