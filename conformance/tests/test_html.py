"""report.html in a real browser: it shows everything, runs nothing of anybody's, loads nothing.

Each thing that is looked for is also planted, so that a check which sees nothing is no pass.
"""

import copy
import json
import re
import shutil
from html import unescape
from html.parser import HTMLParser

import pytest

from qloracle_conformance import reports
from qloracle_conformance.engine.verdicts import level_lines, worst
from qloracle_conformance.reports import data, failures, files, html, repro, screen
from qloracle_conformance.reports.files import printable
from qloracle_conformance.running.known import Known
from qloracle_conformance.running.verify import verify

# The scale of the short last block is that of the block before; a tie goes up; swapped nibbles.
KERNEL = r"""
import numpy as np
import qloracle as q

def dequantize_4bit(packed, absmax, *, shape, blocksize=64, quant_type="nf4", dtype=np.float32):
    if quant_type != "nf4":
        raise NotImplementedError(f"no {quant_type}")
    short = absmax.copy()
    if len(short) > 1 and np.prod(shape) % blocksize:
        short[-1] = short[-2]
    return q.dequantize_4bit(packed, short, shape=shape, blocksize=blocksize, dtype=dtype)

def quantize_4bit(x, *, blocksize=64, quant_type="nf4"):
    packed, absmax = q.quantize_4bit(x, blocksize=blocksize, quant_type=quant_type)
    return packed >> 4 | packed << 4, absmax

def quantize_blockwise(x, codebook, *, blocksize=256):
    codes, absmax = q.quantize_blockwise(x, codebook, blocksize=blocksize)
    return np.where(codes == 127, 131, codes).astype(np.uint8), absmax

def quantize_absmax(absmax, *, codebook=None, blocksize=256):
    raise ValueError("red \x1b[31m & <b>bold</b> <script>hostile = 1</script> \ud800 \u202e \x00")
"""
ONLY = "S3/*/shapes,S4/*/zeros,S5/*/zeros,S6,S8/*/offset,P1"
KNOWN = (
    Known("S6/quantize_4bit[fp4]/pairs", "packed", "https://tracker/1"),
    Known("S3/quantize_blockwise[unsigned]/shapes", "code", "javascript:alert(1)"),
    Known("S6/nothing", "", "https://tracker/3"),
)
HOSTILE = (
    "<script>hostile = 1</script>",
    "</title></style></script><img src=x onerror='hostile = 1'>",
    "\"'><b id=hostile>& &amp; &lt;",
    "red \x1b[31m, nul \x00, right to left \u202e, lone \ud800, none \uffff",
    "one\ntwo\ttabs",
    "x" * 400,
)
WIDTHS = (360, 768, 1440)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernel") / "kernel.py"
    path.write_text(KERNEL)
    return verify([str(path), "numpy"], only=ONLY, known=KNOWN, require="L1")


@pytest.fixture(scope="module")
def scripts(judged):
    """The repro scripts of the run, by path; the last line of one has a wild end."""
    texts = {name: text for one in judged.judgements for name, text in repro.scripts(one).items()}
    odd = next(iter(texts))
    return texts | {odd: f"\n\n{texts[odd]}# <b> &lt; ü \t \r\n\n"}


@pytest.fixture(scope="module")
def report(judged, scripts):  # which names them in the report
    """A report with everything in it that a page must get right."""
    data = judged.to_dict() | {"partial": True}
    kernel = data["implementations"][0]
    model = next(c for c in kernel["checks"] if c["id"] == "S3/dequantize_4bit[nf4]/shapes")
    more = [_failing(model, n) for n in range(60)]
    kernel["checks"] += more
    kernel["faults"] += [{"checks": [check["id"]], "consequences": []} for check in more]
    bound = next(c for c in kernel["checks"] if c["id"] == "P1/quantize_4bit")
    bound["bound_use"] = float("inf")
    data["implementations"] += [_broken(kernel), _hostile(kernel)]
    data["unmet"].append(HOSTILE[0])
    data["known_problems"].append(HOSTILE[2])
    return data


