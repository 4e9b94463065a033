"""Turn the records of a data set into text: a column of text, a conversation, or a prompt and its completion.

Input: a record, such as a line of JSON or the row of a table. Output: its text.

`FORMATS` is the table to extend.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ligo_convert.data.chat_template import ChatTemplate, Message
from ligo_convert.errors import RecipeError
from ligo_convert.limits import RECORD_BYTES

FormatName = Literal["text", "chat", "completion"]

Where = Callable[[], str]

# Names of roles in data sets whose messages are `from` and `value`.
_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, kw_only=True)
class Format:
    """A form of records.

    Attributes:
        columns: default names of the columns that are read.
        example: values of these columns in an example, for messages.
        conversations: whether a record may be a conversation, which needs the tokenizer's chat template.
        read: values of the columns, template and place -> text; raises `_Unreadable`. The template is None where a record is only
            checked, or read to train a tokenizer.
    """

    columns: tuple[str, ...]
    example: tuple[Any, ...]
    conversations: bool
    read: Callable[[list[Any], ChatTemplate | None, Where], str]


class _Unreadable(Exception):
    """A record is not of its format. The argument says what was found."""


def is_text(value: object) -> bool:
    """Return True if a tokenizer accepts `value`: a string without unpaired surrogates, which JSON escapes can contain."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _text(values: list[Any], template: ChatTemplate | None, where: Where) -> str:
    [text] = values
    if not is_text(text):
        raise _Unreadable(
            "text that is no valid Unicode" if isinstance(text, str) else f"{type(text).__name__}, no text"
        )
    return str(text)


def _chat(values: list[Any], template: ChatTemplate | None, where: Where) -> str:
    return _conversation(_messages(values[0]), template, where)


def _completion(values: list[Any], template: ChatTemplate | None, where: Where) -> str:
    prompt, completion = values
    if is_text(prompt) and is_text(completion):
        return str(prompt) + str(completion)
    return _conversation([*_messages(prompt), *_messages(completion)], template, where)


def _conversation(messages: list[Message], template: ChatTemplate | None, where: Where) -> str:
    if not messages:
        raise _Unreadable("no messages")
    if template is None:
        return "\n".join(message["content"] for message in messages)
    return template.render(messages, where=where)


def _messages(value: object) -> list[Message]:
    """Return messages as `role` and `content`. Raises _Unreadable."""
    if not isinstance(value, list):
        raise _Unreadable(f"{type(value).__name__} in the place of a list of messages")
    return [_message(message) for message in value]


def _message(message: object) -> Message:
    if not isinstance(message, dict):
        raise _Unreadable(f"{type(message).__name__} in the place of a message")
    if message.get("tool_calls"):
        raise _Unreadable("a message with tool_calls, which are not supported")
    if "role" in message:
        role, content = message["role"], message.get("content")
    else:
        role, content = _ROLES.get(str(message.get("from"))), message.get("value")
    if isinstance(content, list):
        content = "".join(_parts(content))
    if not is_text(role) or not is_text(content):
        raise _Unreadable(
            f"a message with the keys {', '.join(sorted(map(str, message)))[:80]}, and no text of a known role"
        )
    return {"role": str(role), "content": str(content)}


def _parts(content: list[Any]) -> Iterator[str]:
    """Yield the texts of a message in parts. Raises _Unreadable for a part that is no text."""
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not is_text(part.get("text")):
            raise _Unreadable("a message with a part that is no text")
        yield str(part["text"])


_DIALOGUE = [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]

FORMATS: Mapping[FormatName, Format] = {
    "text": Format(columns=("text",), example=("...",), conversations=False, read=_text),
    "chat": Format(columns=("messages",), example=(_DIALOGUE,), conversations=True, read=_chat),
    "completion": Format(
        columns=("prompt", "completion"), example=("...", "..."), conversations=True, read=_completion
    ),
}


@dataclass(frozen=True, kw_only=True)
class Records:
    """How the records of a data set become text.

    Attributes:
        format: key of `FORMATS`.
        column: the column to read, for formats that read one; None for the default.
        template: chat template of the tokenizer; None where texts are only checked, or train a tokenizer.
    """

    format: FormatName = "text"
    column: str | None = None
    template: ChatTemplate | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the names of the columns that are read."""
        columns = FORMATS[self.format].columns
        return columns if self.column is None or len(columns) > 1 else (self.column,)

    @property
    def example(self) -> str:
        """Return a record of this format, for messages."""
        return json.dumps(dict(zip(self.columns, FORMATS[self.format].example, strict=True)))

    def lacking(self, names: Collection[str]) -> str | None:
        """Return the first column that is not among `names`; None if all are there."""
        return next((column for column in self.columns if column not in names), None)

    def text(self, record: Mapping[str, Any], *, where: Where) -> str:
        """Return the text of a record.

        Args:
            record: column -> value.
            where: returns where the record stands, for messages.

        Raises:
            RecipeError: a column is not there, or its value is not of the format; the text is too long; the template refuses it.
        """
        lacking = self.lacking(record)
        if lacking is not None:
            raise self._unreadable(where, f"no {lacking} among: {', '.join(sorted(map(str, record)))[:80]}")
        try:
            text = FORMATS[self.format].read([record[column] for column in self.columns], self.template, where)
        except _Unreadable as error:
            raise self._unreadable(where, str(error)) from None
        if len(text) > RECORD_BYTES.most:
            raise RecipeError(
                "data: text too long", where=where(), expected=str(RECORD_BYTES), found=f"{len(text):,} characters"
            )
        return text

    def _unreadable(self, where: Where, found: str) -> RecipeError:
        hint = "data.column names the column, data.format the form: " + ", ".join(FORMATS)
        return RecipeError("data: record without text", where=where(), expected=self.example, found=found, hint=hint)


TEXTS = Records()
