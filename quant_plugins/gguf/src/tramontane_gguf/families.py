"""What differs from one ``general.architecture`` to the next: one row each.

A row says which Hugging Face class the weights belong to, how tensor roles are called there, which
rows were rearranged by the converter, and which configuration values lie under other keys. Rows
that came from elsewhere: an architecture class may carry its own (see `family_of`).
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import attrs
from attrs import field, frozen

from tramontane.errors import ConfigError, PluginError
from tramontane.hooks import plugin_manager

STANDARD: dict[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_sinks": "self_attn.sinks",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
    "exp_probs_b": "mlp.gate.e_score_correction_bias",
}
"""Tensor role of GGUF → module of Hugging Face; beyond the first three, within a layer."""

BARE = {
    "attn_sinks": ".weight",
    "exp_probs_b": ".bias",
    "ssm_a": "",
    "ssm_d": "",
    "ssm_dt": ".bias",
}
"""Roles that are a parameter themselves, and what follows them in GGUF: nothing follows their
Hugging Face name."""


@frozen(kw_only=True)
class Family:
    """One value of ``general.architecture``.

    Attributes:
        name: that value.
        architecture: entry of ``architectures`` in ``config.json``.
        moe_architecture: the same when ``expert_count`` is above zero; empty for no change.
        model_type: ``model_type`` of ``config.json``.
        moe_model_type: the same when ``expert_count`` is above zero; empty for no change.
        roles: differences from `STANDARD`.
        moe_roles: further differences when there are experts.
        interleaved: the converter rearranged the rows of q and k for rotation of adjacent pairs;
            they are put back.
        norm_plus_one: the converter added 1 to norm weights; it is taken away.
        split_qkv: a fused ``attn_qkv`` is three modules, ``q_proj``, ``k_proj``, ``v_proj``.
        hidden_act: ``hidden_act`` of ``config.json``; GGUF does not state activations.
        norm_eps: configuration key of the norms' epsilon.
        bias: configuration key that says whether q, k and v have biases.
        fields: further configuration keys → metadata keys, without the architecture's prefix.
        constants: configuration values that the file does not state.
        rope_constants: the same for ``rope_scaling`` of type yarn.
    """

    name: str
    architecture: str
    moe_architecture: str = ""
    model_type: str = ""
    moe_model_type: str = ""
    roles: Mapping[str, str] = field(factory=dict)
    moe_roles: Mapping[str, str] = field(factory=dict)
    interleaved: bool = False
    norm_plus_one: bool = False
    split_qkv: bool = False
    hidden_act: str = "silu"
    norm_eps: str = "rms_norm_eps"
    bias: str = "attention_bias"
    fields: Mapping[str, str] = field(factory=dict)
    constants: Mapping[str, Any] = field(factory=dict)
    rope_constants: Mapping[str, Any] = field(factory=dict)

    def role_names(self, moe: bool) -> dict[str, str]:
        """Every role → module, for a model with or without experts."""
        return {**STANDARD, **self.roles, **(self.moe_roles if moe else {})}


_MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.w1",
    "ffn_down_exps": "block_sparse_moe.experts.w2",
    "ffn_up_exps": "block_sparse_moe.experts.w3",
    # Files from before 2024-04 hold expert N as ffn_gate.N and so on.
    "ffn_gate": "block_sparse_moe.experts.w1",
    "ffn_down": "block_sparse_moe.experts.w2",
    "ffn_up": "block_sparse_moe.experts.w3",
}
_SANDWICH = {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_POST_NORM = {"post_attention_norm": "post_attention_layernorm"}
_SHARED_EXPERT = {
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
}
_EXPERTS = {
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}
_LOCAL_EXPERTS = {
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
}
_DEEPSEEK_EXPERTS = {
    "n_routed_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "n_shared_experts": "expert_shared_count",
    "first_k_dense_replace": "leading_dense_block_count",
    "routed_scaling_factor": "expert_weights_scale",
    "norm_topk_prob": "expert_weights_norm",
}
_GRANITE_SCALES = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
_MAMBA = {
    "ssm_in": "mamba.in_proj",
    "ssm_conv1d": "mamba.conv1d",
    "ssm_dt": "mamba.dt_bias",
    "ssm_a": "mamba.A_log",
    "ssm_d": "mamba.D",
    "ssm_norm": "mamba.norm",
    "ssm_out": "mamba.out_proj",
}
_SHARED_MLP = {
    "ffn_gate": "shared_mlp.gate_proj",
    "ffn_up": "shared_mlp.up_proj",
    "ffn_down": "shared_mlp.output_linear",
}
_SHARED_MLP_BESIDE_EXPERTS = {
    **{role: STANDARD[role] for role in _SHARED_MLP},
    **{f"{role}_shexp": module for role, module in _SHARED_MLP.items()},
    "ffn_gate_inp": "block_sparse_moe.router.layer",
    "ffn_gate_exps": "block_sparse_moe.experts.gate_proj",
    "ffn_up_exps": "block_sparse_moe.experts.up_proj",
    "ffn_down_exps": "block_sparse_moe.experts.down_proj",
}
_LFM2_ROLES = {
    "token_embd_norm": "model.embedding_norm",
    "attn_norm": "operator_norm",
    "attn_output": "self_attn.out_proj",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_down": "feed_forward.w2",
    "ffn_up": "feed_forward.w3",
    "ffn_gate_inp": "feed_forward.gate",
    "ffn_gate_exps": "feed_forward.experts.w1",
    "ffn_down_exps": "feed_forward.experts.w2",
    "ffn_up_exps": "feed_forward.experts.w3",
    "exp_probs_b": "feed_forward.expert_bias",
    "shortconv.conv": "conv.conv",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.out_proj": "conv.out_proj",
}
_HUNYUAN_NORMS = {
    "attn_q_norm": "self_attn.query_layernorm",
    "attn_k_norm": "self_attn.key_layernorm",
}

_ROWS = (
    Family(name="llama", architecture="LlamaForCausalLM", moe_architecture="MixtralForCausalLM",
           model_type="llama", moe_model_type="mixtral", moe_roles=_MIXTRAL, interleaved=True,
           fields=_LOCAL_EXPERTS),
    Family(name="mistral3", architecture="MistralForCausalLM",
           moe_architecture="MixtralForCausalLM", model_type="mistral",
           moe_model_type="mixtral", moe_roles=_MIXTRAL, interleaved=True,
           fields=_LOCAL_EXPERTS),
    Family(name="smollm3", architecture="SmolLM3ForCausalLM", model_type="smollm3",
           interleaved=True,
           # The file does not say it; llama.cpp too takes every fourth layer without rotation.
           constants={"no_rope_layer_interval": 4}),
    # Granite 4 whose layers are all attention, and Granite 3, which computes the same.
    Family(name="granite", architecture="GraniteMoeHybridForCausalLM",
           model_type="granitemoehybrid", interleaved=True, roles=_SHARED_MLP,
           fields=_GRANITE_SCALES),
    Family(name="granitehybrid", architecture="GraniteMoeHybridForCausalLM",
           model_type="granitemoehybrid", interleaved=True, roles=_MAMBA | _SHARED_MLP,
           moe_roles=_SHARED_MLP_BESIDE_EXPERTS, fields=_GRANITE_SCALES | _LOCAL_EXPERTS),
    # Attention in all layers, and a shared MLP beside the experts.
    Family(name="granitemoe", architecture="GraniteMoeHybridForCausalLM",
           model_type="granitemoehybrid", interleaved=True, fields=_GRANITE_SCALES | _LOCAL_EXPERTS,
           roles=_SHARED_MLP_BESIDE_EXPERTS),
    Family(name="qwen2", architecture="Qwen2ForCausalLM", model_type="qwen2"),
    Family(name="qwen2moe", architecture="Qwen2MoeForCausalLM", model_type="qwen2_moe",
           roles=_SHARED_EXPERT,
           fields=_EXPERTS | {
               "shared_expert_intermediate_size": "expert_shared_feed_forward_length"}),
    Family(name="qwen3", architecture="Qwen3ForCausalLM", model_type="qwen3"),
    Family(name="qwen3moe", architecture="Qwen3MoeForCausalLM", model_type="qwen3_moe",
           fields=_EXPERTS, constants={"norm_topk_prob": True}),
    Family(name="phi2", architecture="PhiForCausalLM", model_type="phi", split_qkv=True,
           norm_eps="layer_norm_eps", hidden_act="gelu_new",
           constants={"partial_rotary_factor": 1.0},
           roles={"output_norm": "model.final_layernorm", "attn_output": "self_attn.dense",
                  "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"}),
    Family(name="phi3", architecture="Phi3ForCausalLM", model_type="phi3",
           roles={"ffn_up": "mlp.gate_up_proj"}),
    Family(name="phimoe", architecture="PhiMoEForCausalLM", model_type="phimoe",
           fields=_LOCAL_EXPERTS, moe_roles=_MIXTRAL),
    Family(name="starcoder2", architecture="Starcoder2ForCausalLM", model_type="starcoder2",
           norm_eps="norm_epsilon", bias="use_bias", hidden_act="gelu_pytorch_tanh",
           roles={"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}),
    Family(name="gemma", architecture="GemmaForCausalLM", model_type="gemma", norm_plus_one=True,
           hidden_act="gelu_pytorch_tanh"),
    Family(name="gemma2", architecture="Gemma2ForCausalLM", model_type="gemma2",
           norm_plus_one=True, roles=_SANDWICH,
           fields={"attn_logit_softcapping": "attn_logit_softcapping",
                   "final_logit_softcapping": "final_logit_softcapping"},
           hidden_act="gelu_pytorch_tanh", constants={"sliding_window": 4096}),
    Family(name="gemma3", architecture="Gemma3ForCausalLM", model_type="gemma3_text",
           norm_plus_one=True, roles=_SANDWICH,
           fields={"final_logit_softcapping": "final_logit_softcapping",
                   "rope_local_base_freq": "rope.freq_base_swa"},
           hidden_act="gelu_pytorch_tanh"),
    Family(name="deepseek2", architecture="DeepseekV2ForCausalLM", model_type="deepseek_v2",
           roles={"attn_q_a": "self_attn.q_a_proj", "attn_q_a_norm": "self_attn.q_a_layernorm",
                  "attn_q_b": "self_attn.q_b_proj",
                  "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
                  "attn_kv_a_norm": "self_attn.kv_a_layernorm",
                  "attn_kv_b": "self_attn.kv_b_proj",
                  "attn_k_b": "self_attn.k_b_proj", "attn_v_b": "self_attn.v_b_proj"},
           fields=_DEEPSEEK_EXPERTS | {"kv_lora_rank": "attention.kv_lora_rank",
                                       "qk_rope_head_dim": "rope.dimension_count"}),
    Family(name="glm4", architecture="Glm4ForCausalLM", model_type="glm4",
           constants={"partial_rotary_factor": 1.0},
           roles={"post_attention_norm": "post_self_attn_layernorm",
                  "post_ffw_norm": "post_mlp_layernorm", "ffn_up": "mlp.gate_up_proj"}),
    Family(name="glm4moe", architecture="Glm4MoeForCausalLM", model_type="glm4_moe",
           roles=_POST_NORM, fields=_DEEPSEEK_EXPERTS),
    Family(name="gpt-oss", architecture="GptOssForCausalLM", model_type="gpt_oss",
           roles=_POST_NORM | {"ffn_gate_inp": "mlp.router"},
           fields=_LOCAL_EXPERTS | {"intermediate_size": "expert_feed_forward_length"},
           # llama.cpp truncates nonetheless.
           rope_constants={"truncate": False}),
    Family(name="hunyuan-dense", architecture="HunYuanDenseV1ForCausalLM",
           model_type="hunyuan_v1_dense", roles=_HUNYUAN_NORMS),
    Family(name="hunyuan-moe", architecture="HunYuanMoEV1ForCausalLM",
           model_type="hunyuan_v1_moe",
           roles=_HUNYUAN_NORMS | {"ffn_gate_inp": "mlp.gate.wg",
                                   "ffn_gate_shexp": "mlp.shared_mlp.gate_proj",
                                   "ffn_up_shexp": "mlp.shared_mlp.up_proj",
                                   "ffn_down_shexp": "mlp.shared_mlp.down_proj"},
           fields=_EXPERTS),
    Family(name="lfm2", architecture="Lfm2ForCausalLM", model_type="lfm2", roles=_LFM2_ROLES,
           norm_eps="norm_eps", fields={"conv_L_cache": "shortconv.l_cache"}),
    Family(name="lfm2moe", architecture="Lfm2MoeForCausalLM", model_type="lfm2_moe",
           roles=_LFM2_ROLES, norm_eps="norm_eps",
           fields=_EXPERTS | {"conv_L_cache": "shortconv.l_cache",
                              "num_dense_layers": "leading_dense_block_count"}),
)  # fmt: skip

FAMILIES: dict[str, Family] = {row.name: row for row in _ROWS}


def family_of(name: str) -> Family:
    """The row for a value of ``general.architecture``.

    An installed architecture that lists ``name`` in its ``gguf_names`` and carries a mapping
    ``GGUF`` (fields of `Family`, all optional) overrides the built-in row.

    Raises:
        ConfigError: nobody knows the name; the message lists what is known.
        PluginError: an architecture's ``GGUF`` has fields that do not exist.
    """
    manager = plugin_manager()
    spec = manager.find("architectures", f"gguf:{name}")
    if spec is not None:
        given = getattr(manager.resolve(spec), "GGUF", None)
        if given is not None:
            base: dict[str, Any] = {"architecture": (*spec.hf_names, spec.name)[0]}
            try:
                return Family(**{**base, **given, "name": name})
            except TypeError as cause:
                known = ", ".join(a.name for a in attrs.fields(Family))
                raise PluginError(f"GGUF of {spec.target} may hold {known}: {cause}") from cause
    if name in FAMILIES:
        return FAMILIES[name]
    near = get_close_matches(name, FAMILIES, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ConfigError(
        f"unknown GGUF architecture {name!r}{hint}; known are {', '.join(sorted(FAMILIES))}. "
        f"A plug-in can add one: give its ArchitectureSpec gguf_names=({name!r},) and its class "
        f"a GGUF mapping"
    )
