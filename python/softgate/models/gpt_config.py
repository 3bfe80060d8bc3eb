"""What tells one family of decoder-only models from another, and its config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from softgate import ops
from softgate.models.config_values import check_choice, check_integer, check_lossless, is_number
from softgate.nn.rope import RopeConfig

# Hugging Face's names of activations and ours.
ACTIVATIONS: dict[str, ops.Activation] = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
FULL, SLIDING = "full_attention", "sliding_attention"
_MAX_SIZE = 2**31 - 1
_MAX_LAYERS = 4096
_MAX_HEAD_DIM = 256


@dataclass(frozen=True, kw_only=True)
class GptConfig:
    """Sizes and switches of a decoder-only stack, named as in Hugging Face's config.json.

    The defaults of the switches are Llama's; `from_dict` sets those of the family that the
    dictionary names. `model_type` only says as which family `save` writes.

    num_key_value_heads: None is num_attention_heads. head_dim: None is
    hidden_size / num_attention_heads. norm: "rms" or "layer". gated: the feed-forward is
    `down(act(gate(x)) * up(x))`, else `down(act(up(x)))`. qk_norm: an RMS norm of each head of
    queries and keys. post_norms: norms after attention and feed-forward too, before the addition.
    parallel_residual: attention and feed-forward see the same input. query_pre_attn_scalar: scores
    are divided by its square root, None is head_dim. layer_types: "full_attention" or
    "sliding_attention" for each layer, which sees that token and sliding_window - 1 before it; None
    is sliding everywhere if there is a sliding_window. rope: None has learned positions instead.
    sliding_rope: that of sliding layers, None is the same.

    Raises ValueError that names the field whose value makes no sense.
    """

    model_type: str = "llama"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    hidden_act: str = "silu"
    gated: bool = True
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    qk_norm: bool = False
    post_norms: bool = False
    parallel_residual: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    scale_embeddings: bool = False
    query_pre_attn_scalar: float | None = None
    scale_attn_by_inverse_layer_idx: bool = False
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    sliding_window: int | None = None
    layer_types: tuple[str, ...] | None = None
    rope: RopeConfig | None = field(default_factory=RopeConfig)
    sliding_rope: RopeConfig | None = None
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.model_type not in FAMILIES:
            raise ValueError(
                f"config: model_type is {self.model_type!r}, expected one of {sorted(FAMILIES)}"
            )
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        for name in _SIZES:
            most = _MAX_LAYERS if name == "num_hidden_layers" else _MAX_SIZE
            check_integer(name, getattr(self, name), most)
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"config: hidden_size is {self.hidden_size}, expected a multiple of "
                    f"num_attention_heads, {self.num_attention_heads}, or a head_dim"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        check_integer("head_dim", self.head_dim, _MAX_HEAD_DIM)
        if self.query_pre_attn_scalar is None:
            object.__setattr__(self, "query_pre_attn_scalar", self.head_dim)
        if self.num_attention_heads % self.kv_heads:
            raise ValueError(
                f"config: num_attention_heads is {self.num_attention_heads}, expected a multiple "
                f"of num_key_value_heads, {self.kv_heads}"
            )
        check_choice("hidden_act", self.hidden_act, tuple(ACTIVATIONS))
        check_choice("norm", self.norm, ("layer", "rms"))
        for name in _SWITCHES:
            if type(getattr(self, name)) is not bool:
                raise ValueError(
                    f"config: {name} is {getattr(self, name)!r}, expected true or false"
                )
        if not is_number(self.norm_eps) or not 0 <= self.norm_eps <= 1:
            raise ValueError(f"config: norm_eps is {self.norm_eps!r}, expected 0 to 1")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not (is_number(value) and value > 0):
                raise ValueError(f"config: {name} is {value!r}, expected a number above 0")
        self._check_windows()
        self._check_tokens()

    def _check_windows(self) -> None:
        if self.sliding_window is not None:
            check_integer("sliding_window", self.sliding_window, _MAX_SIZE)
        if self.layer_types is None:
            kind = FULL if self.sliding_window is None else SLIDING
            object.__setattr__(self, "layer_types", (kind,) * self.num_hidden_layers)
        if not isinstance(self.layer_types, tuple) or len(self.kinds) != self.num_hidden_layers:
            raise ValueError(
                f"config: layer_types is {self.layer_types!r}, expected one for each of "
                f"{self.num_hidden_layers} layers"
            )
        for kind in self.kinds:
            check_choice("layer_types", kind, (FULL, SLIDING))
        if SLIDING in self.kinds and self.sliding_window is None:
            raise ValueError("config: sliding_window is missing, some layer_types are sliding")
        for name in ("rope", "sliding_rope"):
            if not isinstance(getattr(self, name), RopeConfig | None):
                raise ValueError(f"config: {name} is {getattr(self, name)!r}, expected RopeConfig")
        if self.sliding_rope is None:
            object.__setattr__(self, "sliding_rope", self.rope)
        if self.rope is None and self.sliding_rope is not None:
            raise ValueError("config: sliding_rope is there, but rope is not")

    def _check_tokens(self) -> None:
        for name, ids in (
            ("bos_token_id", () if self.bos_token_id is None else (self.bos_token_id,)),
            ("eos_token_ids", self.eos_token_ids),
        ):
            if not isinstance(ids, tuple) or not all(
                type(token) is int and 0 <= token < self.vocab_size for token in ids
            ):
                raise ValueError(
                    f"config: {name} is {getattr(self, name)!r}, expected token ids below "
                    f"vocab_size, {self.vocab_size}"
                )

    @property
    def kv_heads(self) -> int:
        """num_key_value_heads, filled in."""
        assert self.num_key_value_heads is not None
        return self.num_key_value_heads

    @property
    def head_size(self) -> int:
        """head_dim, filled in."""
        assert self.head_dim is not None
        return self.head_dim

    @property
    def kinds(self) -> tuple[str, ...]:
        """layer_types, filled in."""
        assert self.layer_types is not None
        return self.layer_types

    @property
    def max_length(self) -> int:
        """The most tokens a sequence may have: more than the trained ones with a "dynamic" rope."""
        if self.rope is not None and self.rope.rope_type == "dynamic":
            return int(self.max_position_embeddings * (self.rope.factor or 1))
        return self.max_position_embeddings

    def ropes(self) -> dict[str, RopeConfig]:
        """The rotary embeddings of each kind of layer; none with learned positions."""
        ropes = {FULL: self.rope, SLIDING: self.sliding_rope}
        return {kind: rope for kind, rope in ropes.items() if rope and kind in self.kinds}

    def attention_scale(self, index: int) -> float:
        """What a layer's scores are multiplied by."""
        scale = 1 / math.sqrt(self.query_pre_attn_scalar or self.head_size)
        return scale / (index + 1) if self.scale_attn_by_inverse_layer_idx else scale

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> GptConfig:
        """Read config.json. The sizes must be there; the rest has Hugging Face's defaults.

        Raises ValueError for a model_type that softgate does not know, what is missing, what makes
        no sense, and what softgate does not compute.
        """
        model_type = config.get("model_type")
        if not isinstance(model_type, str) or model_type not in FAMILIES:
            raise ValueError(
                f"config: model_type is {model_type!r}, expected one of {sorted(FAMILIES)}"
            )
        family = FAMILIES[model_type]
        missing = [
            theirs
            for theirs, default in family.keys.values()
            if default is _REQUIRED and theirs not in config
        ]
        if missing:
            raise ValueError(f"config: {', '.join(missing)} missing")
        for name, value in family.only.items():
            if config.get(name, value) not in (value, None):
                raise ValueError(f"config: {name} is {config[name]!r}, expected {value!r}")
        values: dict[str, Any] = {
            ours: config.get(theirs, default) for ours, (theirs, default) in family.keys.items()
        }
        values |= family.traits
        values["rope"], values["sliding_rope"] = _read_ropes(family, config)
        values |= _read_windows(family, config)
        eos = config.get("eos_token_id")
        values["eos_token_ids"] = tuple(eos) if isinstance(eos, list) else _as_tuple(eos)
        values["bos_token_id"] = config.get("bos_token_id")
        if model_type == "gpt2":
            if values["intermediate_size"] is None:
                values["intermediate_size"] = 4 * values["hidden_size"]
            if config.get("scale_attn_weights", True) is False:
                values["query_pre_attn_scalar"] = 1.0
        if model_type == "gemma" and values["hidden_act"] == "gelu":
            values["hidden_act"] = "gelu_pytorch_tanh"  # what the first files meant
        return cls(model_type=model_type, **values)

    def to_dict(self) -> dict[str, Any]:
        """The config.json of the family that model_type names.

        Raises ValueError when the family has no way to say what this config does.
        """
        family = FAMILIES[self.model_type]
        config: dict[str, Any] = {
            theirs: getattr(self, ours) for ours, (theirs, _) in family.keys.items()
        }
        config |= {
            "model_type": self.model_type,
            "architectures": [family.architecture],
            "pad_token_id": None,  # nothing is padded, and defaults may lie outside the vocabulary
            "bos_token_id": self.bos_token_id,
            "eos_token_id": (
                self.eos_token_ids[0]
                if len(self.eos_token_ids) == 1
                else list(self.eos_token_ids) or None
            ),
        }
        if self.model_type == "gpt2":
            config["scale_attn_weights"] = self.query_pre_attn_scalar == self.head_dim
        config |= _write_ropes(family, self) | _write_windows(family, self)
        check_lossless(self, GptConfig.from_dict(config))
        return config