def _failing(model, n):
    """A failure of its own, as the model with another element and wild words."""
    check = {name: value for name, value in copy.deepcopy(model).items() if name != "repro"}
    words = HOSTILE[n % len(HOSTILE)]
    check |= {"id": f"S3/dequantize_4bit[nf4]/{n}", "looks_like": [words]}
    check["failure"] |= {"index": n, "reason": words, "call": f"dequantize_4bit({words * 9})"}
    check["failure"] |= {"bound": 0.25, "observed": "inf", "ratio": "inf"}
    return check


def _broken(kernel):
    """An implementation that did not load."""
    words = f"does not import: {HOSTILE[1]}\n{HOSTILE[3]}"
    functions = [row | {"status": "MISSING"} for row in kernel["functions"]]
    empty = {name: [] for name in ("dialects", "checks", "faults", "levels", "offers")}
    said = {"name": HOSTILE[5], "status": "ERROR", "message": words}
    return kernel | empty | said | {"functions": functions}


def _hostile(kernel):
    """An implementation whose every text is wild."""
    wild = copy.deepcopy(kernel) | {"name": HOSTILE[2], "versions": {HOSTILE[0]: HOSTILE[3]}}
    wild["checks"], wild["faults"] = wild["checks"][:-60], wild["faults"][:-60]
    for check in wild["checks"]:
        check["message"] = HOSTILE[1]
    for row in wild["functions"]:
        row |= {"scope": HOSTILE[5], "dialect": {HOSTILE[0]: HOSTILE[1]}}
    return wild


@pytest.fixture(scope="module")
def page(report, scripts):
    return html.text(report, scripts)


@pytest.fixture(scope="module")
def calm(judged):
    """The report of the reference alone, in which all went well."""
    data = judged.to_dict()
    (reference,) = (i for i in data["implementations"] if i["name"] == "numpy")
    for check in reference["checks"]:
        check["status"] = "PASS"
    reference["faults"] = []
    for part in (*reference["functions"], *reference["levels"]):
        part["status"] = "PASS"
    gone = {"unmet": [], "known_problems": [], "require": "", "only": "", "exit_code": 0}
    return data | gone | {"implementations": [reference]}


# ---- the file, without a browser -----------------------------------------------------------------


class Outline(HTMLParser):
    """What a reader of the source finds wrong with a page."""

    def __init__(self, text):
        super().__init__()
        self.open, self.faults, self.ids, self.links, self.levels = [], [], [], [], []
        self.feed(text)
        self.close()
        self.faults += [f"not closed: {name}" for name in self.open]
        self.faults += [f"id twice: {name}" for name in {*self.ids} if self.ids.count(name) > 1]
        self.faults += [f"leads nowhere: {name}" for name in self.links if name not in self.ids]
        steps = zip([0, *self.levels], self.levels, strict=False)
        self.faults += [f"h{b} after h{a}" for a, b in steps if b > a + 1]

    def handle_starttag(self, tag, attributes):
        said = dict(attributes)
        if tag != "meta":
            self.open.append(tag)
        if tag == "th" and "scope" not in said:
            self.faults.append("a heading of a table without scope")
        if tag == "tbody" and "caption" not in self.closed:
            self.faults.append("a table without caption")
        if tag == "table":
            self.closed = []
        if re.fullmatch(r"h\d", tag):
            self.levels.append(int(tag[1]))
        self.ids += [said["id"]] if "id" in said else []
        self.links += [said["href"][1:]] if said.get("href", "").startswith("#") else []
        self.faults += [f"{tag} has {name}" for name in said if name in ("src", "style", "onclick")]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"closed out of order: {tag}")
        if tag == "caption":
            self.closed.append(tag)


def test_the_page_is_well_made(page, calm):
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">')
    assert Outline(page).faults == []
    assert Outline(html.text(calm)).faults == []


