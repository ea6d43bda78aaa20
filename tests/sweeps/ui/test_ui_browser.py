"""The page in a real browser: from a file of rows to an answer of the winner, by mouse and by keyboard alone."""

import json
import random
import re
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Page, expect

from sweeps.ui.listing import list_sweeps

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHATS = [
    ("Name a color", "The color is red."),
    ("Name an animal", "The animal is a dog."),
    ("Who are you?", "I am a little dog named Tim."),
]
FILE = "Sweep file (YAML)"


@pytest.fixture
def chat_rows(tmp_path: Path) -> Path:
    drawn = random.Random(0)
    rows = []
    for number in range(60):
        question, answer = drawn.choice(CHATS)
        said = [("user", f"{question} {number}"), ("assistant", answer)]
        rows.append({"messages": [{"role": role, "content": text} for role, text in said]})
    file = tmp_path / "chats.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def content(page: Page) -> dict:
    return yaml.safe_load(page.get_by_label(FILE).input_value())


def upload(page: Page, file: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload a file").click()
    chooser.value.set_files(str(file))


def choose(page: Page, label: str, option: str | re.Pattern[str]) -> None:
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option).click()


@pytest.mark.ray
def test_from_a_file_to_an_answer(open_server, tab, chat_rows, shared_data, general_text, tmp_path):
    """Upload, doctor, preset, file, check, start; the server is ended and another finds the sweep again; stop, resume,
    chat.
    """
    storage = tmp_path / "runs"
    page, server = tab(), open_server(storage)
    page.goto(server.url)
    page.get_by_role("button", name="New sweep").click()
    page.get_by_label("Base model").fill(str(shared_data / "models" / "stories260K"))
    upload(page, chat_rows)
    expect(page.get_by_text("1 column(s); instruction, as it has the columns")).to_be_visible()
    assert (storage / "ui/uploads" / "chats.jsonl").read_bytes() == chat_rows.read_bytes()
    assert content(page)["search"]["space"] == "llm_small", "the preset for conversations"
    choose(page, "Start from (writes the file anew)", re.compile("A short file"))
    page.get_by_label("Trials").fill("3")
    page.get_by_label("Epochs").fill("2")
    expect(page.get_by_label(FILE)).to_have_value(re.compile("epochs: 2"))
    choose(page, "Methods", re.compile("^lora$"))
    page.keyboard.press("Escape")
    expect(page.get_by_label(FILE)).to_have_value(re.compile("method: lora"))
    made = content(page)
    assert made["search"] == {"space": "auto", "trials": 3}
    assert made["train"] == {"epochs": 2, "method": "lora"}
    more = f"selection: {{general_text: {general_text}}}\ntracking: {{wandb: 'off'}}\n"
    page.get_by_label(FILE).fill(page.get_by_label(FILE).input_value() + more)
    expect(page.get_by_role("button", name="Start", exact=True)).to_be_disabled()
    page.get_by_role("button", name="Check", exact=True).click()
    expect(page.get_by_text("No problem found")).to_be_visible()
    expect(page.get_by_text("validation: with 6 rows")).to_be_visible()
    file = storage / "ui/sweep-files" / "chats.yaml"
    assert yaml.safe_load(file.read_text()) == content(page)
    expect(page.get_by_text(f"python -m sweeps run {file}")).to_be_visible()
    page.get_by_role("button", name="Start", exact=True).click()

    expect(page.get_by_text("starting", exact=True)).to_be_visible()
    page.close()
    server.process.kill()
    server.process.wait()
    page = tab()
    page.goto(open_server(storage).url)
    page.get_by_role("link", name=re.compile("chats")).click()
    expect(page).to_have_url(re.compile(r"/sweep/chats-\d{8}-\d{6}"))
    expect(page.get_by_role("log")).to_contain_text("t0001 starts")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("interrupted", exact=True)).to_be_visible()
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_text("running", exact=True)).to_be_visible()
    expect(page.get_by_text("finished", exact=True)).to_be_visible(timeout=600_000)
    report = page.frame_locator("iframe")
    expect(report.get_by_role("heading", name="chats")).to_be_visible()

    page.get_by_role("button", name="Chat").click()
    expect(page.get_by_text("Ready.")).to_be_visible()
    page.get_by_label("Say something").fill("Name a color 7")
    page.keyboard.press("Enter")
    said = page.get_by_role("log")
    expect(said).to_have_text(re.compile(r"^Name a color 7.*\w.*", re.DOTALL))
    expect(page.get_by_text("Ready.")).to_be_visible()
    assert said.locator(".it").inner_text().strip("… \n")
    (only,) = list_sweeps(storage)
    assert only.status == "finished" and only.has_winner
    page.get_by_role("link", name="All sweeps").click()
    page.get_by_role("button", name="New sweep").click()
    proposed = page.get_by_label("Base model").evaluate(
        "it => [...it.list.options].map(each => each.value)"
    )
    assert proposed == [str(storage / only.name)]


