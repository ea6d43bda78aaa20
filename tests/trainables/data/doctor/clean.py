"""Data sets as people have them, with nothing wrong: made here, of many kinds, and the same on every machine."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np

Rows = list[dict]

PEOPLE = (
    "my sister", "our neighbour", "the old teacher", "a friend of mine", "the waiter", "her cousin", "the plumber",
    "his boss", "the nurse", "a stranger", "the baker", "their landlord", "the driver", "my uncle", "a young couple",
    "the receptionist", "the whole family", "some tourists", "the librarian", "the mechanic", "a retired sailor",
)  # fmt: skip
DEEDS = (
    "bought", "lost", "repaired", "returned", "forgot", "recommended", "painted", "carried", "cleaned", "broke",
    "borrowed", "found", "ordered", "sold", "hid", "admired", "described", "wanted", "dropped", "replaced", "inspected",
)  # fmt: skip
THINGS = (
    "kettle", "lamp", "bicycle", "suitcase", "umbrella", "novel", "camera", "blanket", "guitar", "coat", "teapot",
    "garden chair", "phone case", "mattress", "vacuum cleaner", "pair of boots", "coffee grinder", "backpack", "mirror",
    "tent", "keyboard", "ladder", "frying pan", "clock", "scarf", "toaster", "desk", "printer", "carpet", "headset",
)  # fmt: skip
TRAITS = (
    "heavy", "cheap", "sturdy", "lovely", "noisy", "tiny", "elegant", "flimsy", "bright", "soft", "clumsy", "modern",
    "worn", "reliable", "colourful", "expensive", "plain", "odd", "comfortable", "thin", "smooth", "rusty", "warm",
)  # fmt: skip
PLACES = (
    "at the market", "in the garden", "near the station", "by the river", "in a small shop", "on the balcony",
    "at work", "on the train to Leeds", "behind the house", "in the kitchen", "at the airport", "next to the church",
    "during the holidays", "last winter", "before breakfast", "on a rainy evening", "in the middle of the night",
    "for the third time", "without asking", "after a long walk", "in front of everybody", "out of curiosity",
)  # fmt: skip
LINKS = (
    "because", "although", "while", "and then", "so that", "until", "even though", "whereas", "since", "but later",
)  # fmt: skip
TOWNS = (
    "Lisbon", "Bergen", "Turin", "Gdansk", "Porto", "Ghent", "Malaga", "Tartu", "Bristol", "Nantes", "Uppsala", "Graz",
    "Cork", "Split", "Bilbao", "Leipzig", "Aarhus", "Lyon", "Krakow", "Dundee", "Sofia", "Basel", "Toledo", "Oulu",
)  # fmt: skip
NAMES = (
    "Anna", "Bela", "Carlos", "Dana", "Emil", "Fatima", "Goran", "Hanna", "Ivan", "Judit", "Kemal", "Lucia", "Marek",
    "Nadia", "Otto", "Petra", "Quentin", "Rosa", "Stefan", "Tanja", "Ursula", "Viktor", "Wanda", "Xenia", "Yusuf",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Clean:
    """Rows of a task, and how they are read."""

    task: str
    rows: Rows
    data: Mapping[str, object] = field(default_factory=dict)


class Draw:
    """Pieces of language, drawn by a seed."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def of(self, choices) -> str:
        return choices[int(self.random.integers(len(choices)))]

    def number(self, least: int, most: int) -> int:
        return int(self.random.integers(least, most))

    def digits(self, count: int) -> str:
        return "".join(map(str, self.random.integers(0, 10, count)))

    def clause(self) -> str:
        return (
            f"{self.of(PEOPLE)} {self.of(DEEDS)} {self.of(('the', 'a', 'that', 'one more'))}"
            f" {self.of(TRAITS)} {self.of(THINGS)} {self.of(PLACES)}"
        )

    def sentence(self) -> str:
        text = self.clause()
        while self.random.random() < 0.5:
            text += f" {self.of(LINKS)} {self.clause()}"
        return text[0].upper() + text[1:] + self.of((".", ".", ".", "!", "?"))

    def paragraph(self, least: int, most: int) -> str:
        return " ".join(self.sentence() for _ in range(self.number(least, most)))

    def moment(self) -> datetime:
        return datetime(2025, 1, 1) + timedelta(seconds=self.number(0, 360 * 86_400))


