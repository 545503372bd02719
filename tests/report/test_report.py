"""The page is complete, self-contained, escaped and honest, and can be built from an unfinished run."""

import html.parser
import json
import re
from pathlib import Path

import pytest

from r2rank_jax.evaluation import results as evaluation_results
from r2rank_jax.report.build import build
from r2rank_jax.report.headline import headline, verdicts
from r2rank_jax.report.reading import metric_label, read_run
from tests.support.runs.report_runs import FILMS, final_results, report_users, write_lines

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Balanced(html.parser.HTMLParser):
    """Fails on tags that do not close in order; collects the page's text, scripts and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data


def parse(run_dir: Path) -> Balanced:
    page = Balanced()
    page.feed(build(run_dir).read_text(encoding="utf-8"))
    page.close()
    assert not page.open
    page.text = re.sub(r"\s+", " ", page.text)
    return page


@pytest.mark.slow
def test_a_finished_run_has_every_section(run_dir):
    page = parse(run_dir)
    for section in (
        "Results",
        "Paired comparisons",
        "Learning curves",
        "Rationales and rankings",
        "How this run was made",
    ):
        assert section in page.text
    results = json.loads((run_dir / "results.json").read_text())
    for name in ("random", "popularity", "sft", "rl"):
        assert f"{results['systems'][name]['ndcg@10']['mean']:.3f}" in page.text
    for fact in (results["commit"], results["data_hash"], results["candidate_hash"], results["command"]):
        assert fact in page.text
    assert "Krichene" in page.text and "20 candidates" in page.text and "template" in page.text
    assert "missing" not in page.text and " yet" not in page.text


def test_figures_are_drawn_with_the_colors_of_the_page(run_dir):
    text = build(run_dir).read_text(encoding="utf-8")
    assert text.count("<svg") == 7  # intervals, rationales, validation, SFT losses, value, KL, entropy
    assert "#0102" not in text  # every placeholder color was replaced
    assert "var(--sft-continued)" in text.split("</style>", 1)[1]


def test_the_page_needs_nothing_from_outside(run_dir):
    page = parse(run_dir)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "image"}
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#"), value
    css = (run_dir / "report.html").read_text(encoding="utf-8").split("</style>", 1)[0]
    assert "@import" not in css and "url(" not in css


def test_untrusted_text_is_escaped(run_dir):
    attack = '<script>alert("x")</script><img src=x onerror=alert(1)>'
    users = report_users(1)
    users[0]["source_user"] = attack
    users[0]["history"][0] |= {"title": attack, "year": attack, "rating": attack}
    for candidate in users[0]["candidates"]:
        candidate |= {"title": attack, "year": attack, "genres": [attack]}
        for output in candidate["systems"].values():
            output["rationale"] = f'{attack} & "quoted" </q></li>'
    write_lines(run_dir / "rationales.jsonl", users)
    results = final_results()
    results |= {"notes": [attack], "teacher": attack, "commit": attack}
    results["systems"][attack] = results["systems"]["rl"]
    results["training"][attack] = {"steps": attack, attack: attack}
    (run_dir / "results.json").write_text(json.dumps(results))
    page = parse(run_dir)
    assert not page.tags & {"script", "img"}
    assert page.text.count(attack) > 40  # shown as text, in prose, in tables and in the figure


def test_rankings_mark_the_truth_and_its_rank(run_dir):
    users = report_users(1, systems=("sft", "rl"))
    for place, candidate in enumerate(users[0]["candidates"]):  # the truth is last in the file
        candidate["systems"]["sft"]["score"] = -float(place) if place < 19 else -6.5
        candidate["systems"]["rl"]["score"] = -float(place) if place < 19 else 1.0
    write_lines(run_dir / "rationales.jsonl", users)
    page = parse(run_dir)
    truth = users[0]["candidates"][-1]["title"]
    assert f"truth: {truth} · rank 8 before RL, 1 after RL, of 20" in page.text
    assert page.text.count("✓ truth") == 3  # once explained, once in each column
    assert "moved up for 1 of these 1 users, moved down for 0" in page.text
    assert all(title in page.text for title in FILMS)


def test_the_order_in_the_file_does_not_break_ties(run_dir):
    users = report_users(1, systems=("sft",))
    for candidate in users[0]["candidates"]:
        candidate["systems"]["sft"]["score"] = 0.0
    write_lines(run_dir / "rationales.jsonl", users)
    expected = 1 + sorted(FILMS).index(users[0]["candidates"][-1]["title"])
    assert f"rank {expected} before RL, of 20" in parse(run_dir).text


@pytest.mark.parametrize("missing", ["config.json", "metrics.jsonl", "results.json", "rationales.jsonl"])
def test_the_page_names_a_missing_file(run_dir, missing):
    (run_dir / missing).unlink()
    assert f"({missing} is missing)" in parse(run_dir).text


def test_an_empty_directory_gives_a_page(tmp_path):
    page = parse(tmp_path)
    assert "no final results yet" in page.text
    assert "There are no rationales yet" in page.text


def test_a_run_before_rl(run_dir):
    results = final_results()
    for name in ("rl", "sft_continued"):
        del results["systems"][name]
    results["comparisons"] = []
    evaluation_results.write_results(run_dir / "results.json", results)
    write_lines(run_dir / "rationales.jsonl", report_users(2, systems=("sft",)))
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    write_lines(run_dir / "metrics.jsonl", [line for line in lines if line["phase"] == "sft"])
    page = parse(run_dir)
    for sentence in (
        "There is no RL result yet.",
        "RL has not logged anything yet",
        "Only one system has written rationales",
    ):
        assert sentence in page.text
    assert "no paired test was recorded" in page.text


def test_damaged_files_are_reported_not_fatal(run_dir):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "rl", "step": 410, "loss": NaN, "value": NaN}\n{"phase": "rl", "st')
    (run_dir / "results.json").write_text("{")
    config = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps(config | {"data": [1], "rl": None}))
    page = parse(run_dir)
    assert "config.json holds no settings for data" in page.text and "no settings for rl" in page.text
    assert "1 unreadable line of metrics.jsonl" in page.text
    assert "results.json could not be read" in page.text


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("results.json", ("systems", "rl", "ndcg@10", "mean"), None),
        ("results.json", ("systems", "rl", "ndcg@10", "ci95"), ""),
        ("results.json", ("systems", "rl"), [1]),
        ("results.json", ("comparisons", 0), [{}]),
        ("results.json", ("comparisons", 0, "p"), "x"),
        ("results.json", ("training",), []),
        ("rationales.jsonl", ("candidates", 0, "systems", "rl"), -1),
        ("rationales.jsonl", ("candidates", 0), []),
        ("rationales.jsonl", ("history",), "x"),
    ],
)
def test_values_of_another_type_do_not_end_a_report(run_dir, name, place, value):
    path = run_dir / name
    lines = [json.loads(line) for line in path.read_text().splitlines()] if name.endswith("l") else None
    content = json.loads(path.read_text()) if lines is None else lines[0]
    node = content
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    path.write_text(json.dumps(content) if lines is None else "\n".join(map(json.dumps, lines)))
    page = parse(run_dir)
    assert name != "results.json" or "results.json could not be read" in page.text


def test_results_of_an_earlier_checkpoint_are_marked(run_dir):
    results = json.loads((run_dir / "results.json").read_text())
    results["training"]["rl"] = {"steps": 400, "checkpoint": "0" * 64}
    (run_dir / "results.json").write_text(json.dumps(results))
    assert "another checkpoint" not in parse(run_dir).text
    (run_dir / "checkpoints/rl/500").mkdir(parents=True)
    (run_dir / "checkpoints/rl/500/seal.json").write_text("{}")
    assert "The results are those of another checkpoint of rl; run `r2rank eval` again" in parse(run_dir).text


def test_no_directory_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run directory"):
        build(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("shift", "tone", "phrase"),
    [
        (0.05, "good", "RL beat SFT ("),
        (-0.05, "bad", "RL did worse than SFT ("),
        (0.0, "unclear", "did not differ significantly ("),
    ],
)
def test_verdicts_follow_the_numbers(run_dir, shift, tone, phrase):
    evaluation_results.write_results(run_dir / "results.json", final_results(rl_shift=shift))
    verdict = verdicts(read_run(run_dir))[0]
    assert verdict["tone"] == tone and phrase in verdict["text"] and ", corrected p" in verdict["text"]
    assert f"{final_results(rl_shift=shift)['systems']['rl']['ndcg@10']['mean']:.3f}" in headline(read_run(run_dir))


def test_the_reward_is_the_headline_metric(run_dir):
    config = json.loads((run_dir / "config.json").read_text())
    for reward, metric, shown in (("mrr", "mrr", "MRR on"), ("0.5*ndcg@10+mrr", "ndcg@10", "NDCG@10 on")):
        config["rl"]["reward"] = reward  # the second was not evaluated
        (run_dir / "config.json").write_text(json.dumps(config))
        run = read_run(run_dir)
        assert run.metric == metric and headline(run).startswith(shown)
    assert metric_label("0.5*ndcg@10+hr@5-1e-2*my.rewards:page@3") == "0.5*NDCG@10+Hit rate@5-1e-2*my.rewards:page@3"


def test_a_comparison_recorded_the_other_way_is_reversed(run_dir):
    results = final_results(rl_shift=0.05)
    (row,) = [row for row in results["comparisons"] if row["b"] == "sft"]
    low, high = row["ci95"]
    row |= {"a": "sft", "b": "rl", "difference": -row["difference"], "ci95": [-high, -low]}
    evaluation_results.write_results(run_dir / "results.json", results)
    assert "RL beat SFT (+0.0" in verdicts(read_run(run_dir))[0]["text"]


def test_logs_of_one_step_are_merged_and_ordered(run_dir):
    rows = [
        {"phase": "rl", "step": 2, "wall_s": 2.0, "value": 0.2},
        {"phase": "rl", "step": 1, "wall_s": 1.0, "value": 0.1},
        {"phase": "rl", "step": 2, "wall_s": 2.5, "validation/ndcg@10": 0.5},
        {"phase": "rl", "step": 1, "wall_s": 1.5, "value": 0.15},  # logged again after a restart
    ]
    write_lines(run_dir / "metrics.jsonl", rows)
    curve = read_run(run_dir).curve("rl", "value")
    assert (curve.steps, curve.values) == ([1, 2], [0.15, 0.2])


@pytest.mark.parametrize(
    ("rl", "metric", "problems"),
    [
        ({"metric_k": 5}, "ndcg@5", 0),
        ({"reward": " recall@5"}, "recall@5", 0),
        ({"metric_k": 5, "reward": "mrr"}, "mrr", 1),
        ({"metric_k": "x"}, "ndcg@10", 1),
        ([1], "ndcg@10", 0),
    ],
)
def test_the_reward_of_an_older_configuration(tmp_path, rl, metric, problems):
    (tmp_path / "config.json").write_text(json.dumps({"name": "x", "rl": rl}))
    run = read_run(tmp_path)
    assert run.metric == metric
    assert sum("reward in config.json" in problem for problem in run.problems) == problems
