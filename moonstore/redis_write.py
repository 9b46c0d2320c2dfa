"""Conditional writes to Redis: one Lua call per batch, storing the same bytes as Feast's own writer.

A row replaces the stored one unless it is older: an earlier event time, or the same event time and an earlier created
timestamp (a correction has a later one). The server checks and writes in one step, so concurrent writers, or one that
is killed and restarted, always leave the newest rows, whatever the order of writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from redis import Redis, RedisCluster
from redis.crc import key_slot
from redis.exceptions import NoScriptError

ROWS_AT_ONCE = 500  # the server is blocked during a call, a few milliseconds

SCRIPT = """
local function moment(stamp)
  local at, parts = 1, {[8] = 0, [16] = 0}
  while at <= #stamp do
    local tag, value, place = stamp:byte(at), 0, 1
    repeat
      at = at + 1
      value = value + stamp:byte(at) % 128 * place
      place = place * 128
    until stamp:byte(at) < 128
    parts[tag] = value
    at = at + 1
  end
  return parts[8], parts[16]
end

local function earlier(one, other)
  if one == other then return false end
  local seconds, nanos = moment(one)
  local other_seconds, other_nanos = moment(other)
  return seconds < other_seconds or seconds == other_seconds and nanos < other_nanos
end

local width, expires, stamp_field, created_field = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local written = 0
for row, key in ipairs(KEYS) do
  local at = 4 + width + (row - 1) * (width + 2)
  local stamp, created = ARGV[at + 1], ARGV[at + 2]
  local stored = redis.call('HMGET', key, stamp_field, created_field)
  local old = false
  if stored[1] == stamp then
    old = earlier(created, stored[2] or '')
  elseif stored[1] then
    old = earlier(stamp, stored[1])
  end
  if not old then
    local fields = {}
    for number = 1, width do
      fields[#fields + 1] = ARGV[4 + number]
      fields[#fields + 1] = ARGV[at + 2 + number]
    end
    fields[#fields + 1] = stamp_field
    fields[#fields + 1] = stamp
    if created ~= '' then
      fields[#fields + 1] = created_field
      fields[#fields + 1] = created
    elseif stored[2] then
      redis.call('HDEL', key, created_field)
    end
    redis.call('HSET', key, unpack(fields))
    if expires > 0 then redis.call('EXPIRE', key, expires) end
    written = written + 1
  end
end
return written
"""
COMPARE_AND_SET = """
local width, expires, stamp_field, guard = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local written = {}
for row, key in ipairs(KEYS) do
  local at = 4 + width + (row - 1) * (width + 2)
  written[row] = 0
  if (redis.call('HGET', key, guard) or '') == ARGV[at + 2] then
    local fields = {stamp_field, ARGV[at + 1]}
    for number = 1, width do
      fields[#fields + 1] = ARGV[4 + number]
      fields[#fields + 1] = ARGV[at + 2 + number]
    end
    redis.call('HSET', key, unpack(fields))
    if expires > 0 then redis.call('EXPIRE', key, expires) end
    written[row] = 1
  end
end
return written
"""


@dataclass(frozen=True)
class Rows:
    """Serialized rows of one view.

    Attributes:
        keys: Redis keys of the hashes.
        stamps: serialized event times.
        created: serialized created timestamps, empty where the source has none.
        fields: the hash field of each feature.
        values: serialized values of each feature.
    """

    keys: Sequence[bytes]
    stamps: Sequence[bytes]
    created: Sequence[bytes]
    fields: Sequence[bytes]
    values: Sequence[Sequence[bytes]]


def write(client: Redis | RedisCluster, view: str, rows: Rows, expires_s: int = 0) -> int:
    """Write the rows that are not older than the stored ones; returns their number.

    Args:
        client: of a server or a cluster.
        view: name of the view, part of the timestamp fields' names.
        rows: may hold a key more than once.
        expires_s: seconds after which Redis deletes the entities; 0: never.
    """
    head = [
        b"%d" % len(rows.fields),
        b"%d" % expires_s,
        b"_ts:" + view.encode(),
        b"_created:" + view.encode(),
    ]
    head += rows.fields
    columns = [rows.stamps, rows.created, *rows.values]

    def arguments(some: Sequence[int]) -> list[bytes]:
        keys = [rows.keys[row] for row in some]
        return [*keys, *head, *(column[row] for row in some for column in columns)]

    return sum(answer for _, answer in run(client, SCRIPT, rows.keys, arguments))


def compare_and_set(
    client: Redis | RedisCluster,
    view: str,
    rows: Rows,
    guard: bytes,
    before: Sequence[bytes],
    expires_s: int = 0,
) -> np.ndarray:
    """Write the rows whose stored field ``guard`` is unchanged since it was read.

    Args:
        client, view, expires_s: as for ``write``.
        rows: of distinct keys.
        guard: a field of the hash.
        before: its serialized values when read, empty where there was none.

    Returns:
        bool (N): which rows were written.
    """
    head = [b"%d" % len(rows.fields), b"%d" % expires_s, b"_ts:" + view.encode(), guard, *rows.fields]
    columns = [rows.stamps, before, *rows.values]

    def arguments(some: Sequence[int]) -> list[bytes]:
        keys = [rows.keys[row] for row in some]
        return [*keys, *head, *(column[row] for row in some for column in columns)]

    written = np.zeros(len(rows.keys), bool)
    for some, answer in run(client, COMPARE_AND_SET, rows.keys, arguments):
        written[list(some)] = np.array(answer, bool)
    return written


def run(
    client: Redis | RedisCluster,
    script: str,
    keys: Sequence[bytes],
    arguments: Callable[[Sequence[int]], list[bytes]],
) -> Iterator[tuple[Sequence[int], Any]]:
    """Run a script on groups of rows; yields the rows of each group and the script's answer.

    Args:
        client: as for ``write``; on a cluster the keys of a call have to share a slot.
        script: in Lua.
        keys: one per row.
        arguments: function from rows to their keys and the script's other arguments.
    """
    sha = hashlib.sha1(script.encode()).hexdigest()  # the name of a script in Redis
    for server, groups in _calls(client, keys):
        calls = [(len(some), arguments(some)) for some in groups]
        try:
            answers = _call(server, sha, calls)
        except NoScriptError:  # the server never loaded it, or was restarted since
            server.script_load(script)
            answers = _call(server, sha, calls)
        yield from zip(groups, answers, strict=True)


def _call(server: Redis, sha: str, calls: Sequence[tuple[int, list[bytes]]]) -> list[Any]:
    with server.pipeline(transaction=False) as pipe:
        for count, arguments in calls:
            pipe.evalsha(sha, count, *arguments)  # type: ignore[arg-type]
        return pipe.execute()


def _calls(
    client: Redis | RedisCluster, keys: Sequence[bytes]
) -> Iterator[tuple[Redis, list[Sequence[int]]]]:
    """Servers and the groups of rows to send to each at once, one call per group; rows of a key stay in order."""
    if not isinstance(client, RedisCluster):
        for start in range(0, len(keys), ROWS_AT_ONCE):
            yield client, [range(start, min(start + ROWS_AT_ONCE, len(keys)))]
        return
    slots: dict[int, list[int]] = {}
    for row, key in enumerate(keys):
        slots.setdefault(key_slot(key), []).append(row)
    servers: dict[str, list[Sequence[int]]] = {}
    for slot, some in slots.items():
        node = client.nodes_manager.get_node_from_slot(slot)
        servers.setdefault(node.name, []).append(some)
    for name, groups in servers.items():
        server = client.get_redis_connection(client.get_node(node_name=name))
        waiting: list[Sequence[int]] = []
        for group in groups:
            waiting.append(group)
            if sum(map(len, waiting)) >= ROWS_AT_ONCE:
                yield server, waiting
                waiting = []
        if waiting:
            yield server, waiting
