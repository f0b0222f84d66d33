"""One incremental machine that runs every declared format, in time linear in the text."""
