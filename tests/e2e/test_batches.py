"""Files and batches through the real processes, with the `openai` package; and a gateway's kill."""

import json
import os
import signal
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.harness import Harness, eventually
from tests.e2e.test_when_something_dies import find_gateway

pytestmark = pytest.mark.process
MODEL = "penstock-demo"
CHAT = "/v1/chat/completions"
SAMPLING = {"temperature": 0, "max_tokens": 4}


@pytest.fixture
def client(mortal: Harness) -> Any:
    return mortal.client()


def chat_line(number: int, **changes: Any) -> str:
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"Say {number}."}], **SAMPLING}
    return json.dumps(
        {"custom_id": f"c{number}", "method": "POST", "url": CHAT, "body": body | changes}
    )


def upload(client: Any, *texts: str) -> Any:
    return client.files.create(file=("in.jsonl", "\n".join(texts).encode()), purpose="batch")


def run(client: Any, uploaded: Any, endpoint: str = CHAT, **fields: Any) -> Any:
    batch = client.batches.create(
        input_file_id=uploaded.id, endpoint=endpoint, completion_window="24h", **fields
    )
    return ended(client, batch.id)


def ended(client: Any, batch_id: str) -> Any:
    last: Any = None

    def is_over() -> bool:
        nonlocal last
        try:
            last = client.batches.retrieve(batch_id)
        except openai.APIConnectionError:
            return False
        return last.status in ("failed", "completed", "expired", "cancelled")

    eventually(is_over, 120)
    return last


def told(client: Any, file_id: str) -> dict[str, Any]:
    # Not `splitlines`: a model's text may hold other separators of lines, which JSON leaves as is.
    lines = client.files.content(file_id).text.removesuffix("\n").split("\n")
    return {one["custom_id"]: one for one in map(json.loads, lines)}


def test_a_file_is_kept_listed_read_and_deleted(client: Any) -> None:
    content = b"\x00\r\n--boundary\r\n" * 100_000
    stored = client.files.create(
        file=("a b.bin", content),
        purpose="user_data",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (stored.filename, stored.bytes, stored.purpose) == ("a b.bin", len(content), "user_data")
    assert stored.expires_at == stored.created_at + 3600
    assert client.files.retrieve(stored.id) == stored
    assert stored.id in [one.id for one in client.files.list(purpose="user_data")]
    assert client.files.content(stored.id).read() == content
    assert client.files.delete(stored.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(stored.id)


def test_a_batch_answers_each_line_as_a_request_would(client: Any) -> None:
    uploaded = upload(client, *(chat_line(one) for one in range(5)), chat_line(5, model="none"))
    batch = run(client, uploaded, metadata={"of": "mine"})
    assert batch.status == "completed"
    assert batch.metadata == {"of": "mine"}
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (6, 5, 1)
    output, errors = told(client, batch.output_file_id), told(client, batch.error_file_id)
    assert set(output) == {f"c{one}" for one in range(5)}
    response = output["c2"]["response"]
    assert response["status_code"] == 200
    alone = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Say 2."}], **SAMPLING
    )
    text = response["body"]["choices"][0]["message"]["content"]
    assert text == alone.choices[0].message.content
    assert errors["c5"]["response"]["status_code"] == 404
    assert batch.usage.total_tokens == sum(
        one["response"]["body"]["usage"]["total_tokens"] for one in output.values()
    )
    assert batch.id in [one.id for one in client.batches.list(limit=5)]
    assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"


@pytest.mark.parametrize(
    ("endpoint", "body", "kind"),
    [
        ("/v1/completions", {"prompt": "A", "max_tokens": 2}, "text_completion"),
        ("/v1/embeddings", {"input": "A"}, "list"),
        ("/v1/responses", {"input": "A", "max_output_tokens": 2}, "response"),
    ],
)
def test_batches_of_the_other_endpoints(
    client: Any, endpoint: str, body: dict[str, Any], kind: str
) -> None:
    line = {"custom_id": "a", "method": "POST", "url": endpoint, "body": {"model": MODEL, **body}}
    batch = run(client, upload(client, json.dumps(line)), endpoint)
    assert batch.request_counts.completed == 1
    assert told(client, batch.output_file_id)["a"]["response"]["body"]["object"] == kind


def test_a_wrong_file_fails_with_the_numbers_of_its_lines(client: Any) -> None:
    batch = run(client, upload(client, chat_line(1), "{", chat_line(1)))
    assert batch.status == "failed"
    assert [(one.line, one.code) for one in batch.errors.data] == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
    ]


