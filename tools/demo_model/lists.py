"""The words and facts that the grammar draws from: for each kind a closed and an unseen list."""

from tools.demo_model.readme_prompts import WELL_KNOWN_CITIES


def words(text: str) -> tuple[str, ...]:
    """The words of a line, so that a list of them reads as one."""
    return tuple(text.split())


# kind: (words of training and the closed level, words of the open level alone)
WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "city": (
        (
            *WELL_KNOWN_CITIES,
            *words(
                "Munich Hamburg Boston Chicago Seattle Denver Austin Miami Montreal Vancouver "
                "Warsaw Budapest Helsinki Stockholm Copenhagen Brussels Zurich Geneva Milan "
                "Naples Venice Barcelona Seville Porto Istanbul Dubai Delhi Bangkok Singapore "
                "Seoul Osaka Kyoto Shanghai Melbourne Auckland Nairobi Moscow Lima"
            ),
            "Mexico City",
            "Los Angeles",
            "Hong Kong",
            "Cape Town",
            "Buenos Aires",
            "Rio de Janeiro",
        ),
        words(
            "Krakow Lagos Bogota Santiago Manila Jakarta Hanoi Riga Tallinn Vilnius Sofia "
            "Zagreb Bilbao Turin Leipzig Dresden Lyon Marseille Glasgow Leeds"
        ),
    ),
    "person": (
        words(
            "Alice Bob Carol David Emma Frank Grace Henry Irene Jack Karen Leo Maria Nina "
            "Oscar Paul Rosa Sam Tina Victor Anna Ben Clara Daniel Eva Felix John Lucy "
            "Mark Sarah Tom Peter"
        ),
        words("Yusuf Ingrid Mateo Priya Olga Hiro Amara Luca Zoe Sven Fatima Noor"),
    ),
    "item": (
        words(
            "milk bread butter eggs apples bananas coffee tea sugar salt rice pasta "
            "cheese tomatoes onions soap paper pens batteries chairs lamps books shoes "
            "socks gloves keyboards monitors cables flowers tickets pizza water juice "
            "honey"
        ),
        words("lentils candles screws pillows mangoes walnuts towels brushes"),
    ),
    "topic": (
        words(
            "music history science art football cooking travel physics chess gardening "
            "movies politics health money weather space robots animals poetry painting "
            "jazz tennis cycling photography economics biology"
        ),
        words("pottery falconry geology origami sailing opera karate knitting"),
    ),
    "language": (
        words(
            "French German Spanish Italian Japanese Chinese Portuguese Dutch Greek Polish "
            "Turkish Swedish Arabic Hindi Korean English"
        ),
        words("Finnish Basque Swahili Latvian Tamil Welsh Icelandic"),
    ),
    "word": (
        words(
            "hello world sun moon river stone cloud garden window bridge forest summer "
            "winter morning evening blue green red happy quiet small big fast slow cat "
            "dog bird horse fish tree house road book letter music dream light dark cold "
            "warm open closed good new old first last friend city ship island fire wind "
            "rain snow coffee bread apple table chair door key king queen story"
        ),
        words("lantern pebble walnut meadow thunder copper velvet harbor ember saddle"),
    ),
    "company": (
        words(
            "Apple Google Amazon Tesla Intel Nvidia Sony Siemens Toyota Nokia Adobe "
            "Oracle Samsung Netflix"
        ),
        words("Zalando Bosch Philips Lenovo Vodafone Ferrari"),
    ),
    "room": (
        words("kitchen bedroom bathroom office garage hall cellar attic garden"),
        words("pantry balcony studio library"),
    ),
    "verb": (
        words(
            "get find set add send create update delete check list make start stop open "
            "close book read write load save show move copy print run sync"
        ),
        words("inspect submit verify render archive approve"),
    ),
    "noun": (
        words(
            "user order report file invoice ticket account event task project message "
            "photo video song product customer device sensor server backup schedule note "
            "record price score route trip table room player"
        ),
        words("parcel contract vehicle camera recipe voucher badge shelf"),
    ),
    "field": (
        words(
            "name title id label owner status color size kind group code mode level type "
            "source target format key value tag team topic place region"
        ),
        words("alias branch vendor shape grade zone bucket"),
    ),
    "number_field": (
        words("count limit age year page amount quantity days hours minutes max total"),
        words("width height offset depth weeks"),
    ),
}