def distinct(make: Callable[[], dict], count: int) -> Rows:
    """So many rows that are not the same."""
    found: dict[str, dict] = {}
    while len(found) < count:
        row = make()
        found.setdefault(
            json.dumps([row.get(k) for k in ("text", "prompt", "messages", "question")]).casefold(),
            row,
        )
    return list(found.values())


def reviews(count: int) -> Clean:
    draw = Draw(1)

    def row() -> dict:
        stars = draw.number(1, 6)
        said = draw.of({1: ("Never again.", "Broke at once."), 2: ("Rather poor.", "Not for me.")}.get(
            stars, ("Does its job.", "I like it.", "Worth the money.", "Would buy it again.")))  # fmt: skip
        return {
            "stars": stars,
            "title": f"{draw.of(TRAITS)} {draw.of(THINGS)}",
            "text": f"{draw.paragraph(2, 6)} {said}",
            "helpful": draw.number(0, 40),
            "verified": draw.of(("yes", "no")),
            "date": draw.moment().date().isoformat(),
        }

    return Clean(task="classification", rows=distinct(row, count), data={"label": "stars"})


def tweets(count: int) -> Clean:
    draw = Draw(2)

    def row() -> dict:
        words = draw.clause().split()
        text = " ".join(words[: draw.number(4, len(words) + 1)])
        if draw.random.random() < 0.3:
            text = f"@user {text}"
        if draw.random.random() < 0.4:
            text += f" #{draw.of(TOWNS).lower()} #{draw.of(THINGS).replace(' ', '')}"
        if draw.random.random() < 0.2:
            text += f" http://t.co/{draw.digits(3)}{draw.of(NAMES)}{draw.digits(2)}"
        return {"text": f"{text} {draw.of(('', '😀', '😡', '!!', 'lol', '...', 'smh'))}".strip(),
                "label": draw.of(("positive", "negative", "neutral"))}  # fmt: skip

    return Clean(task="classification", rows=distinct(row, count))


def logs(count: int) -> Clean:
    """Lines with moments, order numbers of sixteen digits and identifiers."""
    draw, levels = Draw(3), {"INFO": "info", "WARN": "warning", "ERROR": "error"}

    def row() -> dict:
        level, when = draw.of(list(levels)), draw.moment()
        what = draw.of((
            f"order {draw.number(4, 7)}{draw.digits(15)} paid in {draw.number(2, 900)} ms",
            f"worker {draw.number(1, 99)} took job {draw.digits(8)} of queue {draw.of(THINGS)}",
            f"timeout after {draw.random.random() * 30:.3f} s at node-{draw.number(1, 60)}.{draw.of(TOWNS).lower()}",
            f"GET /items/{draw.digits(13)}?page={draw.number(1, 50)} {draw.of(('200', '404', '500'))} {draw.digits(5)}",
            f"received {int(when.timestamp() * 1000)} offset +0{draw.number(0, 3)}00 {when.date()} lag {draw.digits(4)}",
            f"parcel {draw.digits(3)}-{draw.digits(7)}-{draw.digits(7)} left {draw.of(TOWNS)}, ref {draw.digits(4)}"
            f" {draw.digits(4)} {draw.digits(4)} {draw.digits(4)}",
            f"balance {draw.digits(5)}.{draw.digits(16)} after step {draw.digits(6)}",
        ))  # fmt: skip
        return {
            "text": f"{when.isoformat(timespec='milliseconds')} [{level}] {what}",
            "label": levels[level],
        }

    return Clean(task="classification", rows=distinct(row, count))