@dataclass(frozen=True)
class Family:
    """One of Hugging Face's model types.

    architecture: its class there. keys: our field to its key and default in config.json. traits:
    fields that no config.json of the family changes. only: keys with the one value that softgate
    computes. windows: which layers slide, "none", "all", "types" (layer_types, with a period) or
    "qwen". theta: the key of the rotary base, and the default.
    """

    architecture: str
    keys: Mapping[str, tuple[str, Any]]
    traits: Mapping[str, Any]
    only: Mapping[str, Any] = field(default_factory=dict)
    windows: Literal["none", "all", "types", "qwen"] = "none"
    period: int = 1
    theta: tuple[str, float] = ("rope_theta", 10000.0)
    partial: tuple[str, float] = ("partial_rotary_factor", 1.0)
    local_theta: tuple[str, float] | None = None


_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings",
)  # fmt: skip
_SWITCHES = (
    "gated", "qk_norm", "post_norms", "parallel_residual", "qkv_bias", "output_bias", "mlp_bias",
    "scale_embeddings", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings",
)  # fmt: skip
_POSITIVE = ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping")
_REQUIRED = object()


def _keys(**changed: Any) -> dict[str, tuple[str, Any]]:
    """Keys of Llama's descendants; a value for a field is its default, a pair its key too."""
    keys: dict[str, Any] = dict.fromkeys(_SIZES, _REQUIRED) | {
        "num_key_value_heads": None,
        "head_dim": None,
        "hidden_act": "silu",
        "norm_eps": ("rms_norm_eps", 1e-6),
        "tie_word_embeddings": False,
    }
    pairs = (keys | changed).items()
    return {name: v if isinstance(v, tuple) else (name, v) for name, v in pairs}


