"""A Redis Cluster read like one server: a message to every node, with the keys whose slots it has.

redis-py's own pipeline asks a node that hangs again for every key of it, one deadline each.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
from redis import RedisCluster, exceptions
from redis.cluster import ClusterNode
from redis.crc import key_slot

from moonstore.connection import Address, Wire
from moonstore.decode import Cells, Values
from moonstore.resp import Hmgets


class ClusterWire:
    """Connections to the nodes of a cluster.

    Args:
        client: knows which node has which slot, and learns it when it is told so.
        address: of any node; all are entered alike.
        timeout_s: for one question to one node.
    """

    def __init__(self, client: RedisCluster, address: Address, timeout_s: float) -> None:
        self._client, self._address, self._timeout_s = client, address, timeout_s
        self._wires: dict[ClusterNode, Wire] = {}

    def columns(self, commands: Hmgets, ids: np.ndarray, keys: list[bytes]) -> list[Values]:
        """What the hashes of N ids, whose keys these are, hold of each field.

        Raises:
            redis.exceptions.TimeoutError: a node hangs.
            redis.exceptions.ClusterError: a slot is not where it was, or a node is gone: let the client find out.
        """
        found: list[list[bytes | None]] = [[None] * len(ids) for _ in range(commands.fields)]
        try:
            for node, rows in self._rows(keys).items():
                reply = self._wire(node).ask(commands.message(ids[rows]))
                for field, column in zip(found, commands.columns(reply, len(rows)), strict=True):
                    values = column.values() if isinstance(column, Cells) else column
                    for row, value in zip(rows, values, strict=True):
                        field[row] = value
        except (
            exceptions.ConnectionError,
            exceptions.ResponseError,
            exceptions.RedisClusterException,
        ) as error:
            raise exceptions.ClusterError(f"the cluster is not as it was: {error}") from error
        return list(found)

    def _rows(self, keys: list[bytes]) -> dict[ClusterNode, list[int]]:
        rows = defaultdict(list)
        for row, key in enumerate(keys):
            rows[self._client.nodes_manager.get_node_from_slot(key_slot(key))].append(row)
        return rows

    def _wire(self, node: ClusterNode) -> Wire:
        if node not in self._wires:
            self._wires[node] = Wire(replace(self._address, host=node.host, port=node.port), self._timeout_s)
        return self._wires[node]