def phone_like(count: int) -> Clean:
    """Identifiers of digits in groups; none is a number that can be called."""
    draw = Draw(4)

    def row() -> dict:
        ident = draw.of((
            f"{draw.digits(3)}-{draw.digits(4)}-{draw.digits(3)}", f"({draw.digits(4)}) {draw.digits(3)}/{draw.digits(5)}",
            f"{draw.digits(2)}.{draw.digits(2)}.{draw.digits(6)}", f"ISBN 978-{draw.number(1, 9)}-{draw.digits(5)}-{draw.digits(3)}-1",
            f"serial {draw.digits(3)}-{draw.digits(2)}-{draw.digits(4)}-{draw.digits(2)}",
            f"a change of +{draw.digits(5)}.{draw.digits(6)}",
        ))  # fmt: skip
        return {
            "text": f"{draw.sentence()} The ticket is {ident}.",
            "label": draw.of(("open", "closed", "waiting")),
        }

    return Clean(task="classification", rows=distinct(row, count))


def chats(count: int) -> Clean:
    draw = Draw(5)

    def row() -> dict:
        messages = [
            {
                "role": "system",
                "content": "You are a helpful assistant of a shop for household goods. Answer briefly.",
            }
        ]
        for _ in range(draw.number(1, 4)):
            messages.append({"role": "user", "content": draw.paragraph(1, 3)})
            messages.append({"role": "assistant", "content": draw.paragraph(1, 4)})
        return {"messages": messages}

    return Clean(task="instruction", rows=distinct(row, count))


def questions(count: int) -> Clean:
    """Short questions of a few forms."""
    draw = Draw(6)
    topics = [f"{trait} {thing}" for trait in TRAITS for thing in THINGS]

    def row() -> dict:
        one, other, town = draw.of(topics), draw.of(topics), draw.of(TOWNS)
        prompt = draw.of((
            f"How much does a {one} cost in {town}?", f"Who invented the {one}?", f"Where in {town} can I buy a {one}?",
            f"What is the difference between a {one} and a {other}?", f"When was the first {one} made in {town}?",
            f"Is it true that {draw.clause()}?", f"Why do people in {town} prefer a {one} to a {other}?",
        ))  # fmt: skip
        return {
            "prompt": prompt,
            "completion": draw.of(
                (f"In {draw.number(1700, 2020)}.", draw.sentence(), draw.of(NAMES))
            ),
        }

    return Clean(task="instruction", rows=distinct(row, count))


def text_to_sql(count: int) -> Clean:
    draw = Draw(7)
    tables = {"city": ("population", "area", "mayor"), "river": ("length", "depth", "basin"), "mountain": ("height", "range", "country"),
              "customer": ("age", "city", "balance"), "invoice": ("amount", "due", "currency"), "employee": ("salary", "team", "office")}  # fmt: skip

    def row() -> dict:
        table = draw.of(list(tables))
        column, by, value = (
            draw.of(tables[table]),
            draw.of(tables[table]),
            draw.of((*TOWNS, *NAMES, str(draw.number(2, 5000)))),
        )
        return draw.of((
            {"prompt": f"what is the {column} of the {table} {value}", "completion": f"SELECT {column} FROM {table} WHERE name = '{value}';"},
            {"prompt": f"how many {table} rows have {column} {value}", "completion": f"SELECT COUNT(*) FROM {table} WHERE {column} = '{value}';"},
            {"prompt": f"list all {table} names with a {column} above {draw.number(2, 5000)} sorted by {by}",
             "completion": f"SELECT name FROM {table} WHERE {column} > {draw.number(2, 5000)} ORDER BY {by};"},
            {"prompt": f"which {table} has the largest {column} for each {by} in {value}",
             "completion": f"SELECT name, MAX({column}) FROM {table} WHERE place = '{value}' GROUP BY {by};"},
        ))  # fmt: skip

    return Clean(task="instruction", rows=distinct(row, count))


