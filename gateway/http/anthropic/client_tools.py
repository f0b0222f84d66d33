"""Tools whose schema Anthropic defines and which the client runs: functions like any other.

A client sends their `type` and `name` alone. The model there was trained on them; a model here
reads the fields and what they mean, in the schemas below, which are those of Anthropic's
documentation (bash, text editor and memory tool) in our words.
"""

import re
from dataclasses import dataclass
from typing import Any, Final

from gateway.errors import InvalidRequestError, UnsupportedFieldError

Block = dict[str, Any]
_OF_CLIENTS: Final = re.compile(
    r"(bash|text_editor|memory|computer|computer_toolset|browser_toolset)_\d{8}"
)
_NEEDS_PICTURES: Final = ("computer", "browser")


@dataclass(frozen=True, slots=True)
class ClientTool:
    """A tool that a client runs.

    Attributes:
        name: The only one that it may have.
        description: For the model.
        parameters: A JSON schema.
    """

    name: str
    description: str
    parameters: Block


def _text(description: str) -> Block:
    return {"type": "string", "description": description}


def _number(description: str) -> Block:
    return {"type": "integer", "description": description}


def _schema(required: list[str], **properties: Block) -> Block:
    found: Block = {"type": "object", "properties": properties}
    return found | ({"required": required} if required else {}) | {"additionalProperties": False}


def _command(*names: str) -> Block:
    return {"type": "string", "enum": list(names), "description": "What to do."}


_RANGE: Final = {
    "type": "array",
    "items": {"type": "integer"},
    "minItems": 2,
    "maxItems": 2,
    "description": "For `view` of a file: its first and last line, from 1; -1 is the last one.",
}
_FILE_TEXT: Final = _text("For `create`: the text of the new file.")
_OLD: Final = _text(
    "For `str_replace`: the text to replace. It must stand in the file exactly once, with the same"
    " spaces and line breaks."
)
_NEW: Final = "For `str_replace`: the text in its place; without it the old text is deleted."
_LINE: Final = _number("For `insert`: the line behind which to insert; 0 is before the first.")
_INSERTED: Final = _text("For `insert`: the text to insert.")
_BASH: Final = ClientTool(
    "bash",
    "Run commands in a bash shell, which stays the same from call to call.",
    _schema(
        [],
        command=_text("The command to run; needed unless the shell is restarted."),
        restart={"type": "boolean", "description": "True starts the shell again."},
    ),
)


def _editor(name: str, *more: str, inserted: str) -> ClientTool:
    new, properties = _NEW, {}
    if inserted == "new_str":
        new += " For `insert`: the text to insert."
    else:
        properties[inserted] = _INSERTED
    undo = " `undo_edit` takes back the last edit of a file." if more else ""
    return ClientTool(
        name,
        "View, create and edit files of text. `view` shows a file with the numbers of its lines, or"
        " what is in a folder; `create` writes a new file; `str_replace` replaces a text in a file;"
        f" `insert` inserts one behind a line.{undo}",
        _schema(
            ["command", "path"],
            command=_command("view", "create", "str_replace", "insert", *more),
            path=_text("Of the file or folder."),
            view_range=_RANGE,
            file_text=_FILE_TEXT,
            old_str=_OLD,
            new_str=_text(new),
            insert_line=_LINE,
            **properties,
        ),
    )


_OLD_EDITOR: Final = _editor("str_replace_editor", "undo_edit", inserted="new_str")
_EDITOR: Final = _editor("str_replace_based_edit_tool", inserted="insert_text")
_MEMORY: Final = ClientTool(
    "memory",
    "Keep notes in files under `/memories` that last beyond this conversation. `view` shows a file"
    " or what is in a folder; `create` writes a file; `str_replace` replaces a text in a file;"
    " `insert` inserts one behind a line; `delete` deletes a file or folder; `rename` moves one."
    " Look at `/memories` first, for notes of earlier work.",
    _schema(
        ["command"],
        command=_command("view", "create", "str_replace", "insert", "delete", "rename"),
        path=_text("Of the file or folder, for all but `rename`, as `/memories/notes.md`."),
        view_range=_RANGE,
        file_text=_FILE_TEXT,
        old_str=_OLD,
        new_str=_text(_NEW),
        insert_line=_LINE,
        insert_text=_INSERTED,
        old_path=_text("For `rename`: what it is called."),
        new_path=_text("For `rename`: what it will be called."),
    ),
)
CLIENT_TOOLS: Final = {
    "bash_20241022": _BASH,
    "bash_20250124": _BASH,
    "text_editor_20241022": _OLD_EDITOR,
    "text_editor_20250124": _OLD_EDITOR,
    "text_editor_20250429": _EDITOR,
    "text_editor_20250728": _EDITOR,
    "memory_20250818": _MEMORY,
}
"""By their `type`."""


def client_function(tool: Block, where: str) -> Block | None:
    """The function that a tool of the client's is; None for one that Anthropic runs.

    Args:
        tool: Whose `type` is a text, and not `custom`.
        where: Its place in the request.

    Raises:
        InvalidRequestError: It has another name than tools of its type, or can't be served.
    """
    kind: str = tool["type"]
    known = CLIENT_TOOLS.get(kind)
    if known is None:
        if _OF_CLIENTS.fullmatch(kind):
            raise _unserved(kind, f"{where}.type")
        return None
    if tool.get("name") != known.name:
        param = f"{where}.name"
        raise InvalidRequestError(
            f"Invalid `{param}`: a tool of type `{kind}` is called `{known.name}`.", param=param
        )
    description, longest = known.description, tool.get("max_characters")
    if longest is not None and kind == "text_editor_20250728":
        if not isinstance(longest, int) or isinstance(longest, bool) or longest < 1:
            param = f"{where}.max_characters"
            raise InvalidRequestError(
                f"Invalid `{param}`: must be a whole number from 1 on.", param=param
            )
        description += f" `view` shows at most {longest} characters of a file."
    return {"name": known.name, "description": description, "parameters": known.parameters}


def _unserved(kind: str, param: str) -> InvalidRequestError:
    if kind.startswith(_NEEDS_PICTURES):
        why = "what it answers are pictures, and models here read text"
    else:
        why = f"known are {', '.join(CLIENT_TOOLS)}"
    return UnsupportedFieldError(
        f"Invalid `{param}`: tools of type `{kind}` are not supported: {why}.", param=param
    )
