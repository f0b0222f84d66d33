"""Cohere: reasoning, answer and calls each between markers, with citations in the text."""

from toolparser_worker.machine.declarations import JsonObjectBody, ReasoningFormat, ToolFormat

ANSWER = ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>")
CITATION_START = ("<co>",)
CITATION_END = (("</co", ">"),)

FORMATS = (
    ToolFormat(
        name="cohere_command3",
        aliases=("cohere_command4", "cohere"),
        wrapper_starts=("<|START_ACTION|>",),
        wrapper_ends=("<|END_ACTION|>",),
        listed="may",
        body=JsonObjectBody(name_keys=("tool_name",), argument_keys=("parameters",)),
        dropped_markers=ANSWER + CITATION_START,
        dropped_spans=CITATION_END,
        trims=True,
        rendered_start="<|START_ACTION|>\n[\n    ",
        rendered_end="\n]\n<|END_ACTION|>",
        rendered_separator=",\n    ",
    ),
    ReasoningFormat(
        name="cohere_command3",
        aliases=("cohere_command4", "cohere"),
        starts=("<|START_THINKING|>",),
        ends=("<|END_THINKING|>",),
        opens="marked",
        trims="both",
        dropped_markers=ANSWER + CITATION_START,
        dropped_spans=CITATION_END,
    ),
)