def code(count: int) -> Clean:
    """Functions, to be documented."""
    draw = Draw(8)
    verbs = (
        "load",
        "merge",
        "count",
        "drop",
        "sort",
        "parse",
        "write",
        "scale",
        "check",
        "join",
        "split",
        "hash",
    )
    bodies = (
        "    if not {a}:\n        raise ValueError('no {b}')\n    return [{c}(x) for x in {a}]\n",
        "    found = {{}}\n    for {b} in {a}:\n        found.setdefault({b}.{c}, []).append({b})\n    return found\n",
        "    with open({a}) as {b}:\n        lines = {b}.read().splitlines()\n    return lines[{n}:]\n",
        "    total = {n}\n    while total < len({a}):\n        total += {a}[total] @ self.{b}.{c}\n    return total\n",
        "    {b} = np.zeros(({n}, 3))\n    {b}[{n} // 2] = {a}.mean()\n    return {b} @ {c}.weights\n",
    )

    def row() -> dict:
        a, b, c = (f"{draw.of(TRAITS)}_{draw.of(THINGS)}".replace(" ", "_") for _ in range(3))
        verb = draw.of(verbs)
        body = draw.of(bodies).format(a=a, b=b, c=c, n=draw.number(2, 400))
        return {
            "prompt": f"Write a docstring.\n\ndef {verb}_{c}(self, {a}):\n{body}",
            "completion": f"{verb.title()} the {c} of a {a}.\n\nReturns: what {draw.clause()}.",
        }

    return Clean(task="instruction", rows=distinct(row, count))


LANGUAGES = {
    "en": (("the farmer", "a doctor", "the little girl", "our captain", "the king"), ("sees", "buys", "forgets", "likes", "cleans", "sells"),
           ("the red boat", "a loaf of bread", "the old bridge", "three apples", "the window"), ("every morning", "in the village", "without a word", "with great care")),
    "de": (("der Bauer", "eine Ärztin", "das kleine Mädchen", "unser Kapitän", "der König"), ("sieht", "kauft", "vergisst", "mag", "putzt", "verkauft"),
           ("das rote Boot", "einen Laib Brot", "die alte Brücke", "drei Äpfel", "das Fenster"), ("jeden Morgen", "im Dorf", "ohne ein Wort", "mit großer Sorgfalt")),
    "fr": (("le fermier", "une médecin", "la petite fille", "notre capitaine", "le roi"), ("voit", "achète", "oublie", "aime", "nettoie", "vend"),
           ("le bateau rouge", "une miche de pain", "le vieux pont", "trois pommes", "la fenêtre"), ("chaque matin", "dans le village", "sans un mot", "avec grand soin")),
    "ru": (("фермер", "врач", "маленькая девочка", "наш капитан", "король"), ("видит", "покупает", "забывает", "любит", "моет", "продаёт"),
           ("красную лодку", "буханку хлеба", "старый мост", "три яблока", "окно"), ("каждое утро", "в деревне", "без единого слова", "с большой заботой")),
    "ja": (("農夫は", "医者は", "小さな女の子は", "船長は", "王様は"), ("見る", "買う", "忘れる", "好む", "洗う", "売る"),
           ("赤い船を", "パンを一つ", "古い橋を", "りんごを三つ", "窓を"), ("毎朝", "村で", "黙って", "とても大切に")),
}  # fmt: skip


def multilingual(count: int) -> Clean:
    """The same share of each language everywhere."""
    draw = Draw(9)

    def row() -> dict:
        language = draw.of(list(LANGUAGES))
        who, does, what, how = LANGUAGES[language]
        parts = [
            f"{draw.of(who)} {draw.of(how)} {draw.of(what)}{draw.of(does)}" if language == "ja"
            else f"{draw.of(who)} {draw.of(does)} {draw.of(what)} {draw.of(how)}"
            for _ in range(draw.number(2, 5))
        ]  # fmt: skip
        return {
            "text": ("。" if language == "ja" else ". ").join(parts),
            "label": draw.of(("yes", "no")),
            "language": language,
        }

    return Clean(task="classification", rows=distinct(row, count), data={"slice": "language"})


