"""A registry file that is replaced atomically.

Feast truncates the file and rewrites it: a reader in between finds a registry without views, and so does everybody
after a kill.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from feast.infra.registry.file import FileRegistryStore
from feast.protos.feast.core.Registry_pb2 import Registry

from moonstore.disk import make_folder, writing
from moonstore.files import fsync, locked


class WholeFileRegistryStore(FileRegistryStore):
    """Feast's registry file, complete at every moment."""

    def _write_registry(self, registry_proto: Registry) -> None:
        registry_proto.version_id = str(uuid.uuid4())
        registry_proto.last_updated.FromDatetime(datetime.now(UTC))
        make_folder(self._filepath.parent)
        # Of two writers at once each needs a file of its own; under a lock the name can be the same every time, and
        # what a killed writer leaves is overwritten by the next.
        with locked(self._filepath.with_name(f"{self._filepath.name}.lock")), writing(self._filepath):
            temporary = self._filepath.with_name(f"{self._filepath.name}.tmp")
            temporary.write_bytes(registry_proto.SerializeToString())
            fsync(temporary)
            temporary.replace(self._filepath)
            fsync(self._filepath.parent)
