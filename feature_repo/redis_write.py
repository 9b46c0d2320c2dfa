"""Writes to Redis that compare before they set: one Lua call per batch, the bytes that Feast's own writer makes.

A row replaces the stored one unless it is older: an earlier event time, or the same event time and an earlier created
timestamp (a correction bears a later one). The check and the write are one step of the server, so that two writers,
or one that is killed and started again, leave what the newest rows say, whatever the order they came in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redis import Redis
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


def write(client: Redis, view: str, rows: Rows, expires_s: int = 0) -> int:
    """Write what is not older than what is stored; how many rows that was.

    Args:
        client: of one server.
        view: name of the view, which the event time's field bears.
        rows: may hold a key more than once.
        expires_s: seconds after which Redis forgets the entities; 0: never.
    """
    sha = client.script_load(SCRIPT)
    head = [
        b"%d" % len(rows.fields),
        b"%d" % expires_s,
        b"_ts:" + view.encode(),
        b"_created:" + view.encode(),
    ]
    head += rows.fields
    written = 0
    for start in range(0, len(rows.keys), ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        columns = [rows.stamps[some], rows.created[some]]
        columns += [values[some] for values in rows.values]
        arguments = [piece for row in zip(*columns, strict=True) for piece in row]
        keys = rows.keys[some]
        try:
            written += int(client.evalsha(sha, len(keys), *keys, *head, *arguments))  # type: ignore[arg-type]
        except NoScriptError:  # the server was restarted since
            client.script_load(SCRIPT)
            written += int(client.evalsha(sha, len(keys), *keys, *head, *arguments))  # type: ignore[arg-type]
    return written
