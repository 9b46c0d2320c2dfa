"""What the service may be asked: the defaults, and both sides of every limit."""

import base64

import pytest
from pydantic import ValidationError

from dataset.shop_ids import ALL_INT64, LARGEST_ID, IdKind
from serving.questions import (
    RecommendQuestion,
    Refused,
    SearchForm,
    SearchQuestion,
    SimilarQuestion,
    decode_base64,
    read_id,
)

MOST = {"user_id": "0", "k": "200", "category": "a" * 1000, "session": ["9223372036854775807"] * 100}


def test_what_is_not_said_is_the_default():
    asked = RecommendQuestion(user_id="7")
    assert (asked.user_id, asked.k, asked.category, asked.session) == ("7", 20, None, [])
    assert SimilarQuestion(item_id="7").model_dump() == {"item_id": "7", "k": 20}
    nothing = {"text": None, "user_id": None, "k": 20}
    assert SearchForm().model_dump() == nothing
    assert SearchQuestion().model_dump() == nothing | {"image_base64": None}


def test_the_largest_question_is_taken_as_it_is():
    asked = RecommendQuestion(**MOST)
    assert asked.k == 200 and asked.category == MOST["category"] and asked.session == MOST["session"]
    assert SimilarQuestion(item_id="a" * 1000, k="1").item_id == "a" * 1000
    assert SearchForm(text="a" * 1000, k="200").text == "a" * 1000
    assert SearchQuestion(text="a" * 1000, user_id=2**63 - 1, k=200).user_id == 2**63 - 1
    assert SearchQuestion(user_id=0, k=1).user_id == 0


@pytest.mark.parametrize(
    "more",
    [
        {"user_id": ""},
        {"user_id": "a" * 1001},
        {"user_id": 1},
        {"k": "0"},
        {"k": "201"},
        {"category": ""},
        {"category": "a" * 1001},
        {"session": ["1"] * 101},
        {"session": [""]},
        {"colour": "red"},
    ],
)
def test_one_step_beyond_a_limit_is_refused(more):
    with pytest.raises(ValidationError):
        RecommendQuestion(**(MOST | more))


@pytest.mark.parametrize(
    "question",
    [
        {"text": "a" * 1001},
        {"user_id": 2**63},
        {"user_id": -1},
        {"user_id": "1"},
        {"user_id": True},
        {"k": 0},
        {"k": 201},
        {"k": "20"},
        {"text": 5},
        {"image_base64": b"a"},
        {"colour": "red"},
    ],
)
def test_the_body_of_a_search_is_refused_beyond_its_limits_and_with_other_types(question):
    with pytest.raises(ValidationError):
        SearchQuestion(**question)


def test_an_id_in_an_address_is_one_of_the_shops():
    assert read_id("item_id", str(2**63 - 1), ALL_INT64) == 2**63 - 1 == LARGEST_ID
    assert read_id("item_id", "0007", ALL_INT64) == 7
    for text in ("9223372036854775808", "-1", "1.0", "one", "7a", "", "٧", "9" * 20):
        with pytest.raises(Refused, match="^item_id: expected ") as refused:
            read_id("item_id", text, ALL_INT64)
        assert refused.value.status == 422
    with pytest.raises(Refused, match="^user_id: expected a whole number in decimal digits$"):
        read_id("user_id", "7a", ALL_INT64)


@pytest.mark.parametrize(
    ("kind", "taken", "refused"),
    [
        (
            IdKind.INTEGER,
            {"-5": -5, "0": 0, "1" + "0" * 99: 10**99},
            ["007", "-0", "7.0", "seven", "+7", "", "٧"],
        ),
        (IdKind.TEXT, {"007": "007", "7": "7", " é/%": " é/%", "x" * 1000: "x" * 1000}, ["", "x" * 1001]),
        (IdKind.ANY, {"007": "007", "7": "7"}, [""]),
    ],
)
def test_an_id_of_a_shop_whose_ids_are_no_integers_of_64_bits(kind, taken, refused):
    kinds = ALL_INT64 | {"user_id": kind}
    assert {text: read_id("user_id", text, kinds) for text in taken} == taken
    for text in refused:
        with pytest.raises(Refused, match="^user_id: expected an "):
            read_id("user_id", text, kinds)


def test_a_field_that_nobody_knows_is_refused():
    with pytest.raises(ValidationError):
        SimilarQuestion(item_id="1", colour="red")
    with pytest.raises(ValidationError):
        SearchForm(colour="red")


def test_a_picture_in_json_is_plain_base64_and_nothing_else():
    assert decode_base64(base64.b64encode(b"\x00\xff!").decode()) == b"\x00\xff!"
    for bad in ("a", "YWJj\n", "YW Jj", "ü"):
        with pytest.raises(Refused, match="^image_base64 is not base64$") as refused:
            decode_base64(bad)
        assert (refused.value.status, refused.value.reason) == (422, "image_base64 is not base64")