FAULTS = {
    "not closed: html": ("</html>", ""),
    "closed out of order: tr": ("</th></tr>", "</tr></th>"),
    "a table without caption": ("<caption>", "<caption hidden><!--"),
    "a heading of a table without scope": (' scope="row"', ""),
    "id twice: implementation-0": ('id="implementation-1"', 'id="implementation-0"'),
    "leads nowhere: implementation-1": ('id="implementation-1"', 'id="other"'),
    "h3 after h1": ("h2>", "p>"),
    "div has style": ('<div class="scroll"', '<div style="left: 0"'),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_page_made_badly_is_noticed(page, fault):
    old, new = FAULTS[fault]
    assert old in page
    changed = page.replace(old, new)
    if fault == "a table without caption":
        changed = re.sub(r"<caption.*?</caption>", "", page)
    assert fault in Outline(changed).faults


def test_every_report_can_be_drawn(report, page, scripts):
    assert html.text(json.loads(data.to_json(report)), scripts) == page
    nothing = report | {"implementations": [], "exit_code": 3, "partial": False}
    assert ">nothing was compared<" in html.text(nothing)
    assert Outline(html.text(nothing)).faults == []


def test_the_page_is_written_with_its_scripts(judged, tmp_path):
    reports.write_all(tmp_path, judged)
    written = (tmp_path / "report.html").read_text()
    paths = {*(tmp_path / "repro").iterdir()}
    known = {p for p in paths if "fp4" in p.name or "unsigned" in p.name}  # XFAIL: no news
    shown = {path for path in paths if f"\n{path.read_text()}</pre>" in unescape(written)}
    assert shown >= paths - known
    assert len(shown) > 3
    assert written.count("Script that reproduces it") == len(shown)


def test_only_two_or_more_stand_side_by_side(page, calm):
    assert page.count("<h2>Side by side</h2>") == 1
    assert "Side by side" not in html.text(calm)


def test_a_counterexample_comes_before_whatever_passed(report, calm, scripts):
    passing = {**calm["implementations"][0], "verdict": "PASS", "name": "right"}
    both = html.text({**report, "implementations": [passing, *report["implementations"]]}, scripts)
    order = [both.index(text) for text in ("<dt>expected</dt>", 'aria-label="right"', "Side by")]
    assert order == sorted(order)


def test_a_link_leads_to_the_web_or_stays_text(page):
    assert '<a href="https://tracker/1" rel="noreferrer">https://tracker/1</a>' in page
    assert "<td>javascript:alert(1)</td>" in page
    assert 'href="javascript' not in page


# ---- maps and bars -------------------------------------------------------------------------------


def drawn(report, bound_use=0.0, **parts):
    """The page of a single failure, with this map or this use of its bound."""
    kernel = report["implementations"][0]
    check = next(c for c in kernel["checks"] if c["id"] == "S3/dequantize_4bit[nf4]/shapes")
    check = check | {"bound_use": bound_use, "failure": check["failure"] | {"map": MAP | parts}}
    alone = {"checks": [check], "faults": [{"checks": [check["id"]], "consequences": []}]}
    return html.text(report | {"implementations": [kernel | alone]})


MAP = {
    "result": "code", "call": "f()", "wrong": 1234, "elements": 5678, "blocksize": 64,
    "blocks": 575, "first": 25, "lanes": 2, "rows": ["x."], "flips": [],
}  # fmt: skip


@pytest.mark.parametrize(
    "rows", [[".xx.x", "x...x", "xx"], ["x" * 64, "." * 63 + "x", "x." * 32, "x"], ["x"] * 40]
)
def test_the_map_shows_what_the_rows_say(report, rows):
    page = drawn(report, rows=rows)
    assert "1,234 of 5,678 wrong in code" in page
    assert f"Blocks 25 to {25 + len(rows) - 1} of 575 are shown." in page
    (cells,) = re.findall(r'<pre class="cells"[^>]*>(.*?)</pre>', page, re.DOTALL)
    assert set("".join(re.findall(r"<mark>(.*?)</mark>", cells))) == {"■"}
    head, *lines = re.sub(r"</?mark>", "", cells).split("\n")
    lanes = [2 * column for column in range(0, len(rows[0]), 8)]
    assert head.split() == ["block", "lane", *map(str, lanes)]
    assert [line.split() for line in lines] == [
        [str(25 + n), row.replace("x", "■").replace(".", "·")] for n, row in enumerate(rows)
    ]
    start = len(lines[0]) - len(rows[0])
    assert [head.index(f" {lane}", start - 1) + 1 - start for lane in lanes] == [
        lane // 2 for lane in lanes
    ]


@pytest.mark.parametrize(
    ("use", "words", "value"),
    [(0.13885744, "13.9 %", "0.138857"), (float("inf"), "inf %", "1.25"), ("inf", "inf %", "1.25")],
)
def test_a_bar_is_as_long_as_its_share(report, use, words, value):
    page = drawn(report, bound_use=use)
    assert f">{words}</td>" in page
    assert f'<meter value="{value}" max="1.25" high="1" aria-hidden="true">' in page


def test_flips_are_told_with_their_counts(report):
    flips = [[127, 131, 4000], [5, 6, 1000], *([n, 0, 1] for n in range(9))]
    page = drawn(report, flips=flips)
    shown = re.findall(r">(\d+) → (\d+)</th><td[^>]*>([\d,]+)</td>", page)
    assert shown == [(str(due), str(got), f"{count:,}") for due, got, count in flips]
    assert "3 pairs less frequent" in page
    assert "Codes: expected" not in drawn(report)
    assert "pairs less frequent" not in drawn(report, flips=flips[:8])


# ---- the page in a browser -----------------------------------------------------------------------

POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
OPENED = "document.querySelectorAll('details').forEach(entry => { entry.open = true; })"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
)  # fmt: skip