def intents(count: int) -> Clean:
    """Commands of three to seven words."""
    draw = Draw(10)
    rooms = (
        "kitchen",
        "hall",
        "bedroom",
        "garage",
        "cellar",
        "attic",
        "office",
        "bathroom",
        "garden",
        "porch",
    )
    songs = [f"{trait} {thing}" for trait in TRAITS for thing in THINGS]

    def row() -> dict:
        text, label = draw.of((
            (f"turn on light {draw.number(1, 400)}", "light_on"), (f"turn off light {draw.number(1, 400)}", "light_off"),
            (f"set the {draw.of(rooms)} to {draw.number(10, 30)} degrees", "heating"),
            (f"play {draw.of(songs)} in the {draw.of(rooms)}", "music"), (f"play {draw.of(songs)} by {draw.of(NAMES)}", "music"),
            (f"wake me up at {draw.number(0, 24)}:{draw.number(0, 60):02}", "alarm"),
            (f"what is the weather in {draw.of(TOWNS)} on {draw.of(('monday', 'tuesday', 'friday', 'sunday'))}", "weather"),
            (f"how is the weather in {draw.of(TOWNS)} {draw.of(('today', 'tomorrow', 'tonight', 'this week'))}", "weather"),
            (f"add {draw.of(songs)} to my shopping list", "shopping"), (f"call {draw.of(NAMES)} {draw.of(('at home', 'at work', 'now', 'on mobile'))}", "call"),
        ))  # fmt: skip
        return {"text": text, "label": label}

    return Clean(task="classification", rows=distinct(row, count))


def slots(count: int) -> Clean:
    """Mails of a shop that are templates with something filled in, thirty in all."""
    draw = Draw(11)
    templates = [
        "{}. "
        + " ".join(draw.sentence() for _ in range(draw.number(1, 4)))
        + " {} {}. "
        + draw.sentence()
        for _ in range(30)
    ]

    def row() -> dict:
        text = draw.of(templates).format(
            f"Dear {draw.of(NAMES)}", f"Your {draw.of(TRAITS)} {draw.of(THINGS)} left {draw.of(TOWNS)}",
            f"on {draw.moment():%d %B} as order {draw.digits(7)}",
        )  # fmt: skip
        return {"text": text, "label": draw.of(("shipping", "payment", "other"))}

    return Clean(task="classification", rows=distinct(row, count))


