"""Strict reading of other parties' messages: a message becomes a struct, or the list of all that is wrong with it."""

from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from training_schemas.base import StrictWire
from training_schemas.progress import Fault

MAX_MESSAGE_BYTES = 1024 * 1024

# All that decoding a foreign message may raise: the last two come from deep nesting and from broken UTF-8.
UNREADABLE = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)

T = TypeVar("T", bound=StrictWire)


class InvalidMessageError(ValueError):
    """A message was refused; ``faults`` names the path and the reason of each fault."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(f"{fault.path or 'message'}: {fault.reason}" for fault in faults))
        self.faults = faults


def parse_json(body: bytes, *, max_bytes: int = MAX_MESSAGE_BYTES) -> Any:
    """Parse a message of at most ``max_bytes``. Raises `InvalidMessageError`."""
    if len(body) > max_bytes:
        raise refused("", f"message of {len(body)} bytes; at most {max_bytes} are read")
    try:
        return msgspec.json.decode(body)
    except RecursionError:
        raise refused("", "nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise refused("", f"not valid JSON: {error}") from None


def decode_strictly(body: bytes, kind: type[T]) -> T:
    """Decode a message into ``kind``. Raises `InvalidMessageError` with every fault, not only the first."""
    return convert_strictly(parse_json(body), kind)


def convert_strictly(value: Any, kind: type[T]) -> T:
    """Turn parsed JSON into ``kind``. Raises `InvalidMessageError` with every fault, not only the first."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        # msgspec stops at the first fault. Only then is the slower search for all of them worth its time.
        faults = list(_struct_faults(value, kind)) or [Fault(path="", reason=str(error))]
        raise InvalidMessageError(faults) from None


def refused(path: str, reason: str) -> InvalidMessageError:
    """Return an error for one fault."""
    return InvalidMessageError([Fault(path=path, reason=reason)])


def _struct_faults(value: Any, kind: type[msgspec.Struct]) -> Iterator[Fault]:
    if not isinstance(value, dict):
        yield Fault(path="", reason=f"expected an object, got {_json_name(value)}")
        return
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for name in value.keys() - fields.keys():
        yield Fault(path=name, reason="unknown field")
    for name, field in fields.items():
        if name in value:
            yield from _value_faults(value[name], field.type, name)
        elif field.required:
            yield Fault(path=name, reason="required field is missing")


def _value_faults(value: Any, kind: Any, path: str) -> Iterator[Fault]:
    faults = []
    if isinstance(value, dict):
        faults = [fault for key, item in value.items() for fault in _leaf_faults({key: item}, kind, f"{path}.{key}")]
    yield from faults or _leaf_faults(value, kind, path)


def _leaf_faults(value: Any, kind: Any, path: str) -> Iterator[Fault]:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        reason = str(error).partition(" - at `")[0]
        yield Fault(path=path, reason=f"{reason}{_choices(kind)}")


def _choices(kind: Any) -> str:
    info = inspect.type_info(kind)
    variants = info.types if isinstance(info, inspect.UnionType) else (info,)
    names = [str(member.value) for v in variants if isinstance(v, inspect.EnumType) for member in v.cls]
    names += [str(value) for v in variants if isinstance(v, inspect.LiteralType) for value in v.values]
    return f"; one of {', '.join(names)}" if names else ""


def _json_name(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