def test_errors_are_those_of_the_terminal_beside_their_fields(
    open_server, tab, chat_rows, tmp_path
):
    page = tab()
    page.goto(open_server(tmp_path / "runs").url)
    page.get_by_role("button", name="New sweep").click()
    page.get_by_label("Base model").fill("some/model")
    page.get_by_label("Data").fill(str(tmp_path / "none.csv"))
    page.get_by_role("button", name="Look at the data").click()
    beside(page, "Data", "none.csv: no such file")
    page.get_by_label("Data").fill(str(chat_rows))
    page.get_by_role("button", name="Look at the data").click()
    page.get_by_label("Trials").fill("0")
    beside(page, "Trials", "search.trials: must be at least 1, got 0")
    page.get_by_label("Trials").fill("4")
    page.get_by_label("Time budget").fill("soon")
    beside(page, "Time budget", "search.time_budget: must be a number with s, m, h or d")
    page.get_by_label("Time budget").fill("")
    expect(page.get_by_role("alert").get_by_text("must be")).to_have_count(0)
    assert content(page)["search"]["trials"] == 4 and "time_budget" not in content(page)["search"]

    text = page.get_by_label(FILE).input_value()
    page.get_by_label(FILE).fill(text.replace("trials: 4", "trials: 9") + "  more: [\n")
    expect(page.get_by_role("alert").filter(has_text="not valid YAML")).to_be_visible()
    page.get_by_label(FILE).fill(text.replace("trials: 4", "trials: 9"))
    expect(page.get_by_label("Trials")).to_have_value("9")
    other = text.replace("task: instruction", "task: seq2seq").replace("llm_small", "seq2seq")
    page.get_by_label(FILE).fill(other.replace("\ntrain:\n", "\ntrain:\n  epochs: 3\n"))
    expect(page.get_by_label("Column: Source")).to_be_visible()
    expect(page.get_by_label("Epochs")).to_have_value("3")
    page.get_by_label(FILE).fill(text.replace("trials: 4", "trails: 9"))
    expect(page.get_by_role("alert").filter(has_text="Did you mean 'trials'?")).to_be_visible()


def test_what_was_changed_by_hand_is_not_lost_unasked(open_server, tab, chat_rows, tmp_path):
    page = tab()
    page.goto(open_server(tmp_path / "runs").page_with_token("new"))
    page.get_by_label("Base model").fill("some/model")
    page.get_by_label("Data").fill(str(chat_rows))
    page.get_by_role("button", name="Look at the data").click()
    page.get_by_label("Trials").fill("7")
    file = page.get_by_label(FILE)
    expect(file).to_have_value(re.compile("trials: 7"))
    choose(page, "Start from (writes the file anew)", re.compile("A short file"))
    expect(file).to_have_value(re.compile("trials: 20"))
    file.fill(f"{file.input_value()}seed: 5  # mine\n")
    page.get_by_label("Trials").fill("8")
    expect(file).to_have_value(re.compile("trials: 8\n.*seed: 5  # mine", re.DOTALL))
    for answer, kept in (("Keep it", True), ("Write it anew", False)):
        choose(page, "Task", re.compile("causal_lm"))
        page.get_by_role("button", name=answer).click()
        task = "instruction" if kept else "causal_lm"
        expect(file).to_have_value(re.compile(f"task: {task}"))
        expect(page.get_by_label("Task", exact=True)).to_have_value(re.compile(task))
        assert ("seed" in content(page)) == kept


def beside(page: Page, label: str, line: str) -> None:
    """In the field itself."""
    field = page.locator("label.q-field", has=page.get_by_label(label, exact=True))
    expect(field.get_by_role("alert").filter(has_text=line)).to_be_visible()


def test_by_keyboard_alone(open_server, tab, chat_rows, tmp_path):
    """Every step to the check, and each thing that has the focus has a name, and shows it."""
    page = tab()
    page.goto(open_server(tmp_path / "runs").url)
    expect(page.get_by_role("button", name="New sweep")).to_be_visible()
    walk(page, "New sweep")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="New sweep")).to_be_visible()
    walk(page, "Base model")
    page.keyboard.type("some/model")
    walk(page, "Data")
    page.keyboard.type(str(chat_rows))
    walk(page, "Upload a file")
    walk(page, "Look at the data")
    page.keyboard.press("Space")
    expect(page.get_by_label(FILE)).to_be_visible()
    walk(page, "Task")
    walk(page, "Start from")
    page.keyboard.press("ArrowDown")
    option = page.get_by_role("option", name=re.compile("A short file"))
    expect(option).to_be_visible()
    for _ in range(10):
        if "--focused" in (option.get_attribute("class") or ""):
            break
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_label(FILE)).to_have_value(re.compile("space: auto"))
    walk(page, "Trials")
    page.keyboard.press("Control+a")
    page.keyboard.type("7")
    expect(page.get_by_label(FILE)).to_have_value(re.compile("trials: 7"))
    walk(page, FILE)
    page.keyboard.press("Control+End")
    page.keyboard.type("seed: 5\n")
    walk(page, "Check")
    assert content(page)["model"] == {"name": "some/model"} and content(page)["seed"] == 5


