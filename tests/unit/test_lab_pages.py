"""What a comparison's tables, results file and page say, and what the two commands do."""

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from agentserve.cli import app
from agentserve.errors import BadInput
from agentserve.lab import simulation
from agentserve.lab.aggregates import aggregated
from agentserve.lab.lab_plots import along_axis
from agentserve.lab.lab_report import Comparison, render_lab_report, write_lab_report, write_results
from agentserve.lab.scenario import read_scenario, shipped_scenarios
from agentserve.lab.sweep import run_points
from agentserve.lab.tables import best_of, point_tables
from tests.unit.fake_simulation import fake_simulate

SCENARIO = """
description = "A <small> one."
model = "llama-3.1-8b"
seeds = [1, 2]
compare = ["round_robin", "agentserve", "stays"]
[[fleet]]
gpu = "a100"
[[fleet]]
gpu = "h100"
[workload]
generator = "catalog"
rate = 2.0
limit = 30
[policies.stays]
policy = "goodserve"
max_moves = 0
tuned = false
[sweep]
combine = "each"
rates = [1.0, 2.0, 4.0]
slo_scales = [1.0, 4.0]
"""


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    (folder / "small.toml").write_text(SCENARIO)
    file = read_scenario(str(folder / "small.toml"))
    out = folder / "out"
    rows = run_points(file, out=out, jobs=1, simulate=fake_simulate)
    return SimpleNamespace(file=file, out=out, rows=rows, told=Comparison(file=file, command="agentserve x", rows=rows))


@pytest.fixture(scope="module")
def page(compared):
    return render_lab_report(compared.told, compared.out)


def printed(tables, width=200):
    console = Console(file=io.StringIO(), width=width)
    for table in tables:
        console.print(table)
    return console.file.getvalue()


def test_seeds_become_means_with_intervals(compared):
    first, *_ = aggregated(compared.rows)
    shares = [row.outcome.figures["attainment"] for row in compared.rows[:2]]
    assert (first.label, len(first.outcomes)) == ("round_robin", 2)
    assert first.figures["attainment"].mean == pytest.approx(sum(shares) / 2)
    assert first.figures["attainment"].half == pytest.approx(12.706 * abs(shares[0] - shares[1]) / 2)
    assert first.figures["tenant_attainment_min"] is None


def test_one_seed_has_the_interval_of_its_runs(compared):
    (one, *_) = aggregated([compared.rows[0]])
    outcome = compared.rows[0].outcome
    found = one.figures["attainment"]
    assert (found.low, found.high) == outcome.attainment_interval
    goodput = one.figures["goodput_per_s"]
    assert goodput.low / goodput.mean == pytest.approx(found.low / found.mean)
    assert one.figures["run_e2e_p50_s"].half is None


def test_the_tables_have_a_row_per_policy_at_each_point(compared):
    aggregates = aggregated(compared.rows)
    text = printed(point_tables(aggregates))
    assert [line.split(" (")[0] for line in text.splitlines() if line.startswith("small:")] == [
        "small: as given", "small: rate 1.0", "small: rate 4.0", "small: alpha 1.0", "small: alpha 4.0",
    ]  # fmt: skip
    assert text.count("round_robin") == 5
    assert re.search(r"agentserve +\d+\.\d ± \d+\.\d %", text)
    assert "TTFT p50 / p99" in text
    assert best_of(aggregates[:3]).label == "agentserve"


def test_a_narrow_terminal_shows_whole_figures_of_fewer_columns(compared):
    text = printed(point_tables(aggregated(compared.rows), 80), width=80)
    assert "…" not in text
    assert "goodput" in text
    assert "TTFT" not in text


def test_the_results_file_reproduces_what_was_run(compared):
    plain = json.loads(write_results(compared.out, compared.told).read_bytes())
    assert plain["scenario_text"] == SCENARIO
    assert (plain["command"], plain["seeds"]) == ("agentserve x", [1, 2])
    stays = next(one for one in plain["aggregates"] if one["label"] == "stays")
    assert (stays["policy"], stays["params"], len(stays["keys"])) == ("goodserve", {"max_moves": 0}, 2)
    assert stays["figures"]["goodput_per_s"]["low"] < stays["figures"]["goodput_per_s"]["mean"]


def test_the_page_shows_curves_tables_and_what_was_run(page):
    for heading in (
        "Goodput against rate", "Goodput against SLO scale", "Attained share against rate", "SLO attainment",
        "Run time against its SLO", "Busy GPUs", "KV cache in use", "Timeline of placements and migrations",
        "What was run", "The scenario",
    ):  # fmt: skip
        assert f"<h2>{heading}</h2>" in page
    assert "Command: <code>agentserve x</code>" in page
    assert "seeds 1, 2" in page
    assert "stays: goodserve, max_moves = 0" in page
    assert "rates = [1.0, 2.0, 4.0]" in page
    assert "At as given, seed 1." in page


