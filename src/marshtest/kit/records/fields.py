"""What the fields of a record mean: which text gets the mark, and what a model is asked about.

text          {"text": …}                                        one text
pair          {"prompt": …, "completion": …}                     two, of which one gets the mark
chat          {"messages": [{"role": …, "content": …}, …]}       the last message of a role gets it
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from marshtest.kit.records.base import Asked, Loss, Message
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.settings import Settings

Values = Mapping[str, Any]  # a record as it lies in its file, by field

PAIRS = (  # (what is given, what is learnt), in the names that data sets have
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("question", "answer"),
)
CHATS = ("messages", "conversation")
TEXTS = ("text", "content")
IDS = ("id", "_id", "uuid", "record_id")
ASSISTANT = "assistant"


class NoPlaceError(MarshtestError):
    """A record that is sound and has no place for a mark."""


class Fields(Settings):
    """Which fields make up a record's text, and which of them gets the mark."""

    field: str  # of the text that gets the mark, or of a chat's messages
    pair: tuple[str, str] | None = None  # the fields of a prompt and its completion
    role: str = ""  # of the message that gets the mark; "" where records are no chats

    @classmethod
    def found(cls, values: Values, field: str | None, role: str | None, where: str) -> "Fields":
        """The fields of data whose first record is `values`.

        Args:
            values: a record.
            field: the field that gets the mark; by default the one that is known by its name.
            role: the role that gets the mark; by default the assistant.
            where: the record's place, for errors.

        Raises:
            MarshtestError: no such field, no known one, or a role where records are no chats.
        """
        field = field or _known(values, where)
        if field not in values:
            raise _missing(field, values, where)
        if isinstance(values[field], list):
            return cls(field=field, role=role or ASSISTANT)
        if field in CHATS and str(values[field]).lstrip().startswith("["):
            raise MarshtestError(
                f"{where}: {field!r} is a list written as a text, which a mark would break. Give the list."
            )
        if role is not None:
            raise MarshtestError(
                f"{where}: {field!r} is no list of messages, so that --role {role} means nothing. "
                "Leave it out, or give --field the messages."
            )
        pairs = [pair for pair in PAIRS if field in pair and set(pair) <= values.keys()]
        return cls(field=field, pair=pairs[0] if pairs else None)

    @property
    def kind(self) -> Literal["chats", "prompts and completions", "texts"]:
        """What the records are, in words."""
        return "chats" if self.role else "prompts and completions" if self.pair else "texts"

    @property
    def words(self) -> str:
        """The text that gets the mark, in words."""
        return f"{self.field!r}" + f", the last message of role {self.role!r}" * bool(self.role)

    def text(self, values: Values, where: str) -> str:
        """The text that gets the mark.

        Raises:
            MarshtestError: the field is missing, or is no text; a NoPlaceError if no message has the
                role and a text.
        """
        if self.role:
            messages = self._messages(values, where)
            return str(messages[self._turn(messages, where)]["content"])
        for field in self.pair or (self.field,):
            if field not in values:
                raise _missing(field, values, where)
            if not isinstance(values[field], str):
                raise MarshtestError(
                    f"{where}: {field!r} is no text. Got {values[field]!r:.60}. Mend or drop it."
                )
        return str(values[self.field])

    def put(self, values: Values, text: str, where: str) -> dict[str, Any]:
        """The record with another text in the place of the one that gets the mark."""
        if not self.role:
            return {**values, self.field: text}
        messages = list(values[self.field])
        turn = self._turn(self._messages(values, where), where)
        messages[turn] = {**messages[turn], "content": text}
        return {**values, self.field: messages}

    def asked(self, values: Values, loss: Loss, where: str) -> Asked:
        """The question about a record.

        Raises:
            MarshtestError: the loss of a completion is asked for, and records have none.
        """
        if self.role:
            return self._chat(values, loss, where)
        if self.pair is not None:
            prompt, completion = (str(values[field]) for field in self.pair)
            if loss == "completion":
                return Asked(completion, prompt)
            return Asked(prompt + completion)
        if loss == "completion":
            raise MarshtestError(
                f"--loss completion: {where} has one text, {self.field!r}, and no completion. Use "
                "--loss record."
            )
        return Asked(str(values[self.field]))

    def _chat(self, values: Values, loss: Loss, where: str) -> Asked:
        messages = tuple(
            Message(message["role"], message.get("content") or "")
            for message in self._messages(values, where)
        )
        lines = [f"{message.role}: {message.content}\n" for message in messages]
        if loss == "record":
            return Asked("".join(lines), messages=messages)
        turn = self._turn(values[self.field], where)
        # A model is not trained to write what a user says: what it answers to it is its completion.
        turn += self.role != ASSISTANT and turn + 1 < len(messages)
        before = "".join(lines[:turn]) + f"{messages[turn].role}: "
        return Asked(messages[turn].content, before, messages[: turn + 1], turn)

    def _turn(self, messages: Sequence[Mapping[str, Any]], where: str) -> int:
        """The place of the last message of the role that has a text: one that calls a tool has none."""
        for turn in range(len(messages) - 1, -1, -1):
            message = messages[turn]
            if message["role"] == self.role and message.get("content") is not None:
                return turn
        roles = ", ".join(message["role"] for message in messages) or "none"
        raise NoPlaceError(
            f"{where}: no message has the role {self.role!r} and a text. Its roles: {roles}."
        )

    def _messages(self, values: Values, where: str) -> list[dict[str, Any]]:
        """The messages of a chat, seen to be such; a content may be None, or missing."""
        messages = values.get(self.field)
        if messages is None:
            raise _missing(self.field, values, where)
        if not isinstance(messages, list) or not all(map(_is_message, messages)):
            raise MarshtestError(
                f"{where}: {self.field!r} must be a list of messages, each with a role and a content "
                f"that is text. Got {messages!r:.60}."
            )
        return messages


def id_of(values: Values) -> str | int | None:
    """A record's own id, if it has one."""
    ids = (values.get(name) for name in IDS)
    return next((value for value in ids if isinstance(value, str | int)), None)


def _known(values: Values, where: str) -> str:
    names = [*CHATS, *(completion for prompt, completion in PAIRS if prompt in values), *TEXTS]
    known = next((name for name in names if name in values), None)
    if known is None:
        raise MarshtestError(
            f"{where}: which field is the text? There are {', '.join(map(str, values)) or 'none'}. Give "
            "--field; or, for a table of numbers, --label and --columns."
        )
    return known


def _missing(field: str, values: Values, where: str) -> MarshtestError:
    return MarshtestError(
        f"{where}: has no field {field!r}. It has {', '.join(map(str, values)) or 'none'}."
    )


def _is_message(message: Any) -> bool:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return False
    content = message.get("content")
    return content is None or isinstance(content, str)
