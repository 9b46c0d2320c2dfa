"""A registry file that is replaced atomically.

Feast truncates the file and rewrites it: a reader in between finds a registry without views, and so does everybody
after a kill.
"""

from __future__ import annotations

import os
import uuid
from datetime import UTC, datetime

from feast.infra.registry.file import FileRegistryStore
from feast.protos.feast.core.Registry_pb2 import Registry


class WholeFileRegistryStore(FileRegistryStore):
    """Feast's registry file, complete at every moment."""

    def _write_registry(self, registry_proto: Registry) -> None:
        registry_proto.version_id = str(uuid.uuid4())
        registry_proto.last_updated.FromDatetime(datetime.now(UTC))
        self._filepath.parent.mkdir(exist_ok=True)
        temporary = self._filepath.with_name(f"{self._filepath.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as stream:
            stream.write(registry_proto.SerializeToString())
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self._filepath)
