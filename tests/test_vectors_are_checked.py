"""Vectors: read by id, refused when damaged. Run: pytest tests/test_vectors_are_checked.py"""

import numpy as np
import pytest
from safetensors.numpy import save_file

from feature_repo.vectors import Vectors
from run.artifacts import ArtifactError, open_artifact, write_artifact


def embedding(folder, item_id, vector, width=4):
    with write_artifact(
        folder, "embedding", {"width": width, "encoder_id": "e", "as_of": "2026-01-01"}
    ) as out:
        save_file({"item_id": item_id, "vector": vector}, out / "items.safetensors")
        empty = {"query_id": np.zeros(0, np.int64), "vector": np.zeros((0, width), np.float32)}
        save_file(empty, out / "queries.safetensors")
    return open_artifact(folder, "embedding")


def unit(rows, width=4, seed=0):
    vector = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return vector / np.linalg.norm(vector, axis=1, keepdims=True)


def test_vectors_come_back_by_id_and_unknown_ids_are_zero(tmp_path):
    ids = np.array([3, 7, 2**62], dtype=np.int64)
    vectors = Vectors.open(embedding(tmp_path / "e", ids, unit(3)))
    found_vectors, found = vectors.gather(np.array([2**62, 5, 3, 2**63 - 1]))
    assert found.tolist() == [True, False, True, False]
    assert (found_vectors[[0, 2]] == vectors.matrix[[2, 0]]).all() and (found_vectors[[1, 3]] == 0).all()
    assert vectors.rows([7, 8]).tolist() == [1, -1]
    assert vectors.queries.gather(np.array([1]))[1].tolist() == [False]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda ids, v: (ids, v * np.where(ids == 7, 2, 1)[:, None].astype(np.float32)),
            r"1 of 3 .*unit norm.*\[7\]",
        ),
        (lambda ids, v: (ids, np.where(ids[:, None] == 7, np.nan, v).astype(np.float32)), r"finite.*\[7\]"),
        (lambda ids, v: (ids[::-1].copy(), v), r"ascending item_ids, found 2 out of place"),
        (lambda ids, v: (ids, v[:, :3].copy()), r"shape \(3, 4\)"),
    ],
)
def test_damaged_vectors_are_refused_with_the_command_that_makes_them(tmp_path, damage, message):
    ids, vector = damage(np.array([3, 7, 9], dtype=np.int64), unit(3))
    with pytest.raises(ArtifactError, match=message) as error:
        Vectors.open(embedding(tmp_path / "e", ids, vector))
    assert "moon embed" in str(error.value)
