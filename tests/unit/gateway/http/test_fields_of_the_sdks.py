"""Every field that the official clients can send stands on the page of its route.

Bodies with a table of their fields have a test beside it, `test_tables_of_fields.py`.
"""

import importlib
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[4] / "docs"
OF_THE_PATH = {"conversation_id"}


@pytest.mark.parametrize(
    ("params", "page", "heading"),
    [
        ("openai.types.file_list_params.FileListParams", "batches-api", "Files"),
        ("openai.types.batch_list_params.BatchListParams", "batches-api", "Batches"),
        *(
            (f"openai.types.{name}", "responses-api", "What is stored")
            for name in (
                "conversations.conversation_create_params.ConversationCreateParams",
                "conversations.conversation_update_params.ConversationUpdateParams",
                "conversations.item_create_params.ItemCreateParams",
                "conversations.item_list_params.ItemListParams",
                "conversations.item_retrieve_params.ItemRetrieveParams",
                "responses.response_retrieve_params.ResponseRetrieveParamsBase",
                "responses.input_item_list_params.InputItemListParams",
            )
        ),
        ("anthropic.types.model_list_params.ModelListParams", "messages-api", "Answers"),
    ],
)
def test_every_field_of_a_request_type_is_on_its_page(params: str, page: str, heading: str) -> None:
    module, _, name = params.rpartition(".")
    fields = set(getattr(importlib.import_module(module), name).__annotations__)
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", text.split(f"\n## {heading}", 1)[1], maxsplit=1, flags=re.M)[0]
    assert fields
    assert fields - OF_THE_PATH <= set(re.findall(r"`(\w+)[`=]", section))
