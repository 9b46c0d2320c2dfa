"""What content shows beyond the fields: planted residuals, and a ridge regression written out.

Run: pytest tests/test_content.py
"""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from retrieval import content as module
from retrieval.content import PRIOR, Content, Part
from retrieval.properties import LOOKS_SPACE, VECTORS_SPACE, Properties
from retrieval.words import Vocabulary

ITEMS = 400


@pytest.fixture(scope="module")
def shop():
    """Items with a brand, a colour, a price and a product each; vectors of 12 numbers that tell brands above all."""
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, 5, ITEMS), rng.integers(-1, 4, ITEMS), np.arange(ITEMS) // 2], axis=1)
    price, shape = rng.normal(size=(ITEMS, 1)), rng.normal(size=ITEMS)
    own = rng.normal(size=(5, 12)) * 5
    vectors = own[codes[:, 0]] + price @ rng.normal(size=(1, 12)) * 3 + rng.normal(size=(ITEMS, 12)) * 0.3
    vectors[:, 4] += shape
    vectors[:7] = 0
    spaces = {"price": price, LOOKS_SPACE: rng.normal(size=(ITEMS, 3)), VECTORS_SPACE: vectors}
    values = tuple({str(n): n for n in range(count)} for count in (5, 4, ITEMS // 2))
    return Properties(
        item_ids=np.arange(ITEMS),
        fields=("brand", "colour", "product"),
        codes=codes.astype(np.int32),
        spaces={name: rows.astype(np.float32) for name, rows in spaces.items()},
        values=values,
        price=(0.0, 1.0),
        bases={},
        vocabulary=Vocabulary({}, np.empty(0, np.float32)),
    ), shape


def test_what_the_fields_leave_is_the_residual_of_a_ridge_regression(shop, monkeypatch):
    properties, _ = shop
    monkeypatch.setattr(module, "SWEEPS", 200)
    rows = properties.spaces[VECTORS_SPACE]
    there = rows.any(axis=1)
    found = Part.left_by_fields(rows, properties).of(rows, properties)
    hot = [
        codes[:, None] == np.arange(count)
        for codes, count in zip(properties.codes.T[:2], (5, 4), strict=True)
    ]
    described = np.concatenate([properties.spaces["price"], *hot], axis=1)[there]
    centred = rows[there] - rows[there].mean(axis=0)
    slow = centred - Ridge(alpha=PRIOR, fit_intercept=False).fit(described, centred).predict(described)
    length = np.sqrt(np.square(slow).sum(axis=1).mean())
    np.testing.assert_allclose(found[there], slow / length, atol=2e-4)
    assert not found[~there].any(), "nothing is known of an item without a vector"


def test_what_only_vectors_tell_is_among_the_strongest_numbers(shop, monkeypatch):
    properties, shape = shop
    monkeypatch.setattr(module, "PRIOR", 1.0)
    there = properties.spaces[VECTORS_SPACE].any(axis=1)
    before = properties.spaces[VECTORS_SPACE][there]
    first = np.linalg.svd(before - before.mean(axis=0), full_matrices=False)[0][:, 0]
    rows = Content.of(properties, [VECTORS_SPACE]).rows(properties)[there]
    assert (
        abs(np.corrcoef(rows[:, 0], shape[there])[0, 1])
        > 0.85
        > 0.3
        > abs(np.corrcoef(first, shape[there])[0, 1])
    )


def test_spaces_weigh_alike_and_turning_the_content_turns_its_rows(shop):
    properties, _ = shop
    whole = Content.of(properties, [LOOKS_SPACE, VECTORS_SPACE])
    parts = [one.of(properties.spaces[name], properties) for name, one in whole.parts.items()]
    strength = [np.square(one).sum() for one in parts]
    assert strength[0] == pytest.approx(strength[1], rel=0.1)
    rows = whole.rows(properties)
    assert np.square(rows[7:]).mean() == pytest.approx(1, rel=0.05), "a number has the mean square 1"
    by = np.random.default_rng(1).normal(size=(parts[0].shape[1], 2)).astype(np.float32)
    np.testing.assert_allclose(whole.turned(by).rows(properties), whole.rows(properties) @ by, atol=1e-3)


def test_of_a_space_only_its_last_numbers_may_be_read(shop):
    properties, _ = shop
    vectors = properties.spaces[VECTORS_SPACE].copy()
    vectors[7:20, -3:] = 0
    properties = properties.with_vectors(vectors)
    short = properties.with_vectors(vectors[:, -3:])
    found = Content.of(properties, [VECTORS_SPACE], last=3).rows(properties)
    np.testing.assert_array_equal(found, Content.of(short, [VECTORS_SPACE]).rows(short))
    assert found.shape == (ITEMS, 3) and found[20:].all()
    assert not found[:20].any(), "where these are zero nothing is known, whatever the others say"