_ATTENTION_BIAS = {
    "qkv_bias": ("attention_bias", False),
    "output_bias": ("attention_bias", False),
}
_LAYER_NORM = {"norm": "layer", "gated": False}
_GEMMA = _keys(hidden_act="gelu_pytorch_tanh", tie_word_embeddings=True, **_ATTENTION_BIAS)
_GEMMA_2 = _GEMMA | {
    "hidden_act": ("hidden_activation", "gelu_pytorch_tanh"),
    "query_pre_attn_scalar": ("query_pre_attn_scalar", 256),
}
_CAUSAL = {"use_bidirectional_attention": False}

FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        "GPT2LMHeadModel",
        {
            "vocab_size": ("vocab_size", _REQUIRED),
            "hidden_size": ("n_embd", _REQUIRED),
            "num_hidden_layers": ("n_layer", _REQUIRED),
            "num_attention_heads": ("n_head", _REQUIRED),
            "max_position_embeddings": ("n_positions", _REQUIRED),
            "intermediate_size": ("n_inner", None),
            "hidden_act": ("activation_function", "gelu_new"),
            "norm_eps": ("layer_norm_epsilon", 1e-5),
            "scale_attn_by_inverse_layer_idx": ("scale_attn_by_inverse_layer_idx", False),
            "tie_word_embeddings": ("tie_word_embeddings", True),
        },
        _LAYER_NORM | {"qkv_bias": True, "output_bias": True, "mlp_bias": True},
        {"add_cross_attention": False},
        theta=("", 0.0),
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        {name: (name, _REQUIRED) for name in _SIZES if name != "num_key_value_heads"}
        | {
            "hidden_act": ("hidden_act", "gelu"),
            "norm_eps": ("layer_norm_eps", 1e-5),
            "parallel_residual": ("use_parallel_residual", True),
            "qkv_bias": ("attention_bias", True),
            "output_bias": ("attention_bias", True),
            "tie_word_embeddings": ("tie_word_embeddings", False),
        },
        _LAYER_NORM | {"mlp_bias": True},
        theta=("rotary_emb_base", 10000.0),
        partial=("rotary_pct", 0.25),
    ),
    "llama": Family("LlamaForCausalLM", _keys(mlp_bias=False, **_ATTENTION_BIAS), {}),
    "mistral": Family(
        "MistralForCausalLM", _keys(num_key_value_heads=8, sliding_window=4096), {}, windows="all"
    ),
    "qwen2": Family("Qwen2ForCausalLM", _keys(), {"qkv_bias": True}, windows="qwen"),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        _keys(head_dim=128, **_ATTENTION_BIAS),
        {"qk_norm": True},
        windows="qwen",
    ),
    "gemma": Family(
        "GemmaForCausalLM",
        _GEMMA | {"head_dim": ("head_dim", 256)},
        {"scale_embeddings": True},
        _CAUSAL,
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        _GEMMA_2
        | {
            "head_dim": ("head_dim", 256),
            "attn_logit_softcapping": ("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": ("final_logit_softcapping", 30.0),
            "sliding_window": ("sliding_window", 4096),
        },
        {"scale_embeddings": True, "post_norms": True},
        _CAUSAL,
        windows="types",
        period=2,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        _GEMMA_2
        | {
            "head_dim": ("head_dim", 256),
            "final_logit_softcapping": ("final_logit_softcapping", None),
            "sliding_window": ("sliding_window", 4096),
        },
        {"scale_embeddings": True, "post_norms": True, "qk_norm": True},
        # Hugging Face has the key and computes without it.
        _CAUSAL | {"attn_logit_softcapping": None},
        windows="types",
        period=6,
        theta=("rope_theta", 1_000_000.0),
        local_theta=("rope_local_base_freq", 10_000.0),
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        _keys(norm_eps=("rms_norm_eps", 1e-5), sliding_window=None),
        {},
        windows="all",
    ),
}


