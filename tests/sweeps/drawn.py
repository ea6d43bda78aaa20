"""A tiny encoder that is drawn at random, and words that it knows."""

from pathlib import Path

WORDS = "good bad fine awful great dull bright slow quick weak strong nice poor rich sad happy"


def save_encoder(folder: Path) -> None:
    """A BERT over the words and ten digits, with its tokenizer."""
    import torch
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    vocabulary = ["[PAD]", "[UNK]", *WORDS.split(), *map(str, range(10))]
    backend = Tokenizer(WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]"
    )
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)  # what a random base can learn in so few steps depends on its weights
    for saved in (tokenizer, transformers.BertModel(config)):
        saved.save_pretrained(folder)
