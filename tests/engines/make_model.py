# SPDX-License-Identifier: Apache-2.0
"""Writes folders with seeded weights: make_model.py FOLDER/model-{tiny,small,0.5b,mla,hybrid} or
FOLDER/lora-{a,b}, adapters for model-tiny.

The scale of the weights matters. With an engine's own dummy weights the logits are flat, and
outputs stay the same even when every block of KV is wrong; with these one wrong block changes
the tokens.
"""

import json
import os
import sys

import torch
from safetensors.torch import save_file

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
         "vocab_size": 32000, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
         "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "float32",
         "bos_token_id": 1, "eos_token_id": 2}
CONFIGS = {
    "tiny": {**LLAMA, "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
             "num_hidden_layers": 4, "intermediate_size": 352, "head_dim": 32},
    "small": {**LLAMA, "hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4,
              "num_hidden_layers": 8, "intermediate_size": 1408, "head_dim": 64},
    # As wide and deep as Qwen2.5-0.5B, with fewer tokens: as much KV per computation as a real one.
    "0.5b": {**LLAMA, "hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2,
             "num_hidden_layers": 24, "intermediate_size": 4864, "head_dim": 64},
    "mla": {"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
            "hidden_act": "silu", "vocab_size": 32000, "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_size": 256,
            "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 3,
            "intermediate_size": 512, "q_lora_rank": None, "kv_lora_rank": 512,
            "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
            "n_routed_experts": 2, "first_k_dense_replace": 3, "moe_layer_freq": 1,
            "moe_intermediate_size": 256, "n_shared_experts": 1, "tie_word_embeddings": False,
            "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2},
    "hybrid": {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text",
               "vocab_size": 32000, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
               "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "hidden_size": 128,
               "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 6,
               "intermediate_size": 352, "head_dim": 32, "sliding_window": 128,
               "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 32,
               "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
               "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2},
}


def names_and_shapes(c):
    """(name, shape, scale) of every weight."""
    h, v, f = c["hidden_size"], c["vocab_size"], c["intermediate_size"]
    mla, gemma = "kv_lora_rank" in c, c["model_type"] == "gemma3_text"
    # Gemma's output is tied to its embeddings: large ones would only repeat the last token.
    yield "model.embed_tokens.weight", (v, h), 0.05 if gemma else 1.0
    yield "model.norm.weight", (h,), None
    if not gemma:
        yield "lm_head.weight", (v, h), h ** -0.5
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        n_heads = c["num_attention_heads"]
        if mla:
            nope, rope = c["qk_nope_head_dim"], c["qk_rope_head_dim"]
            rank, value = c["kv_lora_rank"], c["v_head_dim"]
            attn = [("q_proj", (n_heads * (nope + rope), h), 2 * h ** -0.5),
                    ("kv_a_proj_with_mqa", (rank + rope, h), 2 * h ** -0.5),
                    ("kv_b_proj", (n_heads * (nope + value), rank), 2 * rank ** -0.5),
                    ("o_proj", (h, n_heads * value), 2 * h ** -0.5)]
            yield layer + "self_attn.kv_a_layernorm.weight", (rank,), None
        else:
            d, n_kv = c["head_dim"], c["num_key_value_heads"]
            attn = [("q_proj", (n_heads * d, h), 2 * h ** -0.5),
                    ("k_proj", (n_kv * d, h), 2 * h ** -0.5),
                    ("v_proj", (n_kv * d, h), h ** -0.5),
                    ("o_proj", (h, n_heads * d), 2 * h ** -0.5)]
        for name, shape, scale in attn:
            yield layer + f"self_attn.{name}.weight", shape, scale
        for name, shape in (("gate_proj", (f, h)), ("up_proj", (f, h)), ("down_proj", (h, f))):
            yield layer + f"mlp.{name}.weight", shape, shape[1] ** -0.5
        norms = ["input_layernorm", "post_attention_layernorm"]
        if gemma:
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
            for name in ("q_norm", "k_norm"):
                yield layer + f"self_attn.{name}.weight", (c["head_dim"],), None
        for name in norms:
            yield layer + name + ".weight", (h,), None


def write_model(folder):
    config = CONFIGS[os.path.basename(folder).split("-", 1)[1]]
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w", encoding="ascii") as file:
        json.dump(config, file, indent=1)
    dtype = getattr(torch, config["torch_dtype"])
    norm = 0.0 if config["model_type"] == "gemma3_text" else 1.0  # Gemma's norms add one
    source = torch.Generator().manual_seed(20261123)
    weights = {}
    for name, shape, scale in names_and_shapes(config):
        if scale is None:
            weights[name] = torch.full(shape, norm, dtype=dtype)
        else:
            weights[name] = (torch.randn(shape, generator=source) * scale).to(dtype)
    save_file(weights, os.path.join(folder, "model.safetensors"))


def write_adapter(folder):
    """Two adapters differ in their weights alone."""
    config, rank = CONFIGS["tiny"], 8
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "adapter_config.json"), "w", encoding="ascii") as file:
        json.dump({"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none",
                   "target_modules": ["k_proj", "v_proj"]}, file)
    source = torch.Generator().manual_seed(ord(folder[-1]))
    h, out = config["hidden_size"], config["head_dim"] * config["num_key_value_heads"]
    weights = {}
    for i in range(config["num_hidden_layers"]):
        for name in ("k_proj", "v_proj"):
            layer = f"base_model.model.model.layers.{i}.self_attn.{name}."
            weights[layer + "lora_A.weight"] = torch.randn((rank, h), generator=source) * h ** -0.5
            weights[layer + "lora_B.weight"] = torch.randn((out, rank), generator=source) * 0.3
    save_file(weights, os.path.join(folder, "adapter_model.safetensors"))


if __name__ == "__main__":
    target = os.path.abspath(sys.argv[1])
    (write_adapter if os.path.basename(target).startswith("lora-") else write_model)(target)
