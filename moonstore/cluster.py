"""Columnar reads from a Redis Cluster: one message per node, with the keys whose slots it holds.

redis-py's own pipeline asks a hanging node again for each of its keys, waiting for a timeout each time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from redis import RedisCluster, exceptions
from redis.cluster import ClusterNode
from redis.crc import key_slot

from moonstore.connection import Address, Wire
from moonstore.decode import Cells, Values
from moonstore.resp import Hmgets


class ClusterWire:
    """Connections to the nodes of a cluster.

    Args:
        client: maps slots to nodes, and updates that map when the cluster redirects it.
        address: of any node; database and credentials are the same for all.
        timeout_s: per request to a node.
    """

    def __init__(self, client: RedisCluster, address: Address, timeout_s: float) -> None:
        self._client, self._address, self._timeout_s = client, address, timeout_s
        self._wires: dict[ClusterNode, Wire] = {}

    def columns(self, commands: Hmgets, keys: Sequence[bytes]) -> list[Values]:
        """The values of each field in the hashes with these N Redis keys.

        Raises:
            redis.exceptions.TimeoutError: a node hangs.
            redis.exceptions.ClusterError: a slot has moved or a node is gone; the client has to refresh its map.
        """
        found: list[list[bytes | None]] = [[None] * len(keys) for _ in range(commands.fields)]
        try:
            for node, rows in self._rows(keys).items():
                reply = self._wire(node).ask(commands.of_keys([keys[row] for row in rows]))
                for field, column in zip(found, commands.columns(reply, len(rows)), strict=True):
                    values = column.values() if isinstance(column, Cells) else column
                    for row, value in zip(rows, values, strict=True):
                        field[row] = value
        except (
            exceptions.ConnectionError,
            exceptions.ResponseError,
            exceptions.RedisClusterException,
        ) as error:
            raise exceptions.ClusterError(f"the cluster has changed: {error}") from error
        return list(found)

    def _rows(self, keys: Sequence[bytes]) -> dict[ClusterNode, list[int]]:
        rows = defaultdict(list)
        for row, key in enumerate(keys):
            rows[self._client.nodes_manager.get_node_from_slot(key_slot(key))].append(row)
        return rows

    def _wire(self, node: ClusterNode) -> Wire:
        if node not in self._wires:
            self._wires[node] = Wire(replace(self._address, host=node.host, port=node.port), self._timeout_s)
        return self._wires[node]
