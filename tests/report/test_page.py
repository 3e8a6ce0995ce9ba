"""What the page of a report says: conclusions, charts, samples, differences, warnings; and that it says it safely."""

import json
import re
from html.parser import HTMLParser

import plotly.graph_objects as go
import pytest
from run_folders import add_samples, make_run

from r2m_cli.reporting import page
from r2m_cli.reporting.arguments import split
from r2m_cli.reporting.charts import charts
from r2m_cli.reporting.conclusions import conclusion, differences, lede, noise, sampling_error, warnings
from r2m_cli.reporting.groups import grouped
from r2m_cli.reporting.runs import load_runs
from r2m_cli.reporting.samples import samples_of

HOSTILE = "</script><script>document.title = 'gamed'</script><img src=x onerror=\"document.title = 'gamed'\">"


def groups_of(*folders):
    return grouped(load_runs(folders))


class Elements(HTMLParser):
    """Names and attributes of all elements of a page."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def figures(text):
    (found,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', text)
    return {figure["key"]: figure for figure in json.loads(found)}


# ---- conclusions ----


def test_a_fall_of_gold_under_a_rising_proxy_is_over_optimisation(tmp_path):
    (group,) = groups_of(make_run(tmp_path / "vanilla"))
    said = conclusion(group)
    assert (said.kind, said.peak, said.lost, said.headline) == ("gamed", 2, 1.5, "Over-optimised, -1.50")
    assert said.text == (
        "Gold peaked at 3.00 (step 2) and fell to 1.50 while the proxy rose from 2.00 to 4.00 and the live reward rose from "
        "3.00 to 5.00."
    )


@pytest.mark.parametrize(
    ("golds", "kind"),
    [
        ([1, 2, 3, 4, 5], "held"),
        ([5, 4, 3, 2, 1], "gamed"),
        ([1, 1.2, 0.9, 1.1, 1.0], "flat"),
        ([1, 2, 3, 2.95, 2.96], "held"),
        ([1, 3, 1], "short"),
    ],
)
def test_noise_is_no_fall_and_no_gain(tmp_path, golds, kind):
    (group,) = groups_of(make_run(tmp_path / "a", golds=golds))
    assert conclusion(group).kind == kind


def test_few_evaluation_prompts_make_a_fall_less_sure(tmp_path):
    folder = make_run(tmp_path / "a", eval={"prompts": 4})
    assert conclusion(*groups_of(folder)).kind == "gamed"  # without samples the spread of gold is not known
    add_samples(folder, [(4, "p", "r", -1.0), (4, "p", "s", 1.0)])
    (group,) = groups_of(folder)
    assert sampling_error(group) == pytest.approx(2**0.5 / 2)  # standard deviation over the root of 4 prompts
    assert conclusion(group).kind == "flat"


def test_noise_is_that_of_points_around_a_straight_course():
    import numpy
    import pandas

    random = numpy.random.default_rng(0)
    curve = pandas.Series(3 * numpy.arange(400.0) + random.normal(0, 0.5, 400))
    assert noise(curve) == pytest.approx(0.5, rel=0.2)
    assert noise(pandas.Series([1.0, 2.0])) == 0


def test_a_fall_without_reward_is_not_called_over_optimisation(tmp_path):
    folder = make_run(tmp_path / "a")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["eval/reward"] = row["eval/reward_frozen"] = -float(row["step"])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = conclusion(*groups_of(folder))
    assert said.kind == "fell"
    assert "the proxy fell from -2.00 to -4.00: no reward rose" in said.text
    assert "live" not in said.text  # it is the proxy


def test_without_gold_it_is_said_that_nothing_can_be_seen(tmp_path):
    said = conclusion(*groups_of(make_run(tmp_path / "a", with_gold=False)))
    assert (said.kind, said.headline, said.peak) == ("unknown", "No gold", None)
    assert "over-optimisation cannot be seen without it" in said.text
    assert "the gap between them went from 1.00 to 1.00" in said.text


def test_over_seeds_the_verdict_counts_them(tmp_path):
    for seed in (0, 1, 2):
        make_run(tmp_path / f"a_s{seed}", seed, shift=seed / 10)
    (group,) = groups_of(*tmp_path.iterdir())
    said = conclusion(group)
    assert said.text.startswith("Gold peaked at 3.10 (step 2) and fell to 1.60")
    assert said.text.endswith("Means of 3 runs; in all of them gold ends lower than it was at that step.")


def test_the_first_sentence_names_the_worst_first(tmp_path):
    runs = {"mild": [1, 2, 3, 2.4, 1.8], "bad": [1, 2, 3, 1, -1], "good": [1, 2, 3, 4, 5]}
    conclusions = [
        conclusion(group) for group in groups_of(*(make_run(tmp_path / k, golds=v) for k, v in runs.items()))
    ]
    assert lede(conclusions) == (
        "The reward model was gamed in bad (-4.00) and mild (-1.20): gold fell while the reward rose; good kept what gold "
        "gained."
    )


def test_the_first_sentence_counts_where_names_would_drown_it(tmp_path):
    folders = [make_run(tmp_path / name, golds=[1, 2, 3, 2.4, end]) for name, end in zip("abcd", (1.8, 1.7, 1.6, 1.5))]
    conclusions = [conclusion(group) for group in groups_of(*folders, make_run(tmp_path / "e", with_gold=False))]
    assert lede(conclusions) == (
        "The reward model was gamed in 4 of 5 settings, most in d (-1.50): gold fell while the reward rose; in e the true "
        "reward is not known, and over-optimisation cannot be seen without it."
    )


# ---- charts ----


def drawn(*folders):
    groups = groups_of(*folders)
    truth = "gold" if any(run.has("eval/gold") for group in groups for run in group.runs) else "reward"
    return {chart.key: chart for chart in charts(groups, [conclusion(group) for group in groups], truth)}


def part(chart, name, series=0):
    return [t for t in chart.traces if t["meta"]["part"] == name and t["meta"]["series"] == series]


def test_charts_hold_the_curves_and_plotly_knows_all_of_it(tmp_path):
    found = drawn(make_run(tmp_path / "vanilla"), make_run(tmp_path / "r2m", shift=0.5))
    assert list(found) == ["gold", "reward_frozen", "gold_kl", "reward", "kl", "length", "time"]
    for chart in found.values():
        go.Figure(chart.traces, chart.layout)  # raises on what plotly does not know
    (line,) = part(found["gold"], "line", 1)
    assert (line["x"], line["y"]) == ([0, 1, 2, 3, 4], [1.5, 2.5, 3.5, 3.0, 2.0])
    (peak,) = part(found["reward_frozen"], "peak")
    assert (peak["x"], peak["y"]) == ([2.0], [2.0])  # where gold peaked
    (lost,) = part(found["gold"], "lost")
    assert (lost["x"], lost["y"]) == ([2, 3, 4, 4, 3, 2], [3.0, 3.0, 3.0, 1.5, 2.5, 3.0])
    (against,) = part(found["gold_kl"], "line")
    assert (against["x"], against["y"]) == ([0, 3, 6, 9, 12], [1, 2, 3, 2.5, 1.5])
    bars = {trace["name"]: trace["x"][0] for trace in part(found["time"], "bar")}
    assert bars == {"rollout": 0.1, "annotate": 0.05, "policy step": 0.08, "other": pytest.approx(0.02)}


def test_seeds_become_one_line_with_a_band(tmp_path):
    for seed in (0, 1, 2):
        make_run(tmp_path / f"a_s{seed}", seed, shift=seed)
    gold = drawn(*tmp_path.iterdir())["gold"]
    (line,) = part(gold, "line")
    assert line["y"] == [2, 3, 4, 3.5, 2.5]
    assert line["customdata"] == [1, 1, 1, 1, 1]
    (band,) = part(gold, "band")
    assert band["y"] == [3, 4, 5, 4.5, 3.5, 1.5, 2.5, 3, 2, 1]


def test_without_gold_the_gap_is_drawn(tmp_path):
    found = drawn(make_run(tmp_path / "a", with_gold=False))
    assert list(found) == ["reward", "gap", "reward_frozen", "reward_kl", "kl", "length", "time"]
    assert part(found["gap"], "line")[0]["y"] == [1.0] * 5
    assert not part(found["reward"], "peak")


# ---- samples ----


def test_samples_of_start_peak_and_end_with_shared_prompts_first(tmp_path):
    folder = add_samples(
        make_run(tmp_path / "a"),
        [
            *[(1, "own", "x", 0.0), (1, "shared", "low", 1.0), (1, "shared", "high", 2.0), (1, "twice", "t", 0.0)],
            *[(3, "shared", "middle", 0.5), (3, "other", "y", 0.0)],
            *[(4, "shared", "late", 0.5), (4, "twice", "t", 0.0)],
        ],
    )
    (group,) = groups_of(folder)
    some = samples_of(0, group, peak=2)
    columns = [(column.title, column.step, column.note) for column in some.columns]
    assert columns == [("Start", 1, ""), ("Gold's peak", 3, "nearest logged to 2"), ("End", 4, "")]
    prompts = [(prompt, [cell and cell.prompt for cell in cells]) for prompt, cells in some.rows]
    assert prompts == [
        ("shared", ["shared"] * 3),
        ("twice", ["twice", None, "twice"]),
        (None, ["own", "other", None]),
    ]
    first = some.rows[0][1][0]
    assert (first.best.text, [other.text for other in first.others]) == ("high", ["low"])
    assert first.best.scores == [("live", "2.00"), ("proxy", "1.00"), ("gold", "-2.00"), ("KL", "0.50")]


def test_a_response_may_hold_a_line_separator(tmp_path):
    folder = make_run(tmp_path / "a")
    row = {"step": 1, "prompt": "p", "response": "one\u2028two", "reward": 0.0}
    (folder / "samples.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    ((_, (cell,)),) = samples_of(0, *groups_of(folder), peak=None).rows
    assert cell.best.text == "one\u2028two"


def test_a_run_under_way_may_have_no_samples_or_a_torn_line(tmp_path, capsys):
    folder = make_run(tmp_path / "a")
    assert samples_of(0, *groups_of(folder), peak=2) is None
    add_samples(folder, [(1, "p", "r", 0.0)])
    with (folder / "samples.jsonl").open("a") as file:
        file.write('{"step": 2, "pro\n')
    assert [column.title for column in samples_of(0, *groups_of(folder), peak=2).columns] == ["Start"]
    assert "left out" not in capsys.readouterr().err
    add_samples(folder, [(3, "p", "r", 0.0)])
    assert [column.title for column in samples_of(0, *groups_of(folder), peak=2).columns] == ["Start", "End"]
    assert "left out 1: not a sample with step, prompt and response (samples.jsonl:2)" in capsys.readouterr().err


# ---- what differs, what was said ----


def test_only_keys_that_differ_are_listed(tmp_path):
    a = make_run(tmp_path / "a_s0", 0, ppo={"beta": 0.1, "lr": 1}, policy={"path": "/c/policy-0123456789ab"})
    b = make_run(tmp_path / "b_s0", 0, ppo={"beta": 0.2, "lr": 1}, policy={"path": "/c/policy-ba9876543210"})
    c = make_run(tmp_path / "b_s1", 1, ppo={"beta": 0.3, "lr": 1}, extra=None)
    assert differences(groups_of(a, b, c)) == [
        ("policy.path", ["fitted", "fitted / -"]),
        ("ppo.beta", ["0.1", "0.2 / 0.3"]),
        ("extra", ["-", "- / None"]),
    ]
    assert differences(groups_of(a)) == []


def test_warnings_are_told_once_with_those_who_gave_them(tmp_path):
    for name, text in {"a_s0": "first\nboth\n", "a_s1": "both\n", "b_s0": "both\n"}.items():
        (make_run(tmp_path / name) / "warnings.log").write_text(text)
    found = warnings(groups_of(*sorted(tmp_path.iterdir())))
    assert [(said.text, said.by) for said in found] == [
        ("first", [(0, "a (1 of 2 runs)")]),
        ("both", [(0, "a"), (1, "b")]),
    ]


# ---- the page ----


def test_the_page_is_whole_and_inert(tmp_path):
    folder = make_run(tmp_path / f"a{HOSTILE.replace('/', ' ')}", ppo={"beta": HOSTILE})
    add_samples(folder, [(1, f"prompt {HOSTILE}", f"response {HOSTILE}", 0.0)])
    (folder / "warnings.log").write_text(f"warning {HOSTILE}\n")
    text = page.render(load_runs([folder, make_run(tmp_path / "b", ppo={"beta": 1})]))
    elements = Elements(text).found
    scripts = [attributes for tag, attributes in elements if tag == "script"]
    assert [sorted(attributes) for attributes in scripts] == [["id", "type"], ["nonce"], ["nonce"]]
    assert not [tag for tag, _ in elements if tag in ("img", "link", "iframe", "object")]
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on")]
    assert all("src" not in attributes and "href" not in attributes for _, attributes in elements)
    assert "response &lt;/script&gt;&lt;script&gt;" in text
    assert "warning &lt;/script&gt;" in text
    assert text.count("plotly.js v") == 1
    assert set(figures(text)) == {"gold", "reward_frozen", "gold_kl", "reward", "kl", "length", "time"}
    (policy,) = [a["content"] for tag, a in elements if tag == "meta" and a.get("http-equiv")]
    assert policy.startswith("default-src 'none'; script-src 'nonce-")


def test_long_texts_are_folded(tmp_path):
    folder = add_samples(make_run(tmp_path / "a"), [(1, "p", "word " * 500, 0.0)])
    assert '<details class="long">' in page.render(load_runs([folder]))


# ---- the command line ----


def test_bare_folders_beside_overrides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed=0,world=0").mkdir()
    arguments = [
        "outputs/a",
        "multirun/method=rloo/seed=0,world=0",
        "seed=0,world=0",
        "out=x.png",
        "runs=[b]",
        "nowhere",
    ]
    flags = ["--cfg", "job", "hydra/launcher=joblib", "hydra.run.dir=x", "colour=red", "-m"]
    overrides, folders = split([*arguments, *flags])
    assert overrides == ["out=x.png", "runs=[b]", *flags]
    assert folders == ["outputs/a", "multirun/method=rloo/seed=0,world=0", "seed=0,world=0", "nowhere"]