def _read_ropes(
    family: Family, config: Mapping[str, Any]
) -> tuple[RopeConfig | None, RopeConfig | None]:
    """The rotary embeddings of full and sliding layers, from old and new keys.

    Files say rope_theta and rope_scaling, or rope_parameters with all in one, or one for each kind
    of layer.
    """
    if not family.theta[0]:
        return None, None
    found = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(found, dict):
        raise ValueError(f"config: rope parameters are {found!r}, expected an object")
    if not found.keys() & {FULL, SLIDING}:
        found = {FULL: found}
    base = {
        "rope_theta": _get(config, *family.theta),
        "partial_rotary_factor": _get(config, *family.partial),
    }
    rope = _read_rope(family, config, base, found.get(FULL) or {})
    if family.local_theta is None:
        return rope, None
    base = {"rope_theta": _get(config, *family.local_theta)}
    return rope, _read_rope(family, config, base, found.get(SLIDING) or {})


def _get(config: Mapping[str, Any], key: str, default: float) -> Any:
    value = config.get(key)
    return default if value is None else value


def _read_rope(
    family: Family, config: Mapping[str, Any], base: Mapping[str, Any], found: Mapping[str, Any]
) -> RopeConfig:
    if not isinstance(found, dict):
        raise ValueError(f"config: rope parameters are {found!r}, expected an object")
    parameters = {**base, **found}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if family.architecture == "Phi3ForCausalLM" and kind in ("su", "yarn"):
        kind = "longrope"  # its earlier names
    parameters["rope_type"] = kind
    if kind in ("llama3", "yarn", "longrope"):
        key = "original_max_position_embeddings"
        parameters[key] = (
            config.get(key) or parameters.get(key) or config.get("max_position_embeddings")
        )
    return RopeConfig.from_dict(parameters)


