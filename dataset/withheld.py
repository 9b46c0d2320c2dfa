"""Judged queries that no model learns from: by them a run chooses how much words and pictures count in its search.

Chosen on queries that the encoder has learned by heart, its vectors would get the credit and new queries the worse
answers.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.identity import stable_hash

WITHHELD = 8  # one judged training query in so many


def withheld_queries(judgements: pa.Table) -> np.ndarray:
    """Ids of the queries of the judgements' training part that nothing is learned from, int64 ascending.

    They are chosen by a hash of the id, so that they stay the same when others come.

    Args:
        judgements: JUDGEMENTS.
    """
    train = judgements.filter(pc.equal(judgements["part"], "train"))
    judged = np.unique(train["query_id"].to_numpy())
    return judged[stable_hash(judged) % np.uint64(WITHHELD) == 0]
