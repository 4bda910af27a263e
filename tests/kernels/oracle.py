"""transformers' models on our weights: what someone else's code says the answer is."""

from typing import Any

import torch
import transformers
from torch import Tensor

from kernels.generate import Batch
from kernels.shapes import ModelShape, tensors
from kernels.weights import Weights

_NAMES = {
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def oracle(weights: Weights) -> Any:
    """The transformers model of the shape's family, in fp32, with these weights."""
    model = _family(weights.shape)
    state = {
        _hf_name(name): weights.read(name).float() for name in tensors(weights.shape)
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= (
        {"lm_head.weight"} if weights.shape.tied_embeddings else set()
    )
    return model.eval()


def oracle_ids(model: Any, batch: Batch, new_tokens: int) -> list[list[int]]:
    """Greedy ids [B, N] by its own generation loop."""
    ids = model.generate(
        batch.ids_BT,
        attention_mask=_attention_mask(batch),
        do_sample=False,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        pad_token_id=0,
        eos_token_id=None,
    )
    new: list[list[int]] = ids[:, batch.length :].tolist()
    return new


@torch.inference_mode()
def oracle_logits(model: Any, batch: Batch) -> Tensor:
    """Logits [B, T, V]; what stands at padding means nothing."""
    mask = _attention_mask(batch)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits: Tensor = model(
        batch.ids_BT, attention_mask=mask, position_ids=positions
    ).logits
    return logits


def _attention_mask(batch: Batch) -> Tensor:
    return (torch.arange(batch.length) >= batch.pad_B[:, None]).long()


def _hf_name(name: str) -> str:
    path, leaf = name.rsplit(".", 1)
    if not path.startswith("layers."):
        return f"{_NAMES[path]}.{leaf}"
    _, layer, part = path.split(".", 2)
    return f"model.layers.{layer}.{_NAMES[part]}.{leaf}"


def _family(shape: ModelShape) -> Any:
    common = {
        "hidden_size": shape.dim,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.ffn_dim,
        "vocab_size": shape.vocab_size,
        "rms_norm_eps": shape.norm_eps,
        "max_position_embeddings": shape.max_seq_len,
        "tie_word_embeddings": shape.tied_embeddings,
        "rope_parameters": _rope(shape),
        "attn_implementation": "eager",
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if shape.qkv_bias:
        config = transformers.Qwen2Config(**common)
        return transformers.Qwen2ForCausalLM(config)
    if shape.sliding_window is not None:
        config = transformers.MistralConfig(
            **common, sliding_window=shape.sliding_window
        )
        return transformers.MistralForCausalLM(config)
    config = transformers.LlamaConfig(**common)
    return transformers.LlamaForCausalLM(config)


def _rope(shape: ModelShape) -> dict[str, Any]:
    scaling = shape.rope_scaling
    if scaling is None:
        return {"rope_type": "default", "rope_theta": shape.rope_theta}
    return {
        "rope_type": "llama3",
        "rope_theta": shape.rope_theta,
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_seq_len,
    }
