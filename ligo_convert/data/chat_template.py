"""Render conversations with the chat template of a tokenizer.

Input: the folder of a tokenizer, and messages. Output: text with the special tokens that the model was trained with.

transformers runs the template, in Jinja's sandbox. A template is code of the source: it is used only where a recipe asks for conversations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ligo_convert.data.tokenizers import read_settings
from ligo_convert.errors import MachineError, RecipeError, SourceError
from ligo_convert.limits import TEMPLATE_CHARACTERS, TOKENIZER_CONFIG_BYTES

Message = Mapping[str, str]

# Templates of some models write the date of today, and then the same data would be other data tomorrow. The date is fixed.
DATE = "26 Jul 2024"
_FIXED_DATE = "{%- macro strftime_now(format) -%}" + DATE + "{%- endmacro -%}\n"

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """The chat template of a tokenizer.

    Attributes:
        text: the template; None where the tokenizer has none.
        special: name of a special token -> the token, as templates use them.
        where: where it comes from, for messages.
    """

    text: str | None
    special: Mapping[str, str]
    where: str

    def render(self, messages: Sequence[Message], *, where: Callable[[], str]) -> str:
        """Return a conversation as text.

        Args:
            messages: `role` and `content` of every message.
            where: returns where the conversation stands, for messages.

        Raises:
            RecipeError: the tokenizer has no template; the template refuses the conversation, or fails on it.
        """
        if self.text is None:
            raise no_template(self.where)
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            names: Mapping[str, Any] = {**self.special, "date_string": DATE}
            # Texts, and for each the places of its parts. The library says it returns a text.
            rendered: Any = render_jinja_template(
                [[dict(message) for message in messages]], chat_template=_FIXED_DATE + self.text, **names
            )
            return str(rendered[0][0])
        except Exception as error:
            # A template is a program: it raises what it likes.
            raise RecipeError(
                "the tokenizer's chat template does not accept this conversation",
                where=where(),
                found=f"{type(error).__name__}: {str(error)[:200]}",
                hint=f"the template is in {self.where}",
            ) from error


def load_chat_template(directory: Path, tokenizer: Any) -> ChatTemplate:
    """Read the chat template of a tokenizer.

    Args:
        directory: folder of the tokenizer.
        tokenizer: the tokenizer, for its special tokens.

    Raises:
        SourceError: a file is damaged, or the template is too long.
        MachineError: a file cannot be read.
    """
    special = {name: str(token) for name in _SPECIAL if (token := getattr(tokenizer, name, None)) is not None}
    found = template_text(directory)
    if found is None:
        return ChatTemplate(text=None, special=special, where=str(directory))
    text, where = found
    if len(text) > TEMPLATE_CHARACTERS.most:
        raise SourceError(
            "the chat template is too long", where=where, expected=str(TEMPLATE_CHARACTERS), found=len(text)
        )
    return ChatTemplate(text=text, special=special, where=str(where))


def no_template(where: str | Path) -> RecipeError:
    """Return the error for a tokenizer without a chat template."""
    return RecipeError(
        "conversations need the chat template of the tokenizer, and it has none",
        where=where,
        expected="chat_template.jinja, or chat_template in tokenizer_config.json",
        hint="name a tokenizer that has one in data.tokenizer",
    )


def template_text(directory: Path) -> tuple[str, Path] | None:
    """Return the template and its file, looked for where transformers looks; None if there is none.

    Raises:
        SourceError: a file is damaged.
        MachineError: a file cannot be read.
    """
    jinja = directory / "chat_template.jinja"
    try:
        if jinja.is_file():
            if jinja.stat().st_size > 4 * TEMPLATE_CHARACTERS.most:
                raise SourceError("the chat template is too long", where=jinja, expected=str(TEMPLATE_CHARACTERS))
            return jinja.read_text(encoding="utf-8"), jinja
    except UnicodeDecodeError as error:
        raise SourceError("not UTF-8 text", where=jinja, found=f"byte {error.start}") from None
    except OSError as error:
        raise MachineError(f"cannot be read: {error.strerror}", where=jinja) from None
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = (read_settings(directory / name, TOKENIZER_CONFIG_BYTES) or {}).get("chat_template")
        if isinstance(template, list):
            # Several templates with a name each; the one for plain conversations is `default`.
            named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
            template = named.get("default")
        if isinstance(template, str):
            return template, directory / name
    return None
