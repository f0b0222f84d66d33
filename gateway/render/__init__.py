"""From events of a generation to the bytes of OpenAI's answers."""
