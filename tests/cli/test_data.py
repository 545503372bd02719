"""Wrong arguments of `r2rank data` give one line and exit code 2, and nothing is written."""

import pytest

from r2rank_jax.cli import main

LOG = "user,item,rating\na,x,5\na,y,4\nb,x,3\n"


@pytest.fixture
def log(tmp_path):
    (tmp_path / "log.csv").write_text(LOG)
    return tmp_path / "log.csv"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--positive-rating", "nan"], "positive_rating must be a number, got nan"),
        (["--column", "user=a", "--column", "user=b"], "--column must name each key once, got user=a, user=b"),
        (["--column", "user"], "--column must be KEY=NAME"),
        (["--column", "title=nme"], "must have a column 'nme', got user, item, rating"),
    ],
)
def test_settings_that_would_be_misread(log, tmp_path, capsys, flags, message):
    assert main(["data", "prepare", "--source", str(log), "--out", str(tmp_path / "out"), *flags]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["log.csv", "log.csv/sub"])
def test_out_must_be_a_folder(log, tmp_path, capsys, place):
    for command in (["prepare", "--source", str(log)], ["fetch", "ml-100k"]):
        assert main(["data", *command, "--out", str(tmp_path / place)]) == 2
        assert "--out must be a folder to write" in capsys.readouterr().err
    assert log.read_text() == LOG


def test_out_must_be_a_file(tmp_path, capsys):
    assert main(["data", "synthesize", "--data", str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
    assert "--out must be a file to write" in capsys.readouterr().err


def test_a_seed_below_zero(log, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["data", "prepare", "--source", str(log), "--out", str(tmp_path / "out"), "--seed", "-1"])
    assert "must be a non-negative integer, got '-1'" in capsys.readouterr().err


def test_quarantined_rows_are_reported(log, tmp_path, capsys):
    log.write_text(LOG + "b,z,4\nb,y,good\n")
    flags = ["--on-error", "quarantine", "--candidates", "2"]
    assert main(["data", "prepare", "--source", str(log), "--out", str(tmp_path / "out"), *flags]) == 0
    assert "1 malformed rows set aside in quarantine.jsonl" in capsys.readouterr().out