def planted(page, old, new):
    """A page with a fault, which its policy no longer forbids."""
    assert page.count(old), old
    return POLICY.sub("", page.replace(old, new, 1))


@pytest.fixture(scope="module")
def browser():
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("chromium or chromedriver is not installed (apt-get install chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    granted = ["clipboardReadWrite", "clipboardSanitizedWrite"]  # others are refused from here on
    opened.execute_cdp_cmd("Browser.grantPermissions", {"permissions": granted})
    yield opened
    opened.quit()


@pytest.fixture
def show(browser, tmp_path):
    """Open a page from a file, with everything on it that can be opened."""

    def shown(text, width=1440, scheme="light", motion="reduce", opened=OPENED):
        path = tmp_path / "page.html"
        files.write(path, text)
        wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
        features = [{"name": name, "value": value} for name, value in wanted.items()]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for log in ("browser", "performance"):
            browser.get_log(log)  # what earlier pages said
        browser.get(path.as_uri())
        browser.execute_script(opened)
        return browser

    return shown


def said(browser):
    """What the browser's console says: errors, warnings, refusals of the policy."""
    return [entry["message"] for entry in browser.get_log("browser")]


def requests(browser):
    """The addresses that were asked for, but for the page itself."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [e["params"]["request"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [r["url"] for r in sent if not r["url"].endswith("/page.html")]


def test_the_console_is_silent_and_nothing_is_loaded(show, page, calm):
    for text in (page, html.text(calm)):
        browser = show(text)
        assert said(browser) == []
        assert requests(browser) == []
        assert browser.execute_script("return performance.getEntriesByType('resource')") == []


def test_the_console_is_heard(show, page):
    browser = show(
        planted(page, "for (const button", "console.error('planted'); for (const button")
    )
    assert any("planted" in message for message in said(browser))


def test_a_request_is_seen_and_the_policy_refuses_it(show, page):
    image = "<main><img src='http://127.0.0.1:9/planted.png' alt=''>"
    assert requests(show(planted(page, "<main>", image))) == ["http://127.0.0.1:9/planted.png"]
    for foreign in (image, "<main><script>hostile = 1</script>", "<main><p style='left: 0'>"):
        browser = show(page.replace("<main>", foreign))
        assert any("Content Security Policy" in message for message in said(browser))
        assert browser.execute_script("return 'hostile' in window") is False


def overflow(browser):
    """By how many pixels the page is wider than its window; -1 if something hides that."""
    return browser.execute_script("""
        const [root, body] = [document.documentElement, document.body];
        const hides = [root, body].some(e => getComputedStyle(e).overflowX !== "visible");
        return hides ? -1 : Math.max(root.scrollWidth, body.scrollWidth) - root.clientWidth;
    """)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_never_scrolls_sideways(show, page, width):
    assert overflow(show(page, width)) == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_a_wide_element_is_noticed(show, page, width):
    wide = planted(page, "footer {", f"footer {{ width: {width + 20}px; ")
    assert overflow(show(wide, width)) > 0
    assert overflow(show(planted(wide, "body {", "body { overflow-x: hidden; "), width)) == -1


CONTRAST = """
const pen = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
function rgba(css) {
  pen.clearRect(0, 0, 1, 1);
  pen.fillStyle = css;
  pen.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
  return [r, g, b, a / 255];
}
const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
function ground(element) {
  if (!element) return rgba("Canvas").slice(0, 3);
  const own = rgba(getComputedStyle(element).backgroundColor);
  return own[3] === 1 ? own.slice(0, 3) : over(own, ground(element.parentElement));
}
const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
let seen = 0;
const faint = [];
for (const element of document.body.querySelectorAll("*")) {
  const words = [...element.childNodes].filter(n => n.nodeType === 3 && n.data.trim());
  if (!words.length || !element.checkVisibility()) continue;
  seen += 1;
  const style = getComputedStyle(element), below = ground(element);
  const ink = rgba(style.color);
  let opacity = 1;
  for (let e = element; e; e = e.parentElement) opacity *= Number(getComputedStyle(e).opacity);
  ink[3] *= opacity;
  const [a, b] = [light(over(ink, below)), light(below)];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const size = parseFloat(style.fontSize), bold = Number(style.fontWeight) >= 700;
  const due = size >= 24 || (bold && size >= 18.66) ? 3 : 4.5;
  if (ratio < due) faint.push(`${element.tagName} ${words[0].data.slice(0, 30)}: ${ratio}`);
}
return {seen, faint};
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(show, page, scheme):
    found = show(page, scheme=scheme).execute_script(CONTRAST)
    assert found["faint"] == []
    assert found["seen"] > 1000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        (".meaning {", "color: #777;"),
        (".cells {", "opacity: 0.4;"),
        ("dt {", "background: rgb(128 128 128 / 90%);"),
        ("h1 {", "opacity: 0.3;"),
    ],
)
def test_a_faint_text_is_noticed(show, page, scheme, rule, fault):
    faint = POLICY.sub("", page.replace("</style>", f"{rule} {fault} }}</style>", 1))
    assert show(faint, scheme=scheme).execute_script(CONTRAST)["faint"]