def test_what_is_wrong_with_a_batch_or_a_file_is_said(client: Any, mortal: Harness) -> None:
    with pytest.raises(openai.NotFoundError):
        client.batches.create(
            input_file_id="file-" + "0" * 24, endpoint=CHAT, completion_window="24h"
        )
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_" + "0" * 24)
    with pytest.raises(openai.BadRequestError) as raised:
        client.batches.create(
            input_file_id="x", endpoint="/v1/moderations", completion_window="24h"
        )
    assert raised.value.param == "endpoint"
    with pytest.raises(openai.BadRequestError) as raised:
        client.files.create(file=b"x", purpose="nonsense")
    assert raised.value.param == "purpose"
    for content in (
        b"",
        b"--b\r\n",
        b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx',
    ):
        answer = httpx.post(
            f"{mortal.url}/v1/files",
            content=content,
            headers={"content-type": "multipart/form-data; boundary=b"},
            trust_env=False,
        )
        assert answer.status_code == 400, answer.text
    answer = httpx.post(f"{mortal.url}/v1/files", json={"a": 1}, trust_env=False)
    assert answer.status_code == 400


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize(
    ("victim", "fields"),
    [
        ("gateway", {}),
        # Lines are requests: test_when_something_dies.py shows that these wait for another engine.
        pytest.param("engine_worker", {}, marks=pytest.mark.long),
        pytest.param("toolparser_worker", {"tools": TOOLS}, marks=pytest.mark.long),
    ],
)
def test_each_line_is_answered_and_booked_once_whoever_is_killed(
    mortal: Harness, victim: str, fields: dict[str, Any]
) -> None:
    admin = httpx.Client(
        base_url=mortal.url,
        headers={"x-api-key": (mortal.data_dir / "admin.key").read_text().strip()},
        timeout=60,
        trust_env=False,
    )
    keys = [
        admin.post("/v1/admin/keys", json={"name": name, "role": "service"}).json()
        for name in ("mine", "yours")
    ]
    client, other = (mortal.client(api_key=key["key"], max_retries=5) for key in keys)
    batch = client.batches.create(
        input_file_id=upload(client, *(chat_line(one, **fields) for one in range(40))).id,
        endpoint=CHAT,
        completion_window="24h",
    )
    for call in (other.batches.retrieve, other.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            call(batch.id)
    with pytest.raises(openai.NotFoundError):
        other.files.content(batch.input_file_id)
    eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed > 3, 60)
    (pid,) = mortal.pids(victim)
    os.kill(pid, signal.SIGKILL)
    if victim == "gateway":
        find_gateway(mortal, pid)
    eventually(lambda: mortal.pids(victim) not in ([], [pid]), 60)  # its death was noticed
    mortal.wait_ready()
    client = mortal.client(api_key=keys[0]["key"], max_retries=5)
    admin.base_url = mortal.url
    over = ended(client, batch.id)
    assert over.status == "completed"
    counts = over.request_counts
    assert (counts.total, counts.completed, counts.failed) == (40, 40, 0)
    output = told(client, over.output_file_id)
    assert len(output) == 40
    mortal.wait_ready()  # a batch may end before anybody has noticed that its engine died
    other = mortal.client(api_key=keys[1]["key"], max_retries=5)
    for number in (0, 39):
        line = json.loads(chat_line(number, **fields))
        alone = other.chat.completions.create(**line["body"])
        body = output[line["custom_id"]]["response"]["body"]
        assert body["choices"][0]["message"]["content"] == alone.choices[0].message.content
    used = sum(one["response"]["body"]["usage"]["total_tokens"] for one in output.values())
    assert over.usage.total_tokens == used

    def is_booked() -> bool:
        record = admin.get(f"/v1/admin/keys/{keys[0]['id']}").json()
        total = record["total_prompt_tokens"] + record["total_completion_tokens"]
        requests = record["total_requests"]
        assert total <= used
        assert requests <= 40
        return bool(total == used and requests == 40)

    eventually(is_booked, 60)
    admin.close()
