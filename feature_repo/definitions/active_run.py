"""What ``feast apply`` reads: the definitions for the active run (``data`` is a link to its store).

The only module that Feast imports by itself (see .feastignore); everything else is the package ``feature_repo``.
Feast looks at module attributes, hence the update of the module's own namespace.
"""

from pathlib import Path

from feature_repo.services import definitions
from feature_repo.views import EmbeddingRecord

globals().update(definitions(EmbeddingRecord.load(Path.cwd())))