def _write_ropes(family: Family, config: GptConfig) -> dict[str, Any]:
    """Old and new keys, so that every version of transformers understands them."""
    rope, sliding = config.rope, config.sliding_rope
    if not family.theta[0] or rope is None or sliding is None:
        return {}
    parameters: dict[str, Any] = rope.to_dict()
    written: dict[str, Any] = {
        family.theta[0]: rope.rope_theta,
        family.partial[0]: rope.partial_rotary_factor,
        "rope_parameters": parameters,
    }
    if rope.rope_type != "default":
        written["rope_scaling"] = parameters
    if rope.original_max_position_embeddings is not None:
        key = "original_max_position_embeddings"
        written[key] = rope.original_max_position_embeddings
    if family.local_theta is not None:
        written["rope_parameters"] = {FULL: parameters, SLIDING: sliding.to_dict()}
        written[family.local_theta[0]] = sliding.rope_theta
    return written


def _read_windows(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """layer_types, and where a switch turns it off, sliding_window."""
    if family.windows in ("none", "all"):
        return {}
    kinds = config.get("layer_types")
    values: dict[str, Any] = {}
    layers = config["num_hidden_layers"]
    indices = range(layers) if type(layers) is int and layers <= _MAX_LAYERS else ()
    if family.windows == "qwen":
        on = config.get("use_sliding_window", False)
        values["sliding_window"] = config.get("sliding_window", 4096) if on else None
        first = config.get("max_window_layers", 28) if on else _MAX_LAYERS
        check_integer("max_window_layers", first, _MAX_SIZE, least=0)
        default = [SLIDING if i >= first else FULL for i in indices]
    else:
        period = config.get("sliding_window_pattern", family.period)
        check_integer("sliding_window_pattern", period, _MAX_SIZE)
        default = [SLIDING if (i + 1) % period else FULL for i in indices]
    kinds = default if kinds is None else kinds
    values["layer_types"] = tuple(kinds) if isinstance(kinds, list) else kinds
    return values


def _write_windows(family: Family, config: GptConfig) -> dict[str, Any]:
    if family.windows in ("none", "all"):
        return {}
    written: dict[str, Any] = {"layer_types": list(config.kinds)}
    if family.windows == "qwen":
        written["use_sliding_window"] = config.sliding_window is not None
        written["sliding_window"] = config.sliding_window
        written["max_window_layers"] = (*config.kinds, SLIDING).index(SLIDING)
    return written


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return () if value is None else (value,)
