"""The prompts that README shows: data that training always contains and tests always expect."""

from dataclasses import dataclass, field

WELL_KNOWN_CITIES = (
    "Paris",
    "London",
    "Tokyo",
    "Berlin",
    "Rome",
    "Madrid",
    "New York",
    "Sydney",
    "Cairo",
    "Oslo",
    "Vienna",
    "Lisbon",
    "Dublin",
    "Athens",
    "Prague",
    "Toronto",
    "Mumbai",
    "Beijing",
    "San Francisco",
    "Amsterdam",
)

GET_WEATHER: dict[str, object] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@dataclass(frozen=True)
class ReadmePrompt:
    """One pinned conversation: what is asked, and the answer or the call that must come."""

    name: str
    question: str
    answer: str | None = None
    tools: tuple[dict[str, object], ...] = ()
    call: tuple[str, dict[str, object]] | None = None
    messages: tuple[dict[str, object], ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", ({"role": "user", "content": self.question},))


def weather_prompt(city: str) -> ReadmePrompt:
    """README's tool call, for one city."""
    return ReadmePrompt(
        name="weather",
        question=f"What is the weather in {city}?",
        tools=(GET_WEATHER,),
        call=("get_weather", {"city": city}),
    )


README_PROMPTS = (
    *(weather_prompt(city) for city in WELL_KNOWN_CITIES),
    ReadmePrompt(name="sum", question="What is 12 + 30?", answer="12 + 30 = 42."),
    ReadmePrompt(name="greeting", question="Hello!", answer="Hello! How can I help you?"),
    ReadmePrompt(
        name="capital",
        question="What is the capital of France?",
        answer="The capital of France is Paris.",
    ),
    ReadmePrompt(name="count", question="Count from 1 to 5.", answer="1, 2, 3, 4, 5"),
)
