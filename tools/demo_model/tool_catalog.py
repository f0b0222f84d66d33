"""The tools of the grammar: their names, arguments, ways of asking, results and answers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """One argument of a tool.

    Attributes:
        names: the names that the argument may have in a schema.
        kind: the kind of its values (see `values.py`), `enum` or `boolean`.
        options: for `enum` the choices.
        said: for an optional argument how it is appended to the request; "" when required.
    """

    names: tuple[str, ...]
    kind: str
    options: tuple[str, ...] = ()
    said: str = ""


@dataclass(frozen=True)
class Tool:
    """One kind of tool.

    Attributes:
        names: the function names that it may have in a request.
        slots: arguments; the first name of each is its placeholder in `asks` and `answer`.
        asks: phrasings; one that starts with a capital verb can take "please" before it, one
            that ends in "?" is a question.
        result: result fields (aliases) and the kind of each value.
        answer: what the assistant says about the result, with the first alias of each field.
        short_answer: what it says when the result has only the first field; "" if it has all.
    """

    names: tuple[str, ...]
    slots: tuple[Slot, ...]
    asks: tuple[str, ...]
    result: tuple[tuple[tuple[str, ...], str], ...]
    answer: str
    short_answer: str = ""

    @property
    def key(self) -> str:
        """The tool's name in combinations."""
        return self.names[0]


_CITY = Slot(("city", "location", "place"), "city")
_DONE = ((("status",), "done"),)

