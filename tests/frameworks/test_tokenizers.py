"""Tokenizers: what they encode, in the dataset and in collate functions, and what data collators pad."""

from __future__ import annotations

from pathlib import Path

from tests.frameworks.support import needs, run_ranks

TEXTS = """
    import os

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_OFFLINE"] = "1"
    import random
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import DataCollatorForLanguageModeling, DataCollatorWithPadding, PreTrainedTokenizerFast
    from transformers import BatchEncoding
    from tests.frameworks.support import compared, tell

    WORDS = [f"word{number}" for number in range(50)]

    def tokenizer():
        vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[MASK]", *WORDS])}
        plain = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        plain.pre_tokenizer = pre_tokenizers.Whitespace()
        return PreTrainedTokenizerFast(
            tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]"
        )

    def texts():
        draw = random.Random(0)
        return [" ".join(draw.choices(WORDS, k=draw.randint(200, 300))) for _ in range(40)]

    def comparable(batch):
        assert type(batch) is BatchEncoding
        words = [batch.word_ids(number) for number in range(len(batch["input_ids"]))] if batch.encodings else None
        return dict(batch), words

    def main():
        encode = tokenizer()
        encoded = [dict(encode(text)) for text in texts()]
        padding = DataCollatorWithPadding(encode)
        masking = DataCollatorForLanguageModeling(encode, mlm_probability=0.3)

        def in_collation(samples):
            return encode(samples, padding=True, return_tensors="pt")

        def loader(dataset, collate):
            return lambda kind: kind(dataset, batch_size=10, shuffle=True, num_workers=2, collate_fn=collate)

        tell({
            "padded": compared(loader(encoded, padding), comparable, passes=2),
            "masked": compared(loader(encoded, masking), comparable, passes=2),
            "encoded": compared(loader(texts(), in_collation), comparable, passes=2),
        })

    if __name__ == "__main__":
        main()
"""


@needs("transformers")
def test_batches_of_tokenizers(tmp_path: Path) -> None:
    (found,) = run_ranks(TEXTS, tmp_path, ranks=1)
    for batches, large in found.values():
        assert batches == 8
        assert large in (16, 24)  # of each its ids and its mask, and of those that are masked its labels
