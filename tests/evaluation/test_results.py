"""`results.json`: form, round trip, atomic writing, and the printed table."""

import copy

import numpy as np
import pytest

from r2rank_jax.config import EvaluationConfig
from r2rank_jax.errors import ResultsError
from r2rank_jax.evaluation.results import Provenance, build_results, read_results, write_results
from r2rank_jax.evaluation.significance import holm
from r2rank_jax.evaluation.table import results_table

CONFIG = EvaluationConfig(ks=(1, 10), bootstrap_samples=200, permutation_samples=300)


@pytest.fixture(scope="module")
def results():
    rng = np.random.default_rng(0)
    base = rng.random(100)
    systems = {
        "popularity": {"ndcg@10": base, "mrr": base / 2},
        "rl": {"ndcg@10": np.minimum(base + 0.1, 1), "mrr": base / 2 + rng.normal(0, 0.1, 100)},
    }
    provenance = Provenance(data_hash="d", commit="c", training={"rl": {"steps": 5, "wall_s": 1.5}})
    return build_results(
        systems, [("rl", "popularity")], config=CONFIG, candidate_items=20, seed=0, provenance=provenance
    )


def test_form(results):
    cell = results["systems"]["rl"]["ndcg@10"]
    assert set(cell) == {"mean", "ci95", "n"} and cell["n"] == 100
    assert cell["ci95"][0] < cell["mean"] < cell["ci95"][1]
    (row,) = results["comparisons"]
    assert (row["a"], row["b"], row["metric"]) == ("rl", "popularity", "ndcg@10")
    means = {name: results["systems"][name]["ndcg@10"]["mean"] for name in ("rl", "popularity")}
    assert row["difference"] == pytest.approx(means["rl"] - means["popularity"])
    assert row["p"] == row["p_holm"] == pytest.approx(1 / 301), "one comparison needs no correction"
    assert results["analytic_random"]["ndcg@10"] == pytest.approx(0.2272, abs=5e-5)
    assert {"platform", "cpus", "jax", "date"} <= set(results["machine"])
    assert (results["data_hash"], results["commit"]) == ("d", "c")


def test_p_values_are_corrected_for_all_comparisons_and_old_files_have_none(results, tmp_path):
    provenance = Provenance(data_hash="d", commit="c")
    rng = np.random.default_rng(1)
    systems = {
        name: {"ndcg@10": rng.random(100) + shift, "mrr": rng.random(100)} for name, shift in zip("abc", (0, 0.1, 0.2))
    }
    many = build_results(
        systems, [("b", "a"), ("c", "a")], config=CONFIG, candidate_items=None, seed=0, provenance=provenance,
        compared=["ndcg@10", "mrr"],
    )  # fmt: skip
    rows = many["comparisons"]
    assert [row["p_holm"] for row in rows] == holm([row["p"] for row in rows])
    assert rows[0]["p_holm"] > rows[0]["p"] and "p (Holm)" in results_table(many)
    old = results | {"comparisons": [{k: v for k, v in row.items() if k != "p_holm"} for row in results["comparisons"]]}
    write_results(tmp_path / "old.json", old)
    assert read_results(tmp_path / "old.json") == old and results_table(old)
    with pytest.raises(ResultsError, match="p_holm must lie in"):
        write_results(tmp_path / "bad.json", many | {"comparisons": [rows[0] | {"p_holm": 2.0}]})


def test_round_trip(results, tmp_path):
    path = tmp_path / "results.json"
    write_results(path, results)
    assert read_results(path) == results
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_a_failed_write_leaves_the_old_file(results, tmp_path):
    path = tmp_path / "results.json"
    write_results(path, results)
    for poison in (float("nan"), object()):
        with pytest.raises(ResultsError, match="plain, finite"):
            write_results(path, results | {"training": {"x": poison}})
    assert read_results(path) == results
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("commit"), "must hold 'commit'"),
        (lambda r: r["systems"]["rl"]["mrr"].pop("n"), r"systems\.rl\.mrr must be"),
        (lambda r: r["systems"]["rl"]["mrr"].update(mean=float("nan")), "finite"),
        (lambda r: r["systems"]["rl"]["mrr"].update(ci95=[1.0, 0.0]), "low, high"),
        (lambda r: r["comparisons"][0].update(b="nobody"), "names no system"),
        (lambda r: r["comparisons"][0].update(p=0.0), r"p must lie in"),
    ],
)
def test_other_forms_are_refused(results, tmp_path, change, message):
    broken = copy.deepcopy(results)
    change(broken)
    with pytest.raises(ResultsError, match=message):
        write_results(tmp_path / "results.json", broken)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ResultsError, match="r2rank eval"):
        read_results(path)


def test_systems_must_be_measured_alike():
    systems = {"a": {"mrr": np.zeros(3)}, "b": {"mrr": np.zeros(4)}}
    with pytest.raises(ResultsError, match="same users"):
        build_results(
            systems,
            [],
            config=CONFIG,
            candidate_items=20,
            seed=0,
            provenance=Provenance(data_hash="", commit=""),
        )


def test_table_is_aligned(results):
    text = results_table(results)
    lines = text.splitlines()
    header = next(line for line in lines if line.startswith("system"))
    row = next(line for line in lines if line.startswith("rl "))
    cell = results["systems"]["rl"]["mrr"]
    assert row[header.index("mrr") :].startswith(f"{cell['mean']:.3f} [")
    assert "rl - popularity" in text and "100 users" in text
    assert "0.227" in text