def test_both_schemes_differ(show, page):
    ground = "return getComputedStyle(document.body).backgroundColor"
    assert show(page).execute_script(ground) != show(page, scheme="dark").execute_script(ground)


def texts(report):
    """What must stand on the page."""
    yield from failures.limits(report)
    yield from (*report["unmet"], *report["known_problems"])
    for implementation in report["implementations"]:
        yield from (implementation["name"], implementation["message"])
        yield from failures.versions(implementation)
        for row in implementation["functions"] if implementation["checks"] else ():
            yield from (row["name"], row["status"], row["scope"], *row["dialect"].values())
            yield f"{row['comparisons']:,}"
        for entry in failures.entries(implementation):
            yield from (entry.title, entry.first["status"], entry.brief)
            yield from (text for row in entry.rows for text in row)
            if entry.first["failure"]:
                arrays = entry.first["failure"]["input"]["arrays"]
                yield from (" ".join(map(str, array["values"])) for array in arrays.values())
        for check in implementation["checks"]:
            if check["status"] == "XFAIL":
                yield from (check["id"], check["message"], check["known"])
            if check["bound_use"] > 0:
                yield f"{check['id']} {check['status']} {100 * check['bound_use']:.1f} %"


def missing(browser, wanted, place="body"):
    """The texts that a reader does not find on the page, or in a place on it."""
    script = "return document.querySelector(arguments[0]).innerText"
    shown = " ".join(browser.execute_script(script, place).split())
    return [text for text in wanted if " ".join(printable(text).split()) not in shown]


TABLE = """
const [caption, place] = arguments;
const tables = [...document.querySelectorAll(`${place} table`)];
const table = tables.find(t => t.caption.textContent.startsWith(caption));
return [...table.rows].map(row => [...row.cells].map(cell => cell.innerText.trim()));
"""


def grid(browser, caption, place="main"):
    """A table as (group, heading of the row, {heading of the column: text})."""
    head, *rows = browser.execute_script(TABLE, caption, place)
    group = ""
    for name, *cells in rows:
        if cells:
            yield group, name, dict(zip(head[1:], cells, strict=False))
        else:
            group = name


