"""A tiny random model of every architecture that people fine-tune, with a tokenizer as its family has it.

    make("gpt2", "classification", folder)

writes what `from_pretrained` of transformers loads. Nothing is downloaded: a model is drawn from its architecture's own
configuration class, with two layers where it can have so few.
"""

import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

CONTEXT = 64
CHARACTERS = string.ascii_letters + string.digits + " \n.,;:!?'\"-()#@/%&*+=_"
SPREAD = 0.12  # standard deviation of what is added to every weight, so that every layer matters to the loss
AUTO_CLASSES = {
    "causal": "AutoModelForCausalLM",
    "classification": "AutoModelForSequenceClassification",
}

Task = Literal["causal", "classification"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """The special tokens of a tokenizer in the order of their ids, what each is used for, and how a row is framed."""

    tokens: tuple[str, ...]
    roles: dict[str, str]  # pad_token, eos_token, ...: which of the tokens
    frame: str = "$A"  # $A is the text
    padding_side: str = "right"
    bytes: bool = False  # text is cut into bytes, which the vocabulary spells as GPT-2's does


FAMILIES = {
    "bert": Family(
        tokens=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        roles={
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        },
        frame="[CLS] $A [SEP]",
    ),
    "roberta": Family(
        tokens=("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
        roles={
            "bos_token": "<s>",
            "cls_token": "<s>",
            "pad_token": "<pad>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "unk_token": "<unk>",
            "mask_token": "<mask>",
        },
        frame="<s> $A </s>",
    ),
    "xlnet": Family(
        tokens=("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>"),
        roles={
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "cls_token": "<cls>",
            "sep_token": "<sep>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
        frame="$A <sep> <cls>",
        padding_side="left",
    ),
    "xlm": Family(
        tokens=("<s>", "</s>", "<pad>", "<unk>"),
        roles={"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
        frame="<s> $A </s>",
    ),
    "gpt2": Family(
        tokens=("<|endoftext|>",),
        roles={
            "bos_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
        },
        bytes=True,
    ),
    "llama": Family(
        tokens=("<unk>", "<s>", "</s>"),
        roles={"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
        frame="<s> $A",
    ),
    "gemma": Family(
        tokens=("<pad>", "<eos>", "<bos>", "<unk>"),
        roles={
            "pad_token": "<pad>",
            "eos_token": "<eos>",
            "bos_token": "<bos>",
            "unk_token": "<unk>",
        },
        frame="<bos> $A",
    ),
    "qwen": Family(  # pads with a token of its own, of which the model's configuration knows nothing
        tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        roles={
            "pad_token": "<|endoftext|>",
            "eos_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
        },
        bytes=True,
    ),
    "t5": Family(
        tokens=("<pad>", "</s>", "<unk>"),
        roles={"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
        frame="$A </s>",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How to draw a tiny model: its `model_type`, what its configuration is given, its tokenizer's family."""

    model_type: str
    config: dict[str, Any]
    family: str
    # whether its configuration names the tokenizer's padding token, where that has one
    pads: bool = True
    causal: dict[str, Any] = field(
        default_factory=dict
    )  # of the configuration for causal language models
    sees_the_future: bool = False  # as a "causal" language model, even with `causal`


BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": CONTEXT,
}
ROBERTA = {**BERT, "max_position_embeddings": CONTEXT + 2}  # positions begin after that of padding
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT}
XLM = {"emb_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": CONTEXT}
LLAMA = {**BERT, "num_attention_heads": 4, "num_key_value_heads": 2}
GEMMA = {**LLAMA, "head_dim": 8}
GLM = {**LLAMA, "head_dim": 8}
T5 = {
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
}
T5["decoder_start_token_id"] = 0
BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": CONTEXT,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
DEEPSEEK = {
    **LLAMA,
    **EXPERTS,
    **LATENT,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "conv_kernel": 4, "expand": 2}


def _encoder(
    model_type: str, config: dict[str, Any], family: str = "bert", **more: Any
) -> Architecture:
    return Architecture(model_type=model_type, config=config, family=family, **more)


def _decoder(
    model_type: str, config: dict[str, Any], family: str = "llama", **more: Any
) -> Architecture:
    return Architecture(model_type=model_type, config=config, family=family, **more)


AS_DECODER = {"is_decoder": True}

ZOO: dict[str, Architecture] = {
    # --- encoders ---
    "bert": _encoder("bert", BERT, causal=AS_DECODER),
    "bert-encoder": _encoder("bert", BERT, sees_the_future=True),  # as it comes: not a decoder
    "roberta": _encoder("roberta", ROBERTA, "roberta", causal=AS_DECODER),
    "roberta-encoder": _encoder("roberta", ROBERTA, "roberta", sees_the_future=True),
    "distilbert": _encoder(
        "distilbert", {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    ),
    "electra": _encoder("electra", {**BERT, "embedding_size": 16}, causal=AS_DECODER),
    "electra-encoder": _encoder("electra", {**BERT, "embedding_size": 16}, sees_the_future=True),
    "albert": _encoder("albert", {**BERT, "embedding_size": 16}),
    "deberta": _encoder(
        "deberta", {**BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
    ),
    "deberta-v2": _encoder(
        "deberta-v2", {**BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
    ),
    "deberta-v3": _encoder(
        "deberta-v2",
        {
            **BERT,
            "relative_attention": True,
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
        },
    ),
    "modernbert": _encoder("modernbert", {**BERT, "local_attention": 16}),
    "mpnet": _encoder("mpnet", ROBERTA, "roberta"),
    "camembert": _encoder("camembert", ROBERTA, "roberta", causal=AS_DECODER),
    "xlm-roberta": _encoder("xlm-roberta", ROBERTA, "roberta", causal=AS_DECODER),
    "xlnet": _encoder(
        "xlnet",
        {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64},
        "xlnet",
        sees_the_future=True,
    ),
    "longformer": _encoder("longformer", {**ROBERTA, "attention_window": [8, 8]}, "roberta"),
    "big_bird": _encoder(
        "big_bird", {**BERT, "attention_type": "original_full"}, causal=AS_DECODER
    ),
    "funnel": _encoder(
        "funnel",
        {
            "block_sizes": [1, 1],
            "num_decoder_layers": 1,
            "d_model": 32,
            "n_head": 2,
            "d_head": 16,
            "d_inner": 64,
        },
    ),
    "convbert": _encoder(
        "convbert", {**BERT, "embedding_size": 32, "num_attention_heads": 4, "head_ratio": 2}
    ),
    "roformer": _encoder("roformer", {**BERT, "embedding_size": 32}, causal=AS_DECODER),
    "ernie": _encoder("ernie", BERT, causal=AS_DECODER),
    "nystromformer": _encoder(
        "nystromformer", {**ROBERTA, "num_landmarks": 64, "segment_means_seq_len": 64}, "roberta"
    ),
    "mobilebert": _encoder(
        "mobilebert",
        {
            **BERT,
            "embedding_size": 16,
            "intra_bottleneck_size": 16,
            "true_hidden_size": 16,
            "intermediate_size": 32,
        },
    ),
    "squeezebert": _encoder("squeezebert", {**BERT, "embedding_size": 32}),
    "esm": _encoder("esm", ROBERTA, "roberta"),
    "flaubert": _encoder("flaubert", XLM, "xlm"),
    "xlm": _encoder("xlm", XLM, "xlm", sees_the_future=True),
    "layoutlm": _encoder("layoutlm", BERT),
    "ibert": _encoder("ibert", ROBERTA, "roberta"),
    "nomic_bert": _encoder("nomic_bert", BERT),
    "gte": _encoder("gte", BERT),
    "eurobert": _encoder("eurobert", {**LLAMA, "num_key_value_heads": 4}),
    "rembert": _encoder(
        "rembert",
        {**BERT, "input_embedding_size": 16, "output_embedding_size": 32},
        causal=AS_DECODER,
    ),
    "luke": _encoder(
        "luke", {**ROBERTA, "entity_vocab_size": 10, "entity_emb_size": 16}, "roberta"
    ),
    "mra": _encoder("mra", ROBERTA, "roberta"),
    "yoso": _encoder("yoso", {**ROBERTA, "use_expectation": True}, "roberta"),
    "xmod": _encoder(
        "xmod", {**ROBERTA, "languages": ["en_XX"], "default_language": "en_XX"}, "roberta"
    ),
    "megatron-bert": _encoder("megatron-bert", BERT, causal=AS_DECODER),
    "roberta-prelayernorm": _encoder("roberta-prelayernorm", ROBERTA, "roberta", causal=AS_DECODER),
    "xlm-roberta-xl": _encoder("xlm-roberta-xl", ROBERTA, "roberta", causal=AS_DECODER),
    "data2vec-text": _encoder("data2vec-text", ROBERTA, "roberta", causal=AS_DECODER),
    "fnet": _encoder("fnet", BERT),
    "modernbert-decoder": _decoder(
        "modernbert-decoder", {**BERT, "local_attention": 16}, "roberta"
    ),
    # --- decoders ---
    "gpt2": _decoder("gpt2", GPT2, "gpt2"),
    "gpt_neo": _decoder(
        "gpt_neo",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "max_position_embeddings": CONTEXT,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 16,
        },
        "gpt2",
    ),
    "gpt_neox": _decoder("gpt_neox", BERT, "gpt2"),
    "gptj": _decoder("gptj", {**GPT2, "rotary_dim": 8}, "gpt2"),
    "codegen": _decoder("codegen", {**GPT2, "n_head": 4, "rotary_dim": 8}, "gpt2"),
    "bloom": _decoder("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 2}, "gemma"),
    "opt": _decoder("opt", {**BERT, "ffn_dim": 64, "word_embed_proj_dim": 32}, "roberta"),
    "mpt": _decoder(
        "mpt", {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": CONTEXT}, "gpt2"
    ),
    "falcon": _decoder("falcon", {**BERT, "num_kv_heads": 2}, "gpt2"),
    "llama": _decoder("llama", LLAMA),
    "llama-pads-otherwise": _decoder(
        "llama", {**LLAMA, "pad_token_id": 0}
    ),  # its tokenizer pads with eos
    "llama-tied": _decoder("llama", {**LLAMA, "tie_word_embeddings": True}),
    "mistral": _decoder("mistral", {**LLAMA, "sliding_window": 16}),
    "qwen2": _decoder("qwen2", LLAMA, "qwen", pads=False),
    "qwen3": _decoder("qwen3", {**LLAMA, "head_dim": 8}, "qwen", pads=False),
    "gemma": _decoder("gemma", GEMMA, "gemma"),
    "gemma2": _decoder(
        "gemma2", {**GEMMA, "query_pre_attn_scalar": 8, "sliding_window": 16}, "gemma"
    ),
    "gemma3_text": _decoder(
        "gemma3_text", {**GEMMA, "query_pre_attn_scalar": 8, "sliding_window": 16}, "gemma"
    ),
    "phi": _decoder("phi", BERT, "gpt2"),
    "phi3": _decoder("phi3", LLAMA, "gemma"),
    "stablelm": _decoder("stablelm", LLAMA, "gpt2"),
    "olmo": _decoder("olmo", LLAMA, "roberta"),
    "olmo2": _decoder("olmo2", LLAMA, "roberta"),
    "cohere": _decoder("cohere", LLAMA, "gemma"),
    "granite": _decoder("granite", LLAMA, "gpt2"),
    "starcoder2": _decoder("starcoder2", LLAMA, "gpt2"),
    "smollm3": _decoder("smollm3", LLAMA, "gemma"),
    "glm": _decoder("glm", GLM, "gemma"),
    "glm4": _decoder("glm4", GLM, "gemma"),
    "helium": _decoder("helium", {**LLAMA, "head_dim": 8}, "gemma"),
    "nemotron": _decoder("nemotron", LLAMA),
    "gpt_bigcode": _decoder("gpt_bigcode", GPT2, "gpt2"),
    "biogpt": _decoder("biogpt", BERT, "roberta"),
    "xglm": _decoder(
        "xglm", {"d_model": 32, "num_layers": 2, "attention_heads": 2, "ffn_dim": 64}, "roberta"
    ),
    "persimmon": _decoder("persimmon", BERT, "gpt2"),
    "openai-gpt": _decoder("openai-gpt", GPT2, "gpt2"),
    "ctrl": _decoder("ctrl", {**GPT2, "dff": 64}, "gpt2"),
    "gpt_neox_japanese": _decoder(
        "gpt_neox_japanese", {**BERT, "intermediate_multiple_size": 2}, "gpt2"
    ),
    "cohere2": _decoder("cohere2", {**LLAMA, "sliding_window": 16}, "gemma"),
    "olmo3": _decoder("olmo3", {**LLAMA, "sliding_window": 16}, "roberta"),
    "ministral": _decoder("ministral", {**GEMMA, "sliding_window": 16}),
    "exaone4": _decoder("exaone4", {**LLAMA, "sliding_window": 16, "sliding_window_pattern": 2}),
    "arcee": _decoder("arcee", LLAMA),
    "apertus": _decoder("apertus", LLAMA, "gemma"),
    "seed_oss": _decoder("seed_oss", GEMMA, "roberta"),
    "ernie4_5": _decoder("ernie4_5", GEMMA, "gemma"),
    "hunyuan_v1_dense": _decoder("hunyuan_v1_dense", GEMMA, "gemma"),
    "diffllama": _decoder("diffllama", LLAMA),
    "bitnet": _decoder("bitnet", LLAMA),
    # --- mixtures of experts ---
    "mixtral": _decoder("mixtral", {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": _decoder(
        "qwen2_moe",
        {
            **LLAMA,
            **EXPERTS,
            "num_experts": 4,
            "shared_expert_intermediate_size": 32,
            "decoder_sparse_step": 1,
        },
        "qwen",
        pads=False,
    ),
    "qwen3_moe": _decoder(
        "qwen3_moe", {**GEMMA, **EXPERTS, "num_local_experts": 4}, "qwen", pads=False
    ),
    "olmoe": _decoder("olmoe", {**LLAMA, "num_experts": 4, "num_experts_per_tok": 2}, "roberta"),
    "deepseek_v2": _decoder("deepseek_v2", {**DEEPSEEK, "topk_method": "greedy"}),
    "deepseek_v3": _decoder("deepseek_v3", DEEPSEEK),
    "glm4_moe": _decoder(
        "glm4_moe",
        {
            **GLM,
            **EXPERTS,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
        },
        "gpt2",
    ),
    "granitemoe": _decoder(
        "granitemoe", {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}, "gpt2"
    ),
    "gpt_oss": _decoder(
        "gpt_oss",
        {
            **LLAMA,
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 2.0,
                "original_max_position_embeddings": CONTEXT // 2,
            },
        },
        "gpt2",
    ),
    "dbrx": _decoder(
        "dbrx",
        {
            "d_model": 32,
            "n_layers": 2,
            "n_heads": 4,
            "max_seq_len": CONTEXT,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        },
        "gpt2",
    ),
    "jetmoe": _decoder(
        "jetmoe",
        {
            **BERT,
            "num_key_value_heads": 2,
            "kv_channels": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    "phimoe": _decoder("phimoe", {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "ernie4_5_moe": _decoder(
        "ernie4_5_moe",
        {
            **LLAMA,
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 32,
            "moe_num_shared_experts": 1,
            "moe_layer_start_index": 1,
        },
        "gemma",
    ),
    "minimax": _decoder(
        "minimax",
        {**GEMMA, "num_local_experts": 4, "num_experts_per_tok": 2, "block_size": 16},
        "llama",
    ),
    "flex_olmo": _decoder(
        "flex_olmo", {**LLAMA, "num_experts": 4, "num_experts_per_tok": 2}, "roberta"
    ),
    "dots1": _decoder(
        "dots1",
        {
            **GEMMA,
            **EXPERTS,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "qwen3_next": _decoder(
        "qwen3_next",
        {
            **GEMMA,
            **EXPERTS,
            "num_experts": 4,
            "shared_expert_intermediate_size": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
        "qwen",
        pads=False,
    ),
    # --- state spaces, recurrences, and their mixtures with attention ---
    "mamba": _decoder("mamba", MAMBA, "gemma"),
    "mamba2": _decoder(
        "mamba2",
        {**MAMBA, "num_heads": 4, "head_dim": 16, "n_groups": 2, "chunk_size": 16},
        "gemma",
    ),
    "falcon_mamba": _decoder("falcon_mamba", MAMBA, "gemma"),
    "jamba": _decoder(
        "jamba",
        {
            **LLAMA,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
        "gemma",
    ),
    "bamba": _decoder(
        "bamba",
        {
            **LLAMA,
            "attn_layer_indices": [1],
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "mamba_chunk_size": 16,
        },
        "gemma",
    ),
    "zamba2": _decoder(
        "zamba2",
        {
            **BERT,
            "num_hidden_layers": 3,
            "layers_block_type": ["mamba", "hybrid", "hybrid"],
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "mamba_d_state": 8,
            "mamba_ngroups": 1,
            "n_mamba_heads": 4,
            "num_mem_blocks": 1,
            "chunk_size": 16,
            "adapter_rank": 4,
        },
        "gemma",
    ),
    "rwkv": _decoder(
        "rwkv",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "context_length": CONTEXT,
            "attention_hidden_size": 32,
        },
        "gpt2",
    ),
    "recurrent_gemma": _decoder(
        "recurrent_gemma",
        {
            **LLAMA,
            "lru_width": 32,
            "attention_window_size": 16,
            "block_types": ["recurrent", "attention"],
        },
        "gemma",
    ),
    "lfm2": _decoder("lfm2", {**LLAMA, "layer_types": ["conv", "full_attention"]}, "gemma"),
    "falcon_h1": _decoder(
        "falcon_h1",
        {
            **GEMMA,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "mamba_chunk_size": 16,
        },
        "gemma",
    ),
    "granitemoehybrid": _decoder(
        "granitemoehybrid",
        {
            **LLAMA,
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "mamba_chunk_size": 16,
        },
        "gpt2",
    ),
    # --- encoders with a decoder ---
    "t5": _encoder("t5", T5, "t5"),
    "mt5": _encoder("mt5", T5, "t5"),
    "umt5": _encoder("umt5", T5, "t5"),
    "bart": _encoder("bart", BART, "roberta"),
    "mbart": _encoder("mbart", BART, "roberta"),
    "pegasus": _encoder("pegasus", BART, "t5"),
    "plbart": _encoder("plbart", BART, "roberta"),
    "mvp": _encoder("mvp", BART, "roberta"),
    "led": _encoder(
        "led",
        {
            **{name: value for name, value in BART.items() if name != "max_position_embeddings"},
            "max_encoder_position_embeddings": CONTEXT,
            "max_decoder_position_embeddings": CONTEXT,
            "attention_window": [8, 8],
        },
        "roberta",
    ),
}


def tokenizer(family: str, length: int = CONTEXT) -> Any:
    """One token a character, framed as the family frames a text; without a padding token where the family has none."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE, WordLevel
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    what = FAMILIES[family]
    characters = CHARACTERS.translate({ord(" "): "Ġ", ord("\n"): "Ċ"}) if what.bytes else CHARACTERS
    ids = {token: number for number, token in enumerate([*what.tokens, *characters])}
    if what.bytes:
        core = Tokenizer(BPE(ids, [], unk_token=what.roles["unk_token"]))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
    else:
        core = Tokenizer(WordLevel(ids, unk_token=what.roles["unk_token"]))
        core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        core.decoder = decoders.Fuse()
    used = [token for token in what.frame.split() if token != "$A"]
    if used:
        core.post_processor = TemplateProcessing(
            single=what.frame, special_tokens=[(token, ids[token]) for token in dict.fromkeys(used)]
        )
    names = (
        ["input_ids", "token_type_ids", "attention_mask"]
        if family == "bert"
        else ["input_ids", "attention_mask"]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=length,
        model_input_names=names,
        padding_side=what.padding_side,
        **what.roles,
    )


def config(name: str, task: Task, **more: Any) -> Any:
    """The configuration of a tiny model; `more` is given to it too."""
    from transformers import AutoConfig

    kind, words = ZOO[name], tokenizer(ZOO[name].family)
    # by default these may be tokens that a vocabulary so small does not have
    ids = {
        f"{role}_token_id": getattr(words, f"{role}_token_id")
        for role in ("bos", "eos", "pad", "cls", "sep")
    }
    if not kind.pads:
        del ids["pad_token_id"]
    given = {**ids, **kind.config, **(kind.causal if task == "causal" else {}), **more}
    return AutoConfig.for_model(kind.model_type, vocab_size=len(words), **given)


def tasks(name: str) -> list[Task]:
    """For which transformers has a class."""
    import transformers

    made = type(config(name, "classification"))
    return [
        task
        for task, auto_class in AUTO_CLASSES.items()
        if made in getattr(transformers, auto_class)._model_mapping  # noqa: SLF001
    ]


def draw(name: str, task: Task, *, seed: int = 1, **more: Any) -> Any:
    """A random model in eval mode, the same at every call."""
    import transformers

    labels = {"num_labels": 3} if task == "classification" else {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = getattr(transformers, AUTO_CLASSES[task]).from_config(
            config(name, task, **labels, **more)
        )
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=SPREAD)
    return model.eval()


def make(
    name: str, task: Task, folder: Path, *, seed: int = 1, length: int = CONTEXT, **more: Any
) -> Path:
    """Write a random model and its tokenizer into `folder`, which is returned. A classifier has a head of three classes.

    length: what the tokenizer cuts rows to; more: given to the configuration.
    """
    draw(name, task, seed=seed, **more).save_pretrained(folder)
    tokenizer(ZOO[name].family, length).save_pretrained(folder)
    return folder