UNSEEN_WORDS = frozenset(word.lower() for _, unseen in WORDS.values() for word in unseen)

CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "Austria": "Vienna",
    "Greece": "Athens",
    "Japan": "Tokyo",
    "China": "Beijing",
    "India": "New Delhi",
    "Egypt": "Cairo",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Denmark": "Copenhagen",
    "Finland": "Helsinki",
    "Poland": "Warsaw",
    "Hungary": "Budapest",
    "Ireland": "Dublin",
    "England": "London",
    "Belgium": "Brussels",
    "Russia": "Moscow",
    "Turkey": "Ankara",
    "Canada": "Ottawa",
    "Mexico": "Mexico City",
    "Brazil": "Brasilia",
    "Argentina": "Buenos Aires",
    "Australia": "Canberra",
    "Kenya": "Nairobi",
    "Peru": "Lima",
    "Cuba": "Havana",
    "Switzerland": "Bern",
    "the Netherlands": "Amsterdam",
    "the United States": "Washington",
    "South Korea": "Seoul",
    "Thailand": "Bangkok",
}

OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "fast": "slow",
    "new": "old",
    "open": "closed",
    "happy": "sad",
    "light": "dark",
    "up": "down",
    "left": "right",
    "day": "night",
    "good": "bad",
    "early": "late",
    "full": "empty",
    "high": "low",
    "rich": "poor",
    "wet": "dry",
    "yes": "no",
    "first": "last",
}

FACTS = {
    "What color is the sky?": "The sky is blue.",
    "What color is grass?": "Grass is green.",
    "What color is snow?": "Snow is white.",
    "What color is a banana?": "A banana is yellow.",
    "How many days are in a week?": "There are 7 days in a week.",
    "How many months are in a year?": "There are 12 months in a year.",
    "How many hours are in a day?": "There are 24 hours in a day.",
    "How many minutes are in an hour?": "There are 60 minutes in an hour.",
    "How many legs does a spider have?": "A spider has 8 legs.",
    "How many legs does a dog have?": "A dog has 4 legs.",
    "How many continents are there?": "There are 7 continents.",
    "What is the largest planet?": "The largest planet is Jupiter.",
    "What is the largest ocean?": "The largest ocean is the Pacific.",
    "What is the longest river?": "The longest river is the Nile.",
    "What is the highest mountain?": "The highest mountain is Mount Everest.",
    "Who wrote Hamlet?": "William Shakespeare wrote Hamlet.",
    "Who painted the Mona Lisa?": "Leonardo da Vinci painted the Mona Lisa.",
    "What is the chemical formula of water?": "The chemical formula of water is H2O.",
    "What is the chemical symbol of gold?": "The chemical symbol of gold is Au.",
    "What is the meaning of life?": "42.",
    "What do bees make?": "Bees make honey.",
    "What do cows drink?": "Cows drink water.",
    "At what temperature does water boil?": "Water boils at 100 degrees Celsius.",
    "At what temperature does water freeze?": "Water freezes at 0 degrees Celsius.",
    "Is the earth round?": "Yes, the earth is round.",
}

SERIES = {
    "days of the week": "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday",
    "months of the year": (
        "January, February, March, April, May, June, July, August, September, October, November, "
        "December"
    ),
    "planets": "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune",
    "seasons": "spring, summer, autumn, winter",
    "colors of the rainbow": "red, orange, yellow, green, blue, indigo, violet",
    "letters of the alphabet": (
        "a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w, x, y, z"
    ),
    "continents": "Africa, Antarctica, Asia, Australia, Europe, North America, South America",
}

GROUPS = {
    "fruits": ("apple", "banana", "cherry", "grape", "lemon", "mango", "orange", "pear"),
    "animals": ("cat", "dog", "horse", "cow", "lion", "tiger", "bear", "rabbit"),
    "colors": ("red", "blue", "green", "yellow", "black", "white", "orange", "purple"),
    "countries": ("France", "Japan", "Brazil", "Canada", "Kenya", "India", "Norway", "Spain"),
    "vegetables": ("carrot", "potato", "onion", "tomato", "pepper", "bean", "cabbage", "pea"),
}

NUMBER_WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
