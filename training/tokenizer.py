"""The tokenizer of the tiny checkpoint: byte-level BPE, and the official control tokens."""

import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer
from transformers import PreTrainedTokenizerFast

from model.tokenizer import Tokenizer
from training.architecture import NUM_TEXT_TOKENS, VOCAB_SIZE
from training.captions import describe_facts, write_caption
from training.filler import write_sentence
from training.random_checkpoint import CONTROL_TOKENS
from training.scenes import choose_size, grid_of, make_scene

NUM_TEXTS = 12000


def build_tokenizer(folder: Path) -> Tokenizer:
    """Train the tokenizer into `folder` unless it is there, and load it as the server does."""
    if not (folder / "tokenizer.json").is_file():
        backend = FastTokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=NUM_TEXT_TOKENS,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(_texts(), trainer)
        assert backend.get_vocab_size() == NUM_TEXT_TOKENS
        backend.add_special_tokens([AddedToken(t, normalized=False) for t in CONTROL_TOKENS])
        assert backend.get_vocab_size() == VOCAB_SIZE
        PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token="<|startoftext|>",
            eos_token="<|endoftext|>",
            pad_token="<pad>",
        ).save_pretrained(folder)
    return Tokenizer.from_folder(folder)


def _texts() -> Iterator[str]:
    rng = random.Random(4)
    for _ in range(NUM_TEXTS):
        scene = make_scene(rng, *grid_of(choose_size(rng)), split="any")
        yield write_caption(scene, rng).text
        if rng.random() < 0.5:
            yield " ".join(describe_facts(scene, rng))
        yield write_sentence(rng)