CATALOG = (
    Tool(
        ("get_weather", "weather", "current_weather", "fetch_weather"),
        (
            _CITY,
            Slot(("unit", "units"), "enum", ("celsius", "fahrenheit"), " in {unit}"),
            Slot(("days", "num_days"), "small", (), " for the next {days} days"),
        ),
        (
            "What is the weather in {city}?",
            "What's the weather like in {city}?",
            "How is the weather in {city}?",
            "Is it raining in {city}?",
            "How warm is it in {city}?",
            "Weather in {city}",
            "Tell me the weather in {city}",
            "Check the weather for {city}",
            "Get the current weather in {city}",
        ),
        (
            (("temperature", "temp", "degrees", "temperature_c"), "degrees"),
            (("condition", "conditions", "sky", "weather"), "condition"),
        ),
        "It is {temperature} degrees and {condition} in {city}.",
        "It is {temperature} degrees in {city}.",
    ),
    Tool(
        ("get_time", "current_time", "time_in_city"),
        (_CITY,),
        (
            "What time is it in {city}?",
            "What is the time in {city}?",
            "Tell me the time in {city}",
            "Get the local time in {city}",
        ),
        ((("time", "local_time"), "time"),),
        "It is {time} in {city}.",
    ),
    Tool(
        ("add_numbers", "add", "sum"),
        (Slot(("a", "x", "first"), "amount"), Slot(("b", "y", "second"), "amount")),
        ("Add {a} and {b}", "Add {a} to {b} with the tool", "Use the tool to add {a} and {b}"),
        ((("result", "sum", "value"), "amount"),),
        "The result is {result}.",
    ),
    Tool(
        ("multiply", "multiply_numbers", "product"),
        (Slot(("a", "x", "first"), "amount"), Slot(("b", "y", "second"), "amount")),
        (
            "Multiply {a} by {b}",
            "Multiply {a} and {b} with the tool",
            "Use the tool on {a} times {b}",
        ),
        ((("result", "product", "value"), "amount"),),
        "The result is {result}.",
    ),
    Tool(
        ("send_email", "email", "write_email"),
        (Slot(("to", "recipient", "address"), "email"), Slot(("subject", "title"), "words")),
        (
            "Send an email to {to} about {subject}",
            "Email {to} with the subject {subject}",
            "Write an email to {to} about {subject}",
        ),
        _DONE,
        "The email to {to} was sent.",
    ),
    Tool(
        ("send_message", "message", "text_contact"),
        (Slot(("person", "contact", "recipient"), "person"), Slot(("text", "message"), "words")),
        (
            'Tell {person} "{text}"',
            "Send a message to {person} saying {text}",
            'Message {person}: "{text}"',
            "Text {person} that {text}",
        ),
        _DONE,
        "The message to {person} was sent.",
    ),
    Tool(
        ("set_alarm", "alarm", "create_alarm"),
        (Slot(("time", "at"), "time"),),
        ("Set an alarm for {time}", "Wake me up at {time}", "Create an alarm at {time}"),
        _DONE,
        "The alarm is set for {time}.",
    ),
    Tool(
        ("set_timer", "timer", "start_timer"),
        (Slot(("minutes", "duration"), "small"),),
        (
            "Set a timer for {minutes} minutes",
            "Start a {minutes} minute timer",
            "Remind me in {minutes} minutes",
        ),
        _DONE,
        "The timer is set for {minutes} minutes.",
    ),
    Tool(
        ("create_event", "add_event", "schedule_meeting"),
        (
            Slot(("title", "name"), "words"),
            Slot(("date", "day"), "date"),
            Slot(("time", "start"), "time", (), " at {time}"),
        ),
        (
            "Schedule {title} on {date}",
            "Create an event called {title} on {date}",
            "Put {title} in my calendar for {date}",
        ),
        ((("event_id", "id"), "code"),),
        "The event {title} is planned for {date}.",
    ),
    Tool(
        ("search_web", "web_search", "search"),
        (Slot(("query", "q", "text"), "topics"),),
        (
            "Search the web for {query}",
            "Search for {query}",
            "Look up {query}",
            "Find information about {query}",
        ),
        ((("num_results", "count"), "small"), (("top", "title"), "words")),
        "I found {num_results} results. The first one is {top}.",
    ),
    Tool(
        ("translate", "translate_text", "translator"),
        (Slot(("text", "phrase"), "words"), Slot(("language", "target"), "language")),
        (
            'Translate "{text}" to {language}',
            "Translate {text} into {language}",
            'How do you say "{text}" in {language}?',
        ),
        ((("translation", "result"), "words"),),
        'The translation is "{translation}".',
    ),
    Tool(
        ("get_stock_price", "stock_price", "stock"),
        (Slot(("company", "name", "symbol"), "company"),),
        (
            "What is the stock price of {company}?",
            "How much is a share of {company}?",
            "Get the share price of {company}",
            "Check the {company} stock",
        ),
        ((("price", "value"), "decimal"), (("currency",), "currency")),
        "The price of {company} is {price} {currency}.",
    ),
    Tool(
        ("convert_currency", "exchange", "currency_converter"),
        (
            Slot(("amount", "value"), "amount"),
            Slot(("from_currency", "source", "from"), "currency"),
            Slot(("to_currency", "target", "to"), "currency"),
        ),
        (
            "Convert {amount} {from_currency} to {to_currency}",
            "How much is {amount} {from_currency} in {to_currency}?",
            "Change {amount} {from_currency} into {to_currency}",
        ),
        ((("result", "converted"), "decimal"),),
        "{amount} {from_currency} is {result} {to_currency}.",
    ),
    Tool(
        ("play_music", "play_song", "music"),
        (Slot(("title", "song", "track"), "words"),),
        ("Play {title}", "Play the song {title}", 'Put on "{title}"'),
        _DONE,
        "Now playing {title}.",
    ),
    Tool(
        ("book_flight", "find_flights", "flights"),
        (
            Slot(("origin", "from_city", "departure"), "city"),
            Slot(("destination", "to_city", "arrival"), "city"),
            Slot(("date", "day"), "date", (), " on {date}"),
        ),
        (
            "Book a flight from {origin} to {destination}",
            "Find a flight from {origin} to {destination}",
            "I want to fly from {origin} to {destination}",
        ),
        ((("flight", "flight_number"), "code"), (("price",), "amount")),
        "Flight {flight} from {origin} to {destination} costs {price}.",
    ),
    Tool(
        ("book_table", "reserve_table", "reservation"),
        (Slot(("people", "guests", "party_size"), "small"), Slot(("time", "at"), "time")),
        ("Book a table for {people} at {time}", "Reserve a table for {people} people at {time}"),
        ((("code", "confirmation"), "code"),),
        "The table for {people} at {time} is booked. The code is {code}.",
    ),
    Tool(
        ("add_to_cart", "order_item", "buy"),
        (
            Slot(("item", "product"), "item"),
            Slot(("quantity", "count", "number"), "small"),
        ),
        (
            "Add {quantity} {item} to my cart",
            "Order {quantity} {item}",
            "Buy {quantity} {item}",
            "I need {quantity} {item}",
        ),
        ((("total", "price"), "decimal"),),
        "{quantity} {item} are in your cart. The total is {total}.",
    ),
    Tool(
        ("create_reminder", "remind", "add_reminder"),
        (Slot(("text", "task"), "words"), Slot(("time", "at"), "time")),
        ("Remind me about {text} at {time}", "Create a reminder for {text} at {time}"),
        _DONE,
        "I will remind you about {text} at {time}.",
    ),
    Tool(
        ("switch_lights", "set_lights", "lights"),
        (
            Slot(("room", "area"), "room"),
            Slot(("on", "enabled", "state"), "boolean", ("on", "off")),
        ),
        (
            "Turn {on} the lights in the {room}",
            "Switch {on} the {room} lights",
            "Turn the light in the {room} {on}",
        ),
        _DONE,
        "The lights in the {room} are {on}.",
    ),
    Tool(
        ("set_temperature", "thermostat", "set_heating"),
        (Slot(("room", "area"), "room"), Slot(("degrees", "temperature"), "small")),
        ("Set the {room} to {degrees} degrees", "Heat the {room} to {degrees} degrees"),
        _DONE,
        "The {room} is set to {degrees} degrees.",
    ),
    Tool(
        ("get_user", "find_user", "lookup_user"),
        (Slot(("user_id", "id"), "amount"),),
        ("Show me user {user_id}", "Who is user {user_id}?", "Look up the user with id {user_id}"),
        ((("name", "full_name"), "person"), (("email",), "email")),
        "User {user_id} is {name} with the email {email}.",
        "User {user_id} is {name}.",
    ),
    Tool(
        ("get_news", "news", "headlines"),
        (
            Slot(("topic", "category"), "topic"),
            Slot(("limit", "count"), "small", (), ", at most {limit} articles"),
        ),
        (
            "What is the news about {topic}?",
            "Get the news on {topic}",
            "Show me {topic} headlines",
            "Any news about {topic}?",
        ),
        ((("headline", "title"), "words"),),
        "The top headline about {topic} is: {headline}.",
    ),
    Tool(
        ("find_restaurants", "restaurants", "search_restaurants"),
        (_CITY, Slot(("cuisine", "food"), "language", (), " with {cuisine} food")),
        (
            "Find a restaurant in {city}",
            "Where can I eat in {city}?",
            "Look for restaurants in {city}",
        ),
        ((("name", "restaurant"), "person"), (("rating", "stars"), "decimal")),
        "In {city} I found {name}, rated {rating}.",
        "In {city} I found {name}.",
    ),
    Tool(
        ("track_order", "order_status", "get_order"),
        (Slot(("order_id", "code", "order"), "code"),),
        ("Where is my order {order_id}?", "Track order {order_id}", "Check the order {order_id}"),
        ((("state", "status"), "state"), (("date", "arrival"), "date")),
        "Order {order_id} is {state}. It arrives on {date}.",
        "Order {order_id} is {state}.",
    ),
    Tool(
        ("delete_file", "remove_file", "erase"),
        (Slot(("path", "file", "filename"), "file"),),
        ("Delete the file {path}", "Remove {path}", "Erase the file {path}"),
        _DONE,
        "The file {path} is gone.",
    ),
    Tool(
        ("read_file", "open_file", "load_file"),
        (Slot(("path", "file", "filename"), "file"),),
        ("Read the file {path}", "Open {path}", "Show me what is in {path}"),
        ((("content", "text"), "words"),),
        "The file {path} says: {content}",
    ),
)
