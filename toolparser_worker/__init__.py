"""The parser worker: model text in; content, reasoning and tool calls out."""
