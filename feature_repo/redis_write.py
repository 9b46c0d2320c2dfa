"""Writes to Redis that compare before they set: one Lua call per batch, the bytes that Feast's own writer makes.

A row replaces the stored one unless it is older: an earlier event time, or the same event time and an earlier created
timestamp (a correction bears a later one). The check and the write are one step of the server, so that two writers,
or one that is killed and started again, leave what the newest rows say, whatever the order they came in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from redis import Redis, RedisCluster
from redis.crc import key_slot
from redis.exceptions import NoScriptError

ROWS_AT_ONCE = 500  # the server answers nobody else during a call: a few milliseconds

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
SHA = hashlib.sha1(SCRIPT.encode()).hexdigest()  # how Redis names it


@dataclass(frozen=True)
class Rows:
    """Serialized rows of one view.

    Attributes:
        keys: of the hashes.
        stamps: serialized event times.
        created: serialized created timestamps, empty where the source has none.
        fields: the hash field of each feature.
        values: per feature, its serialized values.
    """

    keys: Sequence[bytes]
    stamps: Sequence[bytes]
    created: Sequence[bytes]
    fields: Sequence[bytes]
    values: Sequence[Sequence[bytes]]


def write(client: Redis | RedisCluster, view: str, rows: Rows, expires_s: int = 0) -> int:
    """Write what is not older than what is stored; how many rows that was.

    Args:
        client: of one server, or of a cluster, where the keys of a call have to share a slot.
        view: name of the view, which the event time's field bears.
        rows: may hold a key more than once.
        expires_s: seconds after which Redis forgets the entities; 0: never.
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

    written = 0
    for server, groups in _calls(client, rows.keys):
        calls = [(len(some), arguments(some)) for some in groups]
        try:
            written += _call(server, calls)
        except NoScriptError:  # the server has never seen it, or was restarted since
            server.script_load(SCRIPT)
            written += _call(server, calls)
    return written


def _call(server: Redis, calls: Sequence[tuple[int, list[bytes]]]) -> int:
    with server.pipeline(transaction=False) as pipe:
        for count, arguments in calls:
            pipe.evalsha(SHA, count, *arguments)  # type: ignore[arg-type]
        return sum(pipe.execute())


def _calls(
    client: Redis | RedisCluster, keys: Sequence[bytes]
) -> Iterator[tuple[Redis, list[Sequence[int]]]]:
    """Rows to send to a server at once, in groups of one call each; rows of one key stay in order."""
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