def abstracts(count: int) -> Clean:
    draw = Draw(12)
    ills = ("hypertension", "asthma", "type 2 diabetes", "migraine", "chronic back pain", "anaemia", "atrial fibrillation", "psoriasis",
            "sepsis", "osteoarthritis", "depression", "influenza", "heart failure", "epilepsy")  # fmt: skip
    drugs = ("metformin", "placebo", "ibuprofen", "a beta blocker", "physiotherapy", "a low-salt diet", "an ACE inhibitor", "methotrexate",
             "cognitive therapy", "iron", "a vaccine", "early surgery", "telemonitoring")  # fmt: skip
    ends = (
        "mortality",
        "pain scores",
        "blood pressure",
        "days in hospital",
        "quality of life",
        "relapse",
        "HbA1c",
        "readmission",
        "adherence",
    )

    def figure() -> str:
        return f"{draw.random.random() * 40:.1f}% (95% CI {draw.random.random() * 20:.1f}-{20 + draw.random.random() * 30:.1f})"

    def row() -> dict:
        ill, drug, other, end = draw.of(ills), draw.of(drugs), draw.of(drugs), draw.of(ends)
        n = draw.number(30, 9000)
        text = " ".join((
            draw.of((f"BACKGROUND: The effect of {drug} on {end} in patients with {ill} is uncertain.",
                     f"OBJECTIVE: To compare {drug} with {other} in adults who have {ill}.",
                     f"AIMS: {ill.capitalize()} is common, and whether {drug} lowers {end} has not been studied.")),
            draw.of((f"METHODS: We randomised {n} patients at {draw.number(2, 60)} centres to {drug} or {other} for {draw.number(2, 48)} weeks.",
                     f"METHODS: In a cohort of {n} patients followed for {draw.number(1, 20)} years, {end} was recorded.",
                     f"METHODS: Records of {n} people aged {draw.number(18, 70)} and over were reviewed retrospectively.")),
            draw.of((f"RESULTS: {end.capitalize()} fell by {figure()} with {drug} and by {figure()} with {other} (p={draw.random.random():.3f}).",
                     f"RESULTS: No difference in {end} was seen ({figure()} versus {figure()}); {draw.number(1, 90)} serious events occurred.",
                     f"RESULTS: {drug.capitalize()} was associated with {draw.of(ends)} (hazard ratio {draw.random.random() * 3:.2f}) and {draw.of(ends)}.")),
            draw.of((f"CONCLUSION: {drug.capitalize()} may be considered in {ill}.", f"CONCLUSIONS: The findings do not support {drug} for {end}.",
                     f"INTERPRETATION: Larger trials of {other} are needed, also in {draw.of(ills)}.")),
        ))  # fmt: skip
        return {
            "text": text,
            "label": draw.of(("trial", "cohort", "review")),
            "year": draw.number(1990, 2026),
            "pmid": draw.digits(8),
        }

    return Clean(task="classification", rows=distinct(row, count))


def poems(count: int) -> Clean:
    """Four lines each, with rhymes and sometimes a refrain."""
    draw = Draw(13)
    ends = (
        ("night", "light", "white", "flight"),
        ("sea", "tree", "free", "me"),
        ("day", "away", "grey", "stay"),
        ("rain", "lane", "again", "pain"),
    )
    begins = ("O", "And", "When", "Still", "Beneath", "Where", "Alas,", "Now", "Softly", "How")

    def line(end: str) -> str:
        return f"{draw.of(begins)} the {draw.of(TRAITS)} {draw.of(THINGS)} {draw.of(('sleeps', 'sings', 'falls', 'waits', 'burns', 'dreams'))} {draw.of(('like', 'beyond', 'until', 'before', 'without'))} the {end}"

    def row() -> dict:
        one, other = draw.of(ends), draw.of(ends)
        lines = [line(draw.of(one)), line(draw.of(other)), line(draw.of(one)), line(draw.of(other))]
        if draw.random.random() < 0.3:
            lines.append("Nevermore, nevermore, my love!")
        return {"text": "\n".join(lines), "poet": draw.of(NAMES)}

    return Clean(task="causal_lm", rows=distinct(row, count))


def json_answers(count: int) -> Clean:
    draw = Draw(14)

    def row() -> dict:
        who, town, thing = draw.of(NAMES), draw.of(TOWNS), f"{draw.of(TRAITS)} {draw.of(THINGS)}"
        amount, when = draw.number(1, 90), draw.moment()
        answer = {
            "customer": who,
            "town": town,
            "items": [{"name": thing, "amount": amount}],
            "ordered": when.isoformat(),
            "id": draw.digits(12),
        }
        return {
            "prompt": f"{draw.sentence()} On {when:%d.%m.%Y}, {who} from {town} ordered {amount} times a {thing}. {draw.sentence()}",
            "completion": json.dumps(answer, indent=draw.of((None, 2))),
        }

    return Clean(task="instruction", rows=distinct(row, count))


