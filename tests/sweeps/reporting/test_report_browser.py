"""The HTML report in a real browser: what it draws, what a reader can do with it, and that nothing goes wrong."""

import re
import shutil
import subprocess

import pytest
from boards import board_of
from test_report import Page, board, hostile, realistic, study_of, trial, whole

from sweeps.reporting.html import Beside, html_report

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHROMIUM = shutil.which("chromium")
PLOTS = ["plot-val_loss", "plot-probe_loss", "plot-parallel", "plot-importances", "plot-timeline"]


class Dom(Page):
    """A page as its scripts left it: `root` has what <html> says, `plots` the ids of plots that hold a drawing."""

    def __init__(self, text):
        self.plots, self.root, self.pressed, self.sorted_by = [], {}, {}, {}
        super().__init__(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "html":
            self.root = attributes
        if tag == "svg" and attributes.get("class") == "main-svg":
            plot = next(
                a["id"] for _, a in reversed(self.open) if a.get("class", "").startswith("plot ")
            )
            self.plots += [plot] if plot not in self.plots else []
        super().handle_starttag(tag, attrs)

    def order(self):
        return [row["trial"].split()[0] for row in self.table()]


@pytest.fixture
def browse(tmp_path):
    """Opens a board's report in Chromium, runs `script` on it once it is drawn, and reads back the document."""
    if CHROMIUM is None:
        pytest.skip("needs chromium on PATH (Debian: apt-get install chromium)")

    def opened(made, study=None, script="", dark=False, width=1280, **beside):
        file = tmp_path / "report.html"
        text = html_report(board_of(made), Beside(study=study, **beside))
        nonce = re.search(r'nonce="([^"]+)"', text)[1]
        wait = "while (!document.documentElement.dataset.drawn) await new Promise(r => setTimeout(r, 20));"
        steps = (
            f"(async () => {{ {wait} {script}; document.documentElement.dataset.done = 1; }})();"
        )
        after = f'<script nonce="{nonce}">{steps}</script>'
        file.write_text(text.replace("</body>", f"{after}</body>"), encoding="utf-8")
        command = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
        ]
        command += [
            "--no-first-run",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},1400",
        ]
        command += [
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--virtual-time-budget=5000",
        ]
        ran = subprocess.run(
            [*command, "--dump-dom", file.as_uri()], capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr[-2000:]
        dom = Dom(ran.stdout)
        assert "data-error" not in dom.root, dom.root["data-error"]
        assert dom.root.get("data-done") == "1", "the page's scripts did not come to their end"
        return dom

    return opened


@pytest.mark.parametrize("dark", [False, True])
def test_everything_is_drawn_without_an_error(browse, dark):
    made = realistic()
    dom = browse(made, study_of(made), dark=dark)
    assert dom.plots == PLOTS and dom.root["data-drawn"] == "5"
    assert dom.order() == [row.trial.id for row in board_of(made).rows]
    lines = [a["style"] for t, a in dom.tags if a.get("class") == "js-line"]
    strokes = {re.search(r"stroke: (rgb\([^)]*\))", style)[1] for style in lines}
    healthy = "rgb(60, 203, 159)" if dark else "rgb(8, 131, 95)"
    assert healthy in strokes and len(strokes) == 6, (
        "one colour per verdict, of the light or dark palette"
    )
    titles = [a["data-title"] for t, a in dom.tags if "data-title" in a]
    assert titles and not [
        title for title in titles if re.search("cloud|share|link|edit", title, re.I)
    ]


def test_the_other_tables_stand_in_nobodys_way(browse):
    """Columns sort and trials can be followed in the leaderboard; what is below it stays as it was."""
    script = """
      [...document.querySelectorAll('#leaderboard thead button')].find(b => b.textContent.trim() === 'rank').click();
      document.querySelector('tr[data-trial=t0003] td.trial button').click();
      document.querySelector('.chips button[data-tone=overfit]').click();
    """
    made = whole()
    dom, before = browse(made, study_of(made), script=script), browse(made, study_of(made))
    assert dom.plots == PLOTS
    assert [row["rank"] for row in dom.table()] == ["4", "8", "8", "16", "32", "32", "64"] + [
        "–"
    ] * 7
    rows = {a["data-trial"]: a for t, a in dom.tags if t == "tr" and "data-trial" in a}
    assert [id for id, a in rows.items() if "focus" in a.get("class", "")] == ["t0003"]
    for section in ("baselines", "slices", "pareto"):
        assert dom.tables[section] == before.tables[section] and len(dom.tables[section]) >= 3


def test_hostile_names_do_not_run(browse):
    dom = browse(hostile())  # each would set data-error
    assert dom.plots == ["plot-val_loss", "plot-probe_loss", "plot-parallel"]
    assert not [a for t, a in dom.tags if t == "img" or any(name.startswith("on") for name in a)]


def test_columns_sort_both_ways_with_absent_values_last(browse):
    click = "[...document.querySelectorAll('thead button')].find(b => b.textContent.trim() === 'rank').click();"
    up, down = browse(realistic(), script=click), browse(realistic(), script=click * 2)
    ranks = [[row["rank"] for row in dom.table()] for dom in (up, down)]
    assert ranks[0] == ["4", "8", "8", "16", "32", "32", "64"] + ["–"] * 7
    assert ranks[1] == ["64", "32", "32", "16", "8", "8", "4"] + ["–"] * 7
    assert [a.get("aria-sort") for t, a in up.tags if t == "th"].count("ascending") == 1


def test_a_verdict_can_be_hidden_and_a_trial_followed(browse):
    script = """
      document.querySelector('.chips button[data-tone=overfit]').click();
      document.querySelector('tr[data-trial=t0003] td.trial button').click();
      await new Promise(r => setTimeout(r, 300));
    """
    made = realistic()
    dom = browse(made, script=script)
    rows = {a["data-trial"]: a for t, a in dom.tags if t == "tr" and "data-trial" in a}
    assert [id for id, a in rows.items() if "hidden" in a] == ["t0011", "t0002"]
    assert [id for id, a in rows.items() if "focus" in a.get("class", "")] == ["t0003"]
    chips = [
        a["aria-pressed"] for t, a in dom.tags if t == "button" and a.get("data-tone") == "overfit"
    ]
    assert chips == ["false", "false"], "both rows of chips say the same"
    opacities = [a["style"] for t, a in dom.tags if "scatter trace" in a.get("class", "")]
    lines = (
        13 - 2 + 1
    )  # in each plot of losses: without the failed and the overfit trials, with the star
    assert len(opacities) == 2 * lines + (14 - 2)
    assert sum("opacity: 1" in style for style in opacities) == 3, (
        "t0003 alone stands out, in each of the three plots"
    )


@pytest.mark.parametrize(
    ("made", "plots"),
    [
        (board([]), []),
        (board([trial("t0000", "failed", [], status="failed", why="error")]), []),
        (
            board([trial("t0000", "healthy", [(0.5, 0.4)])], winner=("t0000", 0, "the only one")),
            PLOTS[:2],
        ),
        (board([trial("t0000", None, [], status="running", rank=8)], status="running"), []),
    ],
    ids=["no trials", "all failed", "one trial", "running"],
)
def test_boards_with_little_in_them(browse, made, plots):
    assert browse(made).plots == plots


def test_a_narrow_screen_scrolls_inside_its_containers(browse):
    script = "document.documentElement.dataset.overflow = document.documentElement.scrollWidth - innerWidth"
    made = whole()
    dom = browse(made, study_of(made), script=script, width=500)  # Chromium's narrowest window
    assert int(dom.root["data-overflow"]) <= 0


CROWDED = {
    "embeddings_logistic": {
        "val_loss": 1.05,
        "metrics": {},
        "words": "logistic regression on frozen embeddings",
    },
    "embeddings_neighbours": {
        "val_loss": 0.901,
        "metrics": {},
        "words": "nearest neighbours of frozen embeddings",
    },
    "zero_shot": {"val_loss": 0.899, "metrics": {}, "words": "prompt without examples"},
}
NOTES = """
  const box = element => element.getBoundingClientRect(), notes = [], inside = [], over = [];
  for (const plot of document.querySelectorAll('#curves .plot')) {
    const area = box(plot.querySelector('.nsewdrag')), own = [...plot.querySelectorAll('.annotation-text')].map(box);
    notes.push(...own);
    inside.push(...own.filter(note => note.left < area.right || note.right > box(plot).right));
    over.push(...own.filter((one, i) => own.some((other, j) => i < j && one.top < other.bottom && other.top < one.bottom)));
  }
  document.documentElement.dataset.notes = [notes.length, inside.length, over.length].join();
"""


@pytest.mark.parametrize("width", [500, 1280])
def test_letters_of_baselines_lie_on_no_curve_and_not_on_each_other(browse, width):
    made = whole()
    made["baselines"] |= CROWDED
    assert browse(made, script=NOTES, width=width).root["data-notes"] == "7,0,0"


def test_on_a_phone_the_winners_number_comes_before_the_words(browse):
    """A frame of 390 pixels: Chromium's windows are wider."""
    script = """
      const frame = document.createElement('div');
      frame.style.width = '390px';
      frame.append(document.querySelector('main'));
      document.body.append(frame);
      const top = selector => document.querySelector('#winner ' + selector).getBoundingClientRect().top;
      document.documentElement.dataset.tops = [top('h2'), top('.figures dd'), top('.reason')].join();
    """
    made = whole() | {"worth": {"words": "It is not clear. " * 30}}
    tops = [
        float(top) for top in browse(made, script=script, width=500).root["data-tops"].split(",")
    ]
    assert tops == sorted(tops) and tops[1] < 400