def test_the_page_is_whole_escaped_and_needs_no_network(page):
    class Nesting(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "br"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    parser = Nesting()
    parser.feed(page)
    assert parser.open == []
    assert "A &lt;small&gt; one." in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#)""", page.replace("xlink:href", "href"))
    body = page.split("</style>", 1)[1]
    assert not re.search(r"#0[1-4]0[0-9]0[0-9]", body)


def test_without_records_the_page_keeps_its_tables(compared):
    page = render_lab_report(compared.told, None)
    assert "Goodput against rate" in page
    assert "Timeline of placements" not in page


def test_a_curve_needs_two_values(compared):
    aggregates = aggregated(compared.rows)
    labels = ("x", "y")
    assert along_axis(aggregates, "workload.rate", 2.0, "attainment", labels) is not None
    assert along_axis(aggregates[:3], "workload.rate", 2.0, "attainment", labels) is None
    assert along_axis(aggregates, "workload.limit", "many", "attainment", labels) is None


def test_a_curve_holds_the_other_axes_still(compared):
    aggregates = [
        replace(one, axes={**one.axes, "slo.gpu": number}) for number, one in enumerate(aggregated(compared.rows))
    ]
    assert along_axis(aggregates, "workload.rate", 2.0, "attainment", ("x", "y")) is None


def test_a_page_that_cannot_be_written_is_named(compared, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"results.json: cannot be written"):
        write_results(tmp_path / "file", compared.told)
    with pytest.raises(BadInput, match=r"report.html: cannot be written"):
        write_lab_report(tmp_path / "file", replace(compared.told, rows=compared.rows[:2]))


# -- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Runs a command line in an empty folder, with the closed-form simulation in place of the real one."""
    monkeypatch.setattr(simulation, "simulate", fake_simulate)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(SCENARIO)

    def run(*words):
        return CliRunner().invoke(app, list(words))

    return run


def test_simulate_tells_of_one_simulation_as_json(command):
    result = command("simulate", "small.toml", "--policy", "stays", "--seed", "5", "--json")
    assert result.exit_code == 0, result.output
    plain = json.loads(result.stdout)
    assert (plain["policy"], plain["params"], plain["seed"]) == ("goodserve", {"max_moves": 0}, 5)
    assert plain["figures"]["runs"] == 30


def test_simulate_keeps_records_and_a_report(command, tmp_path):
    result = command("simulate", "small.toml", "--set", "workload.limit=12", "--out", "kept")
    assert result.exit_code == 0, result.output
    assert "12 / 12" in result.output or "/ 12" in result.output
    names = {path.name for path in (tmp_path / "kept").rglob("*") if path.is_file()}
    assert {"report.html", "results.json", "runs.parquet", "calls.parquet"} <= names


def test_compare_writes_to_a_folder_of_the_scenarios_name_and_resumes(command, tmp_path, monkeypatch):
    words = ("compare", "small.toml", "--policies", "round_robin,agentserve", "--seeds", "1", "--jobs", "1")
    first = command(*words)
    assert first.exit_code == 0, first.output
    assert (tmp_path / "out/lab/small/report.html").is_file()
    monkeypatch.setattr(simulation, "simulate", None)
    again = command(*words, "--json", "--no-report")
    assert again.exit_code == 0, again.output
    assert {one["label"] for one in json.loads(again.stdout)} == {"round_robin", "agentserve"}


def test_an_interrupted_compare_says_what_is_kept(command, monkeypatch):
    calls = []

    def interrupted(*args, **more):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fake_simulate(*args, **more)

    monkeypatch.setattr(simulation, "simulate", interrupted)
    result = command("compare", "small.toml", "--jobs", "1")
    assert result.exit_code == 130
    assert "stopped after 2 of 30 simulations, kept in out/lab/small" in result.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["simulate", "small.toml", "--policy", "fifo"], "unknown policy 'fifo'; known are"),
        (["simulate", "small.toml", "--set", "workload.rate"], "give KEY=VALUE"),
        (["simulate", "small.toml", "--set", "workload.rate=0"], "workload.rate: must be greater than 0"),
        (["compare", "small.toml", "--seeds", "1,x"], "--seeds '1,x': give whole numbers"),
        (["compare", "missing.toml"], "scenario missing.toml: cannot be read"),
    ],
)
def test_bad_input_is_one_message(command, words, said):
    result = command(*words)
    assert isinstance(result.exception, BadInput)
    assert said in str(result.exception)


def test_the_shipped_scenarios_are_listed(command):
    output = command("scenarios").output
    assert all(name in output for name in shipped_scenarios())