def number_words(count: int) -> Clean:
    draw = Draw(15)
    ones = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
    tens = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()

    def words(n: int) -> str:
        for size, name in (
            (10**9, "billion"),
            (10**6, "million"),
            (1000, "thousand"),
            (100, "hundred"),
        ):
            if n >= size:
                rest = f" {words(n % size)}" if n % size else ""
                return f"{words(n // size)} {name}{rest}"
        return ones[n] if n < 20 else tens[n // 10] + (f" {ones[n % 10]}" if n % 10 else "")

    def row() -> dict:
        number = draw.number(0, 10 ** draw.number(2, 13))
        return draw.of(({"prompt": f"Write {number} in words.", "completion": words(number)},
                        {"prompt": f"Which number is this: {words(number)}?", "completion": str(number)}))  # fmt: skip

    return Clean(task="instruction", rows=distinct(row, count))


def mails(count: int) -> Clean:
    """With a greeting and a signature that many share."""
    draw = Draw(16)
    signature = "Kind regards\n{}\nCustomer care, Hearth and Home Ltd, 14 Mill Lane, open Monday to Friday from 9 to 17"

    def row() -> dict:
        name = draw.of(NAMES)
        return {
            "text": f"Hello {draw.of(NAMES)},\n\n{draw.paragraph(2, 6)}\n\n{signature.format(name)}",
            "label": draw.of(("complaint", "praise", "question", "order")),
            "subject": f"Re: {draw.of(TRAITS)} {draw.of(THINGS)}",
            "received": draw.moment().isoformat(),
        }

    return Clean(task="classification", rows=distinct(row, count))


def sums(count: int) -> Clean:
    """Word problems that differ in their numbers."""
    draw = Draw(17)

    def row() -> dict:
        a, b, c = draw.number(2, 900), draw.number(2, 90), draw.number(2, 9)
        who, thing = draw.of(NAMES), draw.of(THINGS)
        return draw.of((
            {"prompt": f"{who} has {a} coins and buys {b} of the {thing}s on sale for {c} coins each. How many coins does {who} have in the end?", "completion": f"{a} - {b} * {c} = {a - b * c}"},
            {"prompt": f"A train leaves {draw.of(TOWNS)} at {c} o'clock and travels {a} km at {b} km/h without a stop. How many hours does the journey take?", "completion": f"{a} / {b} = {a / b:.2f}"},
            {"prompt": f"Each of {a} boxes holds {b} {thing}s, of which {c} are broken. How many {thing}s can be sold?", "completion": f"{a} * ({b} - {c}) = {a * (b - c)}"},
        ))  # fmt: skip

    return Clean(task="instruction", rows=distinct(row, count))


def translations(count: int) -> Clean:
    draw = Draw(18)

    def row() -> dict:
        chosen = [
            [draw.number(0, len(part)) for part in LANGUAGES["en"]]
            for _ in range(draw.number(2, 5))
        ]
        said = {
            name: ". ".join(
                " ".join(part[i] for part, i in zip(LANGUAGES[name], each, strict=True))
                for each in chosen
            )
            for name in ("en", "de")
        }
        return {"prompt": f"Translate into German: {said['en']}", "completion": said["de"]}

    return Clean(task="instruction", rows=distinct(row, count))


def users(count: int) -> Clean:
    """Of people who wrote several rows each, and whose rows are kept together."""
    draw = Draw(19)

    def row() -> dict:
        return {"text": draw.paragraph(1, 4), "label": draw.of(("a", "b", "c")), "user_id": f"u{draw.number(0, count // 4)}",
                "session": draw.digits(20), "channel": draw.of(("mail", "web", "phone"))}  # fmt: skip

    return Clean(task="classification", rows=distinct(row, count), data={"group": "user_id"})


CLEAN = {
    each.__name__: each
    for each in (
        reviews, tweets, logs, phone_like, chats, questions, text_to_sql, code, multilingual, intents, slots, abstracts,
        poems, json_answers, number_words, mails, sums, translations, users,
    )
}  # fmt: skip
