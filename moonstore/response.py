"""Feast's answer to an online read, made from columns of stored bytes.

Feast's own ``OnlineResponse`` holds a protobuf object per value and turns each into Python by itself. Here the
protobuf answer (what ``feast serve`` and the remote store ask for), the Python values and what ``moonstore.serve``
writes are made column by column, and only when asked for. The slow twin is ``OnlineResponse`` over the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from feast.feature_server_utils import convert_response_to_dict
from feast.online_response import TIMESTAMP_POSTFIX, OnlineResponse
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import feast_value_type_to_python_type
from feast.value_type import ValueType
from google.protobuf.timestamp_pb2 import Timestamp

from moonstore.decode import FIXED, Cells, Values, decode, encoded_varint
from moonstore.encode import encode_stamps

# Types whose decoded column is, as a list, what Feast makes of each value.
SAME = {"int32", "int64", "bool", "string", *FIXED}
SAME |= {f"{kind}_list" for kind in ("int32", "int64", *FIXED)}
STATUSES = np.array([FieldStatus.Name(one) for one in (FieldStatus.NOT_FOUND, FieldStatus.PRESENT)])
LENGTH_DELIMITED = 2  # wire type of protobuf


@dataclass(frozen=True)
class Part:
    """The answer of one view to N rows.

    Attributes:
        names: of its features, as they are answered.
        kinds: their types, as in ``moonstore.decode``.
        columns: their stored values, of the entities that were read.
        present: bool (entities), per feature: whether it is stored.
        event_us: int64 (entities), the rows' event times in microseconds; 0 where there is none.
        rows: int64 (N), which entity each row is; None: each is one of its own.
    """

    names: list[str]
    kinds: list[str]
    columns: Sequence[Cells | Values]
    present: list[np.ndarray]
    event_us: np.ndarray
    rows: np.ndarray | None

    def python(self, place: int, of: ValueType | None) -> list[Any]:
        """The values of one feature as Feast gives them; None where there is none."""
        found = self._numbers_or_texts(place)
        if found is not None:
            return found
        return [
            feast_value_type_to_python_type(Value.FromString(one), of)
            for one in self._of_rows(self._bytes(place))
        ]

    def json(self, place: int) -> list[Any]:
        """The values of one feature as Feast's server writes them; None where there is none."""
        found = self._numbers_or_texts(place)
        if found is not None:
            return found
        alone = RESPONSE.FromString(_field(RESPONSE, "results", self._values(place)))
        values: list[Any] = convert_response_to_dict(alone)["results"][0]["values"]
        return values

    def _numbers_or_texts(self, place: int) -> list[Any] | None:
        """The values of one feature, decoded together; None: its type, or that of a stored value, is another."""
        if self.kinds[place] not in SAME:
            return None
        try:
            found = decode(self.columns[place], self.kinds[place])
        except ValueError:  # the view had another type when the row was written
            return None
        valid = found.valid & self.present[place]
        if self.rows is not None:
            found, valid = found.take(self.rows), valid[self.rows]
        values: list[Any] = found.values.tolist()
        if found.values.dtype == object and self.kinds[place].endswith("_list"):
            values = [one.tolist() for one in values]
        if valid.all():
            return values
        return [one if there else None for one, there in zip(values, valid.tolist(), strict=True)]

    def seconds(self) -> list[int]:
        """Event times of the rows, in seconds since 1970."""
        found: list[int] = self._of_rows((self.event_us // 1_000_000).tolist())
        return found

    def times(self) -> list[str]:
        """Event times of the rows as Feast's server writes them."""
        event_us = self.event_us.tolist()
        written = {us: _written(us) for us in set(event_us)}
        return self._of_rows([written[us] for us in event_us])

    def statuses(self, place: int) -> list[str]:
        """Whether each row has one feature, as Feast's server writes it."""
        return self._of_rows(STATUSES[self.present[place].astype(int)].tolist())

    def vectors(self) -> bytes:
        """The features as serialized results of Feast's answer."""
        stamps = _repeated("event_timestamps", self._of_rows(encode_stamps(self.event_us)))
        out = []
        for place, present in enumerate(self.present):
            status = np.where(present, FieldStatus.PRESENT, FieldStatus.NOT_FOUND).astype(np.uint8)
            statuses = (status if self.rows is None else status[self.rows]).tobytes()
            vector = self._values(place) + _field(VECTOR, "statuses", statuses) + stamps
            out.append(_field(RESPONSE, "results", vector))
        return b"".join(out)

    def _values(self, place: int) -> bytes:
        column = self.columns[place]
        if isinstance(column, Cells) and column.apart and self.rows is None and self.present[place].all():
            ((_, matrix),) = column.groups() or ((None, np.zeros((len(column), 0), np.uint8)),)
            head = np.frombuffer(_head(VECTOR, "values", matrix.shape[1]), np.uint8)
            return np.hstack([np.broadcast_to(head, (len(matrix), len(head))), matrix]).tobytes()
        return _repeated("values", self._of_rows(self._bytes(place)))

    def _bytes(self, place: int) -> list[bytes]:
        column = self.columns[place]
        values = column.values() if isinstance(column, Cells) else column
        return [
            one if one and there else b""
            for one, there in zip(values, self.present[place].tolist(), strict=True)
        ]

    def _of_rows(self, values: list[Any]) -> list[Any]:
        return values if self.rows is None else [values[row] for row in self.rows.tolist()]


class ColumnResponse(OnlineResponse):
    """Feast's answer, made column by column when it is asked for.

    Args:
        keys: the join keys of the rows.
        whole: makes Feast's answer with the join keys alone.
        parts: one per view.
        feature_types: name -> type, for Feast's conversion.
    """

    def __init__(
        self,
        keys: dict[str, list[Any]],
        whole: Callable[[], GetOnlineFeaturesResponse],
        parts: list[Part],
        feature_types: dict[str, ValueType],
    ) -> None:
        self._keys, self._whole, self._parts, self._feature_types = keys, whole, parts, feature_types
        self._proto: GetOnlineFeaturesResponse | None = None

    @property
    def proto(self) -> GetOnlineFeaturesResponse:  # type: ignore[override]
        """The whole answer as Feast sends it."""
        if self._proto is None:
            whole = self._whole()
            for part in self._parts:
                add_to(whole, part)
            self._proto = whole
        return self._proto

    def to_dict(self, include_event_timestamps: bool = False) -> dict[str, Any]:
        """Name -> one value per row; for the argument see Feast's ``OnlineResponse.to_dict``."""
        answer: dict[str, Any] = {}
        for name, values in self._keys.items():
            answer[name] = list(values)
            if include_event_timestamps:
                answer[name + TIMESTAMP_POSTFIX] = [0] * len(values)
        for part in self._parts:
            for place, name in enumerate(part.names):
                answer[name] = part.python(place, self._feature_types.get(name))
                if include_event_timestamps:
                    answer[name + TIMESTAMP_POSTFIX] = part.seconds()
        return answer

    def json(self) -> dict[str, Any]:
        """The whole answer as Feast's server writes it (its slow twin is ``convert_response_to_dict``)."""
        answer = convert_response_to_dict(self._whole())
        names = answer.setdefault("metadata", {}).setdefault("feature_names", [])
        for part in self._parts:
            names += part.names
            times = part.times()
            answer["results"] += [
                {"values": part.json(place), "statuses": part.statuses(place), "event_timestamps": times}
                for place in range(len(part.names))
            ]
        return answer


def add_to(answer: GetOnlineFeaturesResponse, part: Part) -> None:
    """Append the features of a view to Feast's answer."""
    answer.metadata.feature_names.val.extend(part.names)
    answer.MergeFromString(part.vectors())


RESPONSE, VECTOR = GetOnlineFeaturesResponse, GetOnlineFeaturesResponse.FeatureVector


def _written(us: int) -> str:
    seconds, us = divmod(us, 1_000_000)
    text: str = Timestamp(seconds=seconds, nanos=us * 1000).ToJsonString()
    return text


def _head(message: Any, field: str, length: int) -> bytes:
    """Tag and length before the content of a field."""
    number = message.DESCRIPTOR.fields_by_name[field].number
    return encoded_varint(number << 3 | LENGTH_DELIMITED) + encoded_varint(length)


def _field(message: Any, field: str, content: bytes) -> bytes:
    return _head(message, field, len(content)) + content


def _repeated(field: str, contents: list[bytes]) -> bytes:
    """The elements of a repeated field of a result."""
    heads = {length: _head(VECTOR, field, length) for length in set(map(len, contents))}
    return b"".join([heads[len(one)] + one for one in contents])