def test_the_rules_are_those_of_the_checks(show, page, report):
    browser = show(page)
    for n in (0, 1):
        found, due = {}, {}
        for _, name, cells in grid(browser, "Functions by level", f"#implementation-{n}"):
            for line in filter(None, cells["rules"].split("\n")):
                table, text = re.fullmatch(r"(?:\[(\w+)\] )?([^:]*)(?:: .*)?", line).groups("")
                for part in text.split("; "):
                    status, *rules = part.split()
                    found |= {(name, table, rule): status for rule in rules}
        for check in report["implementations"][n]["checks"]:
            place = (check["function"], check["table"], check["rule"])
            due.setdefault(place, []).append(check["status"])
        assert found == {place: worst(statuses) for place, statuses in due.items()}
        assert len(found) > 10


def test_the_functions_table_says_what_the_report_says(show, page, report):
    browser = show(page)
    for n in (0, 1):
        found = list(grid(browser, "Functions by level", f"#implementation-{n}"))
        every = report["implementations"][n]["functions"]
        functions = [row for row in every if row["status"] != "MISSING"]
        assert [(level, name) for level, name, _ in found] == [
            (row["level"], row["name"]) for row in functions
        ]
        for row, (_, _, cells) in zip(functions, found, strict=True):
            total = row["cases"] + row["unsupported"]
            cases = f"{row['cases']:,} of {total:,}" if row["unsupported"] else f"{total:,}"
            assert cells["verdict"].split("\n")[0] == row["status"]
            assert cells["comparisons"] == f"{row['comparisons']:,}"
            assert cells["cases"] == cases
            assert cells["scope"] == row["scope"]
        absent = [row["name"] for row in every if row["status"] == "MISSING"]
        assert missing(browser, [f"Missing: {', '.join(absent)}"] if absent else []) == []


def test_too_few_comparisons_are_named(calm):
    few = copy.deepcopy(calm)
    few["implementations"][0]["functions"][0] |= {"comparisons": 10, "floor": 1000}
    assert "fewer than 1,000: too few for a verdict" in html.text(few)
    assert "too few" not in html.text(calm)


def test_the_comparison_says_what_the_checks_say(show, page, report):
    browser = show(page)
    kernel, _, broken, _ = report["implementations"]
    rows = {name: cells for _, name, cells in grid(browser, "Functions: verdict and dialect")}
    for row in kernel["functions"]:
        if row["name"] not in rows:  # nobody offers it
            assert row["status"] == "MISSING"
            continue
        labels = [f"{v.removeprefix(row['name'])} {text}" for v, text in row["dialect"].items()]
        assert rows[row["name"]][kernel["name"]].split("\n\n") == [row["status"], *labels]
        assert rows[row["name"]][broken["name"]] == "ERROR"


INJECTED = """
const foreign = document.querySelectorAll("img, b, iframe, object, embed, link, base, #hostile");
return [foreign.length, document.scripts.length, "hostile" in window];
"""


def test_everything_is_shown_and_nothing_of_it_acts(show, page, report):
    browser = show(page)
    wanted = list(texts(report))
    assert len(wanted) > 500
    assert missing(browser, wanted) == []
    assert browser.execute_script(INJECTED) == [0, 1, False]


def test_each_implementation_says_what_is_wrong(show, page, report):
    browser = show(page)
    for n, implementation in enumerate(report["implementations"]):
        place = f"#implementation-{n}"
        wanted = [implementation["name"], implementation["message"]]
        wanted += [line for line, _ in level_lines(implementation["levels"])]
        for entry in failures.entries(implementation):
            wanted.append(f"{entry.first['status']} {entry.title} {entry.brief}")
        assert missing(browser, wanted, place) == []
    assert missing(browser, ["no such thing"], place) == ["no such thing"]


def test_what_is_not_shown_or_acts_is_noticed(show, page, report):
    name = report["implementations"][0]["checks"][-1]["id"]
    assert missing(show(planted(page, name, "")), [name]) == [name]
    raw = POLICY.sub("", page.replace("&lt;", "<").replace("&gt;", ">").replace("&#39;", "'"))
    foreign, count, acts = show(raw).execute_script(INJECTED)
    assert foreign > 0
    assert count > 1
    assert acts is True


def test_the_page_is_whole_without_javascript(show, browser, page, report):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        assert missing(show(page), texts(report)) == []
        shown = "return [...document.querySelectorAll('button')].filter(b => b.checkVisibility())"
        assert browser.execute_script(shown) == []
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert len(show(page).execute_script(shown)) > 3


