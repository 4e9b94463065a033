"""Laws of a comparison's page: all of it is there, nothing foreign acts, nothing is loaded, and a real browser shows it."""

from __future__ import annotations

import html
import itertools
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from support.comparisons import CONTROLS, GROWN, Grown, measured

from ligo_convert.comparison.frontier import End
from ligo_convert.comparison.page import POLICY, comparison_html
from ligo_convert.comparison.record import SeedRuns

HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\"></svg></style><script>document.title='owned'</script>\x1b[2J\u202e&"
)
WARNINGS = [
    {
        "rule": "source-cost-high",
        "text": "the source took 31 % of scratch's FLOPs; at most 20 % is fair",
        "methods": ["ligo"],
    },
    {"rule": "tuning", "text": "scratch was tuned on fewer runs.", "methods": None},
]
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """A page as its elements, its texts, and the rows of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.unclosed: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


MANY = GROWN | {
    "ligo@zoo": Grown(paper=60.0, source="zoo", base="ligo"),
    "ligo+layer-drop": Grown(paper=20.0, spread=2.0),
    "direct": Grown(paper=-20.0),
}
TWO = {"small": (0.15, 3.9), "zoo": (0.7, 3.6)}


def many(**more: Any) -> dict[str, Any]:
    return measured(MANY, sources=TWO, **more)


def hostile() -> dict[str, Any]:
    """A comparison in which everything that can be text is an attack."""

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poison(item) for key, item in value.items()}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return HOSTILE if isinstance(value, str) else value

    data: dict[str, Any] = poison(many(fairness_warnings=WARNINGS, skipped={"aki": "why"}))
    data["methods"]["scratch"]["kind"] = "scratch"
    data["methods"][HOSTILE] = data["methods"].pop("stackbert")
    data["controls"] = {HOSTILE: data["controls"]["4 layers"]}
    data["controls"][HOSTILE] |= {"config": {HOSTILE: HOSTILE}, "stages": [{HOSTILE: HOSTILE}]}
    data["skipped"] = {HOSTILE: HOSTILE}
    data["versions"] = {HOSTILE: HOSTILE}
    return data


def tables(page: Page, text: str) -> dict[str, list[list[str]]]:
    """The tables by the ids of their headings."""
    names = re.findall(r'<h2 id="([\w-]+)">[^<]*</h2>\n<div class="scroll"', text)
    return dict(zip(names, page.tables, strict=True))


@pytest.fixture(scope="module")
def shown() -> tuple[dict[str, Any], str, Page]:
    data = many(seeds=(0, 1, 2), fairness_warnings=WARNINGS)
    text = comparison_html(data)
    assert text == comparison_html(data), "the same numbers give the same page"
    return data, text, Page(text)


def test_the_verdict_comes_first_and_every_entry_is_in_the_tables(shown: tuple[dict[str, Any], str, Page]) -> None:
    data, text, page = shown
    assert text.index("Source charged (net): <code>ligo</code> saves most") < text.index("<svg")
    everything = "".join(page.text.split())
    for sentence in data["verdict"]["text"]:
        assert "".join(sentence.replace("+-", "\u00b1").replace("`", "").split()) in everything
    for name in ("ligo", "stackbert"):
        assert f"<dt>{name}</dt><dd>{data['methods'][name]['summary']}</dd>" in text
    assert "<dt>4 layers</dt><dd>never grown: n_layer 4</dd>" in text
    found = tables(page, text)
    assert list(found) == ["savings", "budget", "break-even", "sources", "optimizers", "ends"]
    names = {*data["methods"], *data["controls"]}
    assert {row[0] for row in found["savings"][1:]} == names
    assert {row[0] for row in found["ends"][1:]} == names
    assert {row[0] for row in found["break-even"][1:]} == {
        name for name, one in data["methods"].items() if one["needs_source"]
    }
    assert {row[0] for row in found["sources"][1:]} == set(TWO)
    assert len(found["budget"]) == 1 + len(data["equal_budget"])
    for rows in found.values():
        assert {len(row) for row in rows} == {len(rows[0])}
    assert page.open == []
    assert len(page.all("svg")) == 2
    assert "None" not in page.text


def test_reasons_warnings_and_versions_are_there(shown: tuple[dict[str, Any], str, Page]) -> None:
    data, text, page = shown
    for name, reason in data["skipped"].items():
        assert name in page.text
        assert reason in page.text
    for warning in WARNINGS:
        assert str(warning["text"]) in page.text
    assert "Concerns ligo." in page.text
    assert text.index('href="#warnings"') < text.index("<svg")
    assert 'class="warnings"' not in comparison_html(measured())
    assert data["flops_convention"] in page.text
    for name, version in data["versions"].items():
        assert f"{name} {version}" in page.text
    assert "770,000 parameters" in page.text
    assert "8.2 million tokens" in page.text


@pytest.mark.parametrize("ends", [4, 1])
def test_the_tuning_runs_of_a_length_mark_the_rate_that_was_kept_at_this_length(ends: int) -> None:
    """Short runs have chosen the lower rate, runs over the whole budget the higher one; with shorter ends or without."""
    data = measured({"ligo": Grown(paper=40.0, shares=(0.25, 0.4, 0.63, 1.0)[-ends:])})
    entry = data["methods"]["ligo"]
    for end in entry["ends"][:-1]:
        end["learning_rate"] = 1e-2
    whole = entry["ends"][-1]["step"]
    entry["tried"] = [
        {"learning_rate": rate, "steps": steps, "validation_loss": 3.5}
        for rate, steps in ((5e-3, 800), (1e-2, 800), (2e-2, 800), (1e-2, whole), (2e-2, whole))
    ]
    runs = re.findall(r"<li>learning rate ([\d.]+), ([\d,]+) steps: [^<]*, kept</li>", comparison_html(data))
    assert runs == [("0.01", "800"), ("0.02", f"{whole:,}")]
    # One rate over the whole budget, which short runs have chosen.
    entry["tried"] = entry["tried"][:3]
    for end in entry["ends"]:
        end["learning_rate"] = 2e-2
    runs = re.findall(r"<li>learning rate ([\d.]+), ([\d,]+) steps: [^<]*, kept</li>", comparison_html(data))
    assert runs == [("0.02", "800")]


def test_the_savings_are_sorted_and_bounds_are_shown(shown: tuple[dict[str, Any], str, Page]) -> None:
    data, text, page = shown
    rows = [row for row in tables(page, text)["savings"][1:] if row[0] in data["methods"]]
    saved = [0.0 if row[0] == "scratch" else data["methods"][row[0]]["headline"]["net"]["saved"] for row in rows]
    assert saved == sorted(saved, reverse=True)
    bounded = comparison_html(measured({"ligo": Grown(paper=80.0)}))
    (row,) = [row for row in tables(Page(bounded), bounded)["savings"] if row[0] == "ligo"]
    assert row[-3:-1] == ["at least 60.0 %", "at least 75.0 %"]
    own = comparison_html(measured({"ligo": Grown(paper=40.0, shares=(0.25, 0.48))}))
    (row,) = [row for row in tables(Page(own), own)["savings"] if row[0] == "ligo"]
    assert row[-1] == "3.364 *"


def test_what_is_not_known_is_said() -> None:
    text = comparison_html(measured(sources={"small": (None, 3.9)}))
    page = Page(text)
    found = tables(page, text)
    assert next(row for row in found["savings"] if row[0] == "ligo")[-3] == "source cost unknown"
    assert {row[5] for row in found["break-even"][1:]} == {"not known"}
    assert "Not drawn" not in page.text  # it is drawn as outlines
    assert "None" not in page.text
    ends = {0: SeedRuns(ends=[End(steps=1000, flops=1e13, loss=None)])}
    for name in ("ligo", "scratch", "4 layers"):
        text = comparison_html(measured(replaced={name: ends}))
        assert "not finite" in next(row for row in tables(Page(text), text)["savings"] if row[0] == name)
        assert not re.search(r"\bnan\b|\bNone\b|\bnull\b", Page(text).text)


def test_images_are_spoken_of_as_images() -> None:
    data = measured(task="image-classification")
    data["budget"] |= {"unit": "images", "examples": 60160, "sequence_length": None, "tokens_per_parameter": 0.078}
    data["methods"]["ligo"]["ends"][-1]["accuracy"] = 0.614
    text = comparison_html(data)
    page = Page(text)
    assert "60,160 images" in page.text
    assert "nats an image" in page.text
    assert "tokens" not in page.text.casefold()
    found = tables(page, text)["savings"]
    assert "Accuracy" in found[0]
    assert "61.4 %" in next(row for row in found if row[0] == "ligo")


def test_what_others_wrote_is_shown_and_does_nothing() -> None:
    text = comparison_html(hostile())
    page = Page(text)
    assert not page.all("script")
    assert not page.all("img")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.open == []
    assert "\x1b" not in text
    assert "\u202e" not in text
    shown = HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert {shown, "scratch"} <= {row[0] for row in page.tables[0]}


def test_nothing_is_loaded() -> None:
    for data in (measured(), hostile()):
        text = comparison_html(data)
        page = Page(text)
        for tag, attributes in page.elements:
            for name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                assert str(attributes.get(name, "#")).startswith(("#", "data:")), f"{tag} {name}={attributes[name]}"
        assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "embed", "base", "form"}
        assert "@import" not in text
        assert all(found == "#" for found in re.findall(r"url\(\s*[\"']?(.)", text))


def test_the_page_can_be_read_by_everyone() -> None:
    page = Page(comparison_html(many()))
    assert page.all("html")[0]["lang"] == "en"
    metas = {str(meta.get("name") or meta.get("http-equiv")): meta.get("content") for meta in page.all("meta")}
    assert metas["viewport"] == "width=device-width, initial-scale=1"
    assert metas["Content-Security-Policy"] == POLICY
    assert all(heading["scope"] in ("col", "row") for heading in page.all("th"))
    assert len(page.all("caption")) == len(page.tables)
    for drawing in page.all("svg"):
        assert drawing["role"] == "img"
        assert drawing["aria-label"]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_colour_of_text_stands_out() -> None:
    themes = re.findall(r":root \{([^}]*--page[^}]*)\}", comparison_html(measured()))
    assert len(themes) == 3, "light, dark, paper"
    for theme in themes:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", theme))
        pairs = [(ink, back) for ink in ("ink", "soft") for back in ("page", "band", "best")]
        for ink, back in [*pairs, ("link", "page"), ("ink", "warn-page"), ("warn-line", "warn-page")]:
            light, dark = sorted((luminance(colours[ink]), luminance(colours[back])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{ink} on {back}"


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Opens a page in a real browser: the page and options in, what the browser prints out."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser here: none of {', '.join(names)}")
    profile = tmp_path_factory.mktemp("profile")

    def run(page: Path, *options: str) -> str:
        command = [
            program,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
        ]
        done = subprocess.run(
            [*command, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
        )
        return done.stdout

    return run


def test_a_browser_shows_every_method_and_runs_nothing(browse: Callable[..., str], tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(comparison_html(many()), encoding="utf-8")
    shown = Page(browse(page, "--dump-dom"))
    assert {row[0] for row in shown.tables[0][1:]} == {"scratch", *MANY, *CONTROLS}
    page.write_text(comparison_html(hostile()), encoding="utf-8")
    found = browse(page, "--dump-dom")
    assert "<title>owned" not in found
    assert len(Page(found).tables[0]) == 1 + 1 + len(MANY) + len(CONTROLS)


@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_paints_the_page(dark: bool, browse: Callable[..., str], tmp_path: Path) -> None:
    from PIL import Image

    page, shot = tmp_path / "report.html", tmp_path / "shot.png"
    page.write_text(comparison_html(many(seeds=(0, 1, 2), fairness_warnings=WARNINGS)), encoding="utf-8")
    browse(page, f"--screenshot={shot}", "--window-size=1280,1600", *(["--force-dark-mode"] if dark else []))
    with Image.open(shot) as image:
        assert image.format == "PNG"
        assert image.size == (1280, 1600)
        colours = {colour: count for count, colour in image.convert("RGB").getcolors(1 << 24) or []}
    assert len(colours) > 50
    assert max(colours.values()) < 0.9 * 1280 * 1600
    # The line of ligo, on its white card in both themes.
    assert (0, 114, 178) in colours
    assert max(colours, key=lambda colour: colours[colour]) in ((255, 255, 255), (22, 23, 26))
    assert ((22, 23, 26) in colours) == dark


def test_the_page_never_scrolls_sideways(browse: Callable[..., str], tmp_path: Path) -> None:
    """In frames of a phone's and a wide screen's width, whose scripts stay off: the page around them measures."""
    long = many(seeds=(0, 1, 2), fairness_warnings=WARNINGS)
    long["methods"]["W" * 300] = long["methods"].pop("stackbert")
    long["skipped"]["M" * 300] = "i" * 500
    frames = [
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(comparison_html(data))}"></iframe>'
        for data in (measured(), long)
        for width in (400, 1600)
    ]
    script = (
        "onload = () => { document.title = [...document.querySelectorAll('iframe')]"
        ".map(frame => { const page = frame.contentDocument, box = page.querySelectorAll('.scroll')[2];"
        " return [page.documentElement.scrollWidth, box.scrollWidth > box.clientWidth].join('/'); }).join(' '); }"
    )
    around = tmp_path / "around.html"
    around.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><title>?</title>{"".join(frames)}<script>{script}</script>',
        encoding="utf-8",
    )
    title = re.findall(r"<title>([^<]*)</title>", browse(around, "--dump-dom"))[0]
    widths = [int(found.partition("/")[0]) for found in title.split()]
    assert widths == [400, 1600, 400, 1600]
    assert [found.partition("/")[2] for found in title.split()][::2] == ["true", "true"], "the table scrolls in its box"
