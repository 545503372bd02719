"""`r2rank rank`: rank a user's own candidates, each with the rationale behind its score."""

from __future__ import annotations

import codecs
import json
import sys
from pathlib import Path

import jax
import numpy as np

from r2rank_jax.checkpoint.policy import load_policy
from r2rank_jax.config import RunConfig
from r2rank_jax.data.batches.requests import RankingRequest, read_requests, request_batches, without_history
from r2rank_jax.data.prompts.tokenizer import FastTokenizer
from r2rank_jax.errors import ConfigError, DataError, ScoresError, UsageError
from r2rank_jax.files.atomic import replacing_file
from r2rank_jax.lineage import require_same_prompts
from r2rank_jax.phases import Phase
from r2rank_jax.pretrained.folder import tokenizer_hash
from r2rank_jax.rollout.scoring import make_scorer, score_lists
from r2rank_jax.runs.session.log import say
from r2rank_jax.runs.starting_model import read_run_tokenizer
from r2rank_jax.sharding import abstract_params, make_mesh


def run(config: RunConfig, run_dir: Path, source: Path, out: Path | None, *, phase: Phase) -> None:
    """Rank every list of `source` with the policy of `phase`.

    Args:
        config: of the run.
        run_dir: in which `phase` has finished.
        source: JSONL of requests, see `r2rank_jax.data.batches.requests`.
        out: JSONL to write, one object per list with its candidates best first; None: print it.
        phase: the phase whose policy ranks.

    Raises:
        DataError: a request cannot be read, or no request has a history.
        UsageError: `out` is `source`.
        ScoresError: a score is not finite.
    """
    if jax.process_count() > 1:
        raise ConfigError(
            f"`r2rank rank` must run as one process, got {jax.process_count()}; start it without a launcher; "
            "--mesh.data uses more devices"
        )
    requests = requests_with_history(source)
    if out is not None and out.exists() and out.samefile(source):
        raise UsageError(f"--output must be another file than --input, got {out} for both; choose another --output")
    mesh = make_mesh(config.mesh)
    tokenizer = read_run_tokenizer(run_dir)
    policy = load_policy(run_dir / "checkpoints" / phase, abstract_params(mesh, config.model), config)
    require_same_prompts(policy.record, config, tokenizer_hash(run_dir))

    users = min(config.evaluation.batch_users, -(-len(requests) // config.mesh.batch_shards) * config.mesh.batch_shards)
    scorer = make_scorer(mesh, config, tokenizer.stop)
    batches = request_batches(tokenizer, config.data, requests, users)
    readings = score_lists(scorer, mesh, policy.params, batches, words=config.model.score_reads == "words")
    scores = readings.mean_scores()
    _require_finite(requests, scores)

    # A terminal may be unable to show a title; JSON can escape it.
    escaped = out is None and codecs.lookup(sys.stdout.encoding or "ascii").name != "utf-8"
    lines = []
    rows = zip(requests, scores, readings.scores, readings.rationales, readings.typical(), strict=True)
    for request, means, each, tokens, typical in rows:
        order = np.argsort(-means[: len(request.candidates)], kind="stable")
        ranking = []
        for n in order:
            texts = [_text(tokenizer, row) for row in tokens[n]]
            answer = {
                "id": request.candidates[n].id,
                "title": request.candidates[n].title,
                "score": round(float(means[n]), 6),
                "rationale": texts[typical[n]],
            }
            if len(texts) > 1:
                answer["rationales"] = [
                    {"score": round(float(score), 6), "rationale": text} for score, text in zip(each[n], texts)
                ]
            ranking.append(answer)
        lines.append(json.dumps({"id": request.id, "ranking": ranking}, ensure_ascii=escaped))
    if out is None:
        print("\n".join(lines))
    else:
        with replacing_file(out) as partial:
            partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        say(f"{out}: {len(lines)} ranked lists")


def requests_with_history(source: Path) -> list[RankingRequest]:
    """Read the lists that can be ranked. Others are counted on stderr, since stdout may hold the answer.

    Raises:
        DataError: the file or a line cannot be read, or no list has a history.
    """
    requests, cold = without_history(read_requests(source))
    if cold:
        ids = ", ".join(f"{request.id!r:.80}" for request in cold[:5]) + (", ..." if len(cold) > 5 else "")
        lists = f"{len(cold)} of {len(cold) + len(requests)} lists, of users with an empty history: {ids}"
        if not requests:
            raise DataError(
                f"{source} must hold a list with at least 1 interaction, but it holds {lists}; rank these by popularity"
            )
        print(f"r2rank: set aside {lists}; rank these by popularity", file=sys.stderr, flush=True)
    return requests


def _require_finite(requests: list[RankingRequest], scores: np.ndarray) -> None:
    for request, row in zip(requests, scores):
        if not np.isfinite(row[: len(request.candidates)]).all():
            raise ScoresError(
                f"scores must be finite, got others for the list {request.id!r:.80}; the policy's training diverged: "
                "train again with a lower learning rate"
            )


def _text(tokenizer: FastTokenizer, tokens: np.ndarray) -> str:
    ends = np.flatnonzero((tokens == tokenizer.stop) | (tokens == tokenizer.pad))
    return tokenizer.decode(tokens[: ends[0]].tolist() if len(ends) else tokens.tolist()).strip()
