"""What the comparison table and the HTML report say."""

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from agentserve.errors import BadInput
from agentserve.lab import plots
from agentserve.lab.report import comparison_table, render_report, write_report
from agentserve.lab.results import summarise
from agentserve.records import CallRecord, RunRecord
from agentserve.waterfall import render_run
from tests.unit.made_up_results import made_up_result
from tests.unit.made_up_run import whole_run


@pytest.fixture(scope="module")
def results():
    return {"round_robin": made_up_result("round_robin", pace=1.5), "agentserve": made_up_result()}


@pytest.fixture(scope="module")
def page(results):
    console = Console(record=True, width=150, file=io.StringIO(), force_terminal=True)
    console.print(render_run({}, whole_run()))
    html = console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
    return render_report(results, title="A <demo>", notes=("time is compressed",), waterfall_html=html)


def small_result():
    calls = tuple(
        CallRecord(
            request_id=f"c{i}", run_id="r", node="n", arrived_s=0.0, first_token_s=0.1 * (i + 1), finished_s=1.0 + i,
            prompt_tokens=10, output_tokens=11, migrations=i, split=i == 0, ok=i < 2,
        )
        for i in range(3)
    )  # fmt: skip
    runs = tuple(
        RunRecord(run_id=f"r{i}", workflow="w", submitted_s=0.0, finished_s=end, slo_s=2.0, succeeded=ok)
        for i, (end, ok) in enumerate([(1.0, True), (4.0, True), (1.0, False), (2.0, True)])
    )
    return replace(made_up_result(runs=0), calls=calls, runs=runs, started_s=0.0, finished_s=4.0, speed=1.0)


def test_figures_are_as_defined():
    figures = summarise(small_result())
    assert (figures.runs, figures.attained, figures.attainment) == (4, 2, 0.5)
    assert figures.goodput_per_s == 0.5
    assert figures.run_e2e_p50_s == 2.0
    assert figures.ttft_p50_s == pytest.approx(0.15)
    assert (figures.calls, figures.failed_calls, figures.migrations, figures.split_calls) == (3, 1, 3, 1)
    assert figures.output_tokens_per_s == 33 / 4


def printed(table):
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()


def test_the_table_has_a_column_per_policy(results):
    text = printed(comparison_table(results))
    assert re.search(r"round_robin.*agentserve", text)
    for label in ("SLO attainment", "goodput", "TTFT p50 / p99", "migrations", "split placements", "output tokens/s"):
        assert label in text
    assert "clock x 8" in text


def test_unknown_figures_are_dashes_not_zeros():
    text = printed(comparison_table({"empty": made_up_result(runs=0)}))
    assert re.search(r"SLO attainment\W+–", text)
    assert re.search(r"TTFT p50 / p99\W+– / – s", text)


def test_the_page_needs_no_network(page):
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#)""", page.replace("xlink:href", "href"))
    assert not re.findall(r"url\((?!#)|@import|<script|<link", page)


def test_the_page_is_well_nested(page):
    class Nesting(HTMLParser):
        void = frozenset({"meta", "br", "hr", "img"})

        def __init__(self):
            super().__init__()
            self.open = []

        def handle_starttag(self, tag, attrs):
            if tag not in self.void:
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    parser = Nesting()
    parser.feed(page)
    assert parser.open == []


def test_no_id_occurs_twice(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_every_reference_inside_the_plots_resolves(page):
    ids = set(re.findall(r'\bid="([^"]+)"', page))
    used = set(re.findall(r'xlink:href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page))
    assert used <= ids


def test_what_comes_from_outside_is_escaped(page):
    assert "A &lt;demo&gt;" in page
    assert "no instance &lt;b&gt;serves&lt;/b&gt;" in page
    assert "<b>serves" not in page


def test_colours_come_from_the_page_in_light_and_dark(page):
    assert "prefers-color-scheme: dark" in page
    body = page.split("</style>", 1)[1]
    assert not re.search(r"#0[1-4]0[0-9]0[0-9]", body)
    assert "var(--series-1)" in body
    assert "var(--ansi-green)" in body


def test_one_result_gives_one_drawing(results):
    assert plots.moves(results) == plots.moves(results)


def test_notes_of_results_and_of_the_caller_are_said_once(page):
    assert page.count("<li>time is compressed</li>") == 1
    assert page.count("<li>prompt tokens x 0.25</li>") == 1


@pytest.fixture(scope="module")
def nothing():
    return {"agentserve": made_up_result(runs=0)}


def test_a_replay_in_which_nothing_came_back_still_gives_a_page(nothing, tmp_path):
    path = tmp_path / "new" / "report.html"
    write_report(path, nothing, title="empty")
    page = path.read_text("utf-8")
    assert page.startswith("<!doctype html>")
    assert "no SLO" in page
    assert "Where calls were placed" not in page


def test_a_path_that_cannot_be_written_is_named(tmp_path, nothing):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"report.html: cannot be written"):
        write_report(tmp_path / "file" / "report.html", nothing, title="t")


def test_no_results_are_refused(tmp_path):
    with pytest.raises(BadInput, match="at least one policy"):
        write_report(tmp_path / "r.html", {}, title="t")