FOCUSED = """() => {
  const it = document.activeElement, style = getComputedStyle(it);
  const label = it.labels && it.labels.length ? it.labels[0].innerText : '';
  const field = it.closest('.q-field');
  const shows = style.outlineStyle !== 'none' || (field && field.classList.contains('q-field--focused'))
    || it.querySelector(':scope > .q-focus-helper');
  return [(it.getAttribute('aria-label') || label || it.innerText || it.title || '').trim(), !!shows, it.tagName];
}"""


def walk(page: Page, name: str) -> None:
    """Press Tab until what is called so has the focus."""
    for _ in range(40):
        page.keyboard.press("Tab")
        found, shows, tag = page.evaluate(FOCUSED)
        if tag == "BODY":  # the browser's own bar
            continue
        assert found, f"a {tag} without a name has the focus"
        assert shows, f"{found} has the focus and does not show it"
        if found.startswith(name):
            return
    raise AssertionError(f"{name} is not reached")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_by_day_and_by_night(open_server, tab, chat_rows, tmp_path, scheme):
    page = tab(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    server = open_server(tmp_path / "runs")
    page.goto(server.url)
    expect(page.get_by_text("There is none yet.")).to_be_visible()
    for label, path in (("Find by name", ""), ("Base model", "new")):
        page.goto(server.page(path))
        expect(page.get_by_label(label)).to_be_visible()
        fits(page)
    page.get_by_label("Base model").fill("some/model")
    page.get_by_label("Data").fill(str(chat_rows))
    page.get_by_role("button", name="Look at the data").click()
    page.get_by_label("Trials").fill("0")
    beside(page, "Trials", "search.trials")
    fits(page)
    behind, text = page.evaluate(
        "() => ['backgroundColor', 'color'].map(name => getComputedStyle(document.body)[name])"
    )
    is_dark = brightness(behind) < brightness(text)
    assert is_dark == (scheme == "dark"), (behind, text)
    for element in page.locator(
        "label.q-field, .q-field__messages, .sheet p, .sheet button, .wrong"
    ).all():
        if element.is_visible() and element.is_enabled():
            colour = element.evaluate("it => getComputedStyle(it).color")
            over = element.evaluate(BEHIND)
            assert contrast(colour, over) >= 3, (element.inner_text(), colour, over)


def fits(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


BEHIND = """it => {
  for (let at = it; at; at = at.parentElement) {
    const found = getComputedStyle(at).backgroundColor;
    if (found.startsWith('rgb(')) return found;
  }
  return 'rgb(255, 255, 255)';
}"""


def brightness(colour: str) -> float:
    """Relative luminance, as WCAG has it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((brightness(one), brightness(other)))
    return (high + 0.05) / (low + 0.05)


def test_two_tabs_are_two_forms(open_server, tab, chat_rows, tmp_path):
    url = open_server(tmp_path / "runs").url
    first, second = tab(), tab()
    for page, trials in ((first, "5"), (second, "6")):
        page.goto(url)
        page.get_by_role("button", name="New sweep").click()
        upload(page, chat_rows)
        page.get_by_label("Trials").fill(trials)
        expect(page.get_by_label(FILE)).to_have_value(re.compile(f"trials: {trials}"))
    assert [content(page)["search"]["trials"] for page in (first, second)] == [5, 6]
    kept = [content(page)["data"]["train"] for page in (first, second)]
    assert [Path(each).name for each in kept] == ["chats.jsonl", "chats-2.jsonl"]


def test_a_long_list_is_shown_in_pages_and_searched(open_server, tab, tmp_path):
    for number in range(1000):
        folder = tmp_path / "runs" / f"tickets-{number:04}"
        folder.mkdir(parents=True)
        (folder / "sweep.yaml").write_text("task: classification\nmodel: {name: some/model}\n")
    page = tab()
    page.goto(open_server(tmp_path / "runs").url)
    expect(page.get_by_text("1000", exact=True)).to_be_visible()
    assert page.locator("ul.list > li").count() == 25
    page.get_by_label("Find by name").fill("0777")
    expect(page.get_by_text("1 of 1000")).to_be_visible()
    expect(page.get_by_role("link", name="tickets-0777")).to_be_visible()
    expect(page.get_by_text("classification with some/model")).to_be_visible()


def test_the_page_is_for_who_has_its_address(open_server, tab, tmp_path):
    server, page = open_server(tmp_path / "runs"), tab()
    answer = page.request.get(server.page(""))
    assert answer.status == 403 and "as `python -m sweeps ui` has printed it" in answer.text()
