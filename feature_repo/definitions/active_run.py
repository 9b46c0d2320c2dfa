"""Definitions of the active run for ``feast apply`` (``data`` is a link to the run's store).

This is the only module that Feast imports by itself (see .feastignore). Feast collects module attributes, hence the
update of the module's namespace.
"""

from pathlib import Path

from feature_repo.extras import read_extras
from feature_repo.repository import definitions
from feature_repo.views import EmbeddingRecord

HERE = Path.cwd()
globals().update(definitions(EmbeddingRecord.load(HERE), HERE, read_extras(HERE)))