CLIPBOARD = """
const [said, done] = arguments;
const wait = setInterval(async () => {
  if (!said.textContent) return;
  clearInterval(wait);
  done([said.textContent, await navigator.clipboard.readText()]);
}, 5);
"""
REFUSED = """
const real = navigator.clipboard;
const writeText = () => Promise.reject(new Error("refused"));
Object.defineProperty(navigator, "clipboard", {
  value: {writeText, readText: () => real.readText()}
});
"""


def copied(browser):
    """What each button says, and what is on the clipboard afterwards."""
    buttons = browser.find_elements("css selector", "button")
    assert len(buttons) > 3
    found = []
    for button, words in zip(buttons, browser.find_elements("class name", "said"), strict=True):
        button.click()
        found.append(browser.execute_async_script(CLIPBOARD, words))
    return found


def due(report, scripts):
    """The scripts of the page in its order, each failure's own."""
    for implementation in report["implementations"]:
        for entry in failures.entries(implementation):
            names = dict.fromkeys(check.get("repro") for check in entry.checks)
            yield from (scripts[name] for name in names if name in scripts)


def test_a_button_copies_its_script_to_the_character(show, page, report, scripts):
    wanted = [["Copied.", text] for text in due(report, scripts)]
    assert copied(show(page)) == wanted
    trimmed = planted(page, "script.textContent)", "script.textContent.trim())")
    assert copied(show(trimmed)) != wanted


def test_a_button_copies_where_the_clipboard_is_refused(show, page, report, scripts):
    plain = {name: text.replace("\r", "") for name, text in scripts.items()}
    wanted = [["Copied.", text] for text in due(report, plain)]
    text = html.text(report, plain)
    assert copied(show(text, opened=f"{OPENED}; {REFUSED}")) == wanted
    browser = show(text, opened=f"{OPENED}; {REFUSED} document.execCommand = () => false;")
    assert {words for words, _ in copied(browser)} == {
        "Could not copy: open the script and select its text."
    }


def test_a_link_leads_to_an_implementation(show, page, report):
    browser = show(page)
    links = browser.find_elements("css selector", "thead a")
    assert len(links) == len(report["implementations"])
    links[1].click()
    top = "return document.querySelector('#implementation-1').getBoundingClientRect().top"
    assert -1 < browser.execute_script(top) < 900


def focus(browser):
    """The outline of what the tabulator key reaches first."""
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    browser.find_element("css selector", "body").send_keys(keys.TAB)
    return browser.execute_script("""
        const style = getComputedStyle(document.activeElement);
        return [document.activeElement.tagName, style.outlineStyle, style.outlineWidth];
    """)


def test_the_focus_is_seen(show, page):
    assert focus(show(page)) == ["SUMMARY", "solid", "2px"]  # the page opens with a counterexample
    hidden = planted(page, "outline: 2px solid", "outline: 0 none")
    assert focus(show(hidden)) != ["SUMMARY", "solid", "2px"]


def test_nothing_moves_unless_it_may(show, page):
    moves = "return getComputedStyle(document.documentElement).scrollBehavior"
    assert show(page).execute_script(moves) == "auto"
    assert show(page, motion="no-preference").execute_script(moves) == "smooth"


def test_print_cuts_nothing_off(show, browser, page):
    show(page)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    cut = """
        const boxes = [...document.querySelectorAll("pre, .scroll")];
        const cut = boxes.filter(e => getComputedStyle(e).overflow !== "visible").length;
        const buttons = [...document.querySelectorAll("button")];
        return [boxes.length > 9, cut, buttons.filter(e => e.checkVisibility()).length];
    """
    try:
        assert browser.execute_script(cut) == [True, 0, 0]
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert browser.execute_script(cut)[1] > 9


# ---- in a notebook -------------------------------------------------------------------------------


def test_a_notebook_shows_all_that_is_printed_and_nothing_of_it_acts(show, judged):
    cell = judged._repr_html_()
    assert "hostile" in cell
    browser = show(f'<!DOCTYPE html><html lang="en"><meta charset="utf-8">{cell}</html>')
    assert said(browser) == requests(browser) == []
    shown = browser.execute_script("return document.body.innerText").split()
    assert shown == screen.text(judged.to_dict()).split()
    assert browser.execute_script(INJECTED) == [0, 0, False]
