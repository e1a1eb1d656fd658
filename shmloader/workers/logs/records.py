"""A record of `logging` as bytes, and back: what a worker process says, for the handlers of the loop's process.

What arrives can be formatted by any handler: the message's template and its arguments where these are plain values, the
text that they make otherwise. Tracebacks arrive as text. Nothing of any size is pickled: what a record was given to
format may be a tensor.
"""

from __future__ import annotations

import logging
import pickle
from typing import Any

# Of one record. A text is cut; then there is room for three of them, and for what else there is.
MAX_RECORD_BYTES = 1 << 16
_MAX_TEXT_BYTES = 18_000
_MAX_NAME_BYTES = 1_000
_MAX_EXTRA_BYTES = 4_096
_EXTRA_OVERHEAD_BYTES = 64  # of one that is cut: the words that say so, and what a pickle adds

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_TEXTS = ("msg", "exc_text", "stack_info")
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_formatter = logging.Formatter()


def packed(record: logging.LogRecord) -> bytes:
    """Returns a record as bytes, `MAX_RECORD_BYTES` at most. Called in the worker, where it was made.

    Raises:
        Exception: what formatting the message raised.
    """
    fields = {name: value for name, value in vars(record).items() if name in _OWN and _is_plain(value)}
    # Which may be of the user's own classes: levels are, of enums.
    fields |= {"name": str(record.name), "levelno": int(record.levelno), "levelname": str(record.levelname)}
    fields["args"] = None
    if type(record.msg) is str and _is_plain(record.args):
        record.getMessage()  # which says here what is wrong with it
        fields["args"] = record.args
    else:
        fields["msg"] = record.getMessage()
    if record.exc_info and not record.exc_text:
        fields["exc_text"] = _formatter.formatException(record.exc_info)
    extras = {name: value for name, value in vars(record).items() if name not in _OWN and type(name) is str}
    data = pickle.dumps((fields, {name: _extra(value) for name, value in extras.items()}), 5)
    return data if len(data) <= MAX_RECORD_BYTES else _packed_in_short(_cut_all(fields, record), extras)


def unpacked(data: bytes) -> logging.LogRecord:
    """Returns the record. Called in the loop's process."""
    fields, extras = pickle.loads(data)
    for name, (value, is_pickled) in extras.items():
        fields[name] = _unpickled(value) if is_pickled else value
    if fields.get("levelname") == f"Level {fields['levelno']}":  # a name for it may be known here only
        fields["levelname"] = logging.getLevelName(fields["levelno"])
    return logging.makeLogRecord(fields)


def _is_plain(value: Any, depth: int = 3) -> bool:
    """Whether a value is made of types of Python's own, so that it is the same in another process."""
    if type(value) in _PLAIN:
        return True
    if not depth:
        return False
    if type(value) is dict:
        return all(type(key) in _PLAIN and _is_plain(one, depth - 1) for key, one in value.items())
    return type(value) in (tuple, list) and all(_is_plain(one, depth - 1) for one in value)


def _packed_in_short(fields: dict[str, Any], extras: dict[str, Any]) -> bytes:
    """Returns a record that is too large, with what there is room for of each attribute of the user's.

    None is left out, since formatters name them, unless there are hundreds.
    """
    bare = pickle.dumps((fields, dict.fromkeys(extras, (None, False))), 5)
    room = (MAX_RECORD_BYTES - len(bare)) // max(1, len(extras)) - _EXTRA_OVERHEAD_BYTES
    short = {name: _extra(value, room, room) for name, value in extras.items()} if room >= 0 else {}
    return pickle.dumps((fields, short), 5)


def _extra(value: Any, nbytes: int = _MAX_EXTRA_BYTES, plain_nbytes: int = MAX_RECORD_BYTES) -> tuple[Any, bool]:
    """Returns what arrives of an attribute of the user's, and whether it is a pickle: else it is the value, or text.

    Args:
        value: the attribute.
        nbytes: the most that a pickle or a text may take.
        plain_nbytes: the most that a value may take of which no pickle is needed.
    """
    is_plain = _is_plain(value)
    try:
        data = pickle.dumps(value, 5)
        if len(data) <= (plain_nbytes if is_plain else nbytes):
            return (value, False) if is_plain else (data, True)
    except Exception:  # code of the user's
        pass
    try:
        return _cut(value if type(value) is str else repr(value), nbytes), False
    except Exception:
        return f"<{type(value).__qualname__}>", False


def _unpickled(data: bytes) -> Any:
    try:
        return pickle.loads(data)
    except Exception as error:
        return f"<not unpickled: {error!r}>"


def _cut_all(fields: dict[str, Any], record: logging.LogRecord) -> dict[str, Any]:
    """Returns what is left of a record that is too large."""
    fields = {**fields, "msg": record.getMessage(), "args": None}
    for name, value in fields.items():
        if isinstance(value, (str, bytes)):
            text = value if isinstance(value, str) else repr(value)
            fields[name] = _cut(text, _MAX_TEXT_BYTES if name in _TEXTS else _MAX_NAME_BYTES)
    return fields


def _cut(text: str, nbytes: int) -> str:
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= nbytes:
        return text
    return f"{data[:nbytes].decode('utf-8', 'ignore')}... ({len(data) - nbytes} more bytes were cut)"
