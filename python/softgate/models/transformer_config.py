"""What tells one Transformer encoder-decoder from another, and its config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from softgate.models.config_values import check_choice, check_integer, check_lossless, is_number
from softgate.models.gpt_config import ACTIVATIONS

_MAX_SIZE = 2**31 - 1
_MAX_LAYERS = 4096
_MAX_HEAD_DIM = 256
_ANY_LENGTH = 1 << 20  # of models whose positions are relative

OWN = "softgate_transformer"


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes and switches of an encoder-decoder. The defaults are the original Transformer's
    (Vaswani et al. 2017); `from_dict` sets those of the family that the dictionary names, and
    `model_type` only says as which family `save` writes.

    vocab_size: of targets. source_vocab_size: None has sources share the targets' embedding.
    head_dim: None is hidden_size over a side's heads. positions: "sinusoidal", or with all
    sines before the cosines "sinusoidal_halves" (Marian), "learned", from the row position_offset
    on, or "relative" (T5), by relative_attention_num_buckets of distances up to
    relative_attention_max_distance. pre_norm: norms come before attention and feed-forward, not
    after the addition. embedding_norm: one after the embedding; final_norm: one after the last
    layer. norm: "layer" or "rms". gated: the feed-forward is `down(act(gate(x)) * up(x))`. bias: of
    products. scale_embedding: embeddings are multiplied by sqrt(hidden_size). scale_attention:
    scores are divided by sqrt(head_dim). scale_output: states are divided by sqrt(hidden_size)
    before the last product, which has a bias if output_bias.

    decoder_start_token_id begins a target, eos_token_ids end it.

    Raises ValueError that names the field whose value makes no sense.
    """

    model_type: str = OWN
    vocab_size: int
    source_vocab_size: int | None = None
    hidden_size: int = 512
    encoder_layers: int = 6
    decoder_layers: int = 6
    encoder_attention_heads: int = 8
    decoder_attention_heads: int = 8
    head_dim: int | None = None
    encoder_ffn_dim: int = 2048
    decoder_ffn_dim: int = 2048
    max_position_embeddings: int = 1024
    positions: Literal["sinusoidal", "sinusoidal_halves", "learned", "relative"] = "sinusoidal"
    position_offset: int = 0
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    activation: str = "relu"
    gated: bool = False
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-5
    pre_norm: bool = False
    embedding_norm: bool = False
    final_norm: bool = False
    bias: bool = True
    scale_embedding: bool = True
    scale_attention: bool = True
    scale_output: bool = False
    tie_word_embeddings: bool = True
    output_bias: bool = False
    decoder_start_token_id: int = 2
    eos_token_ids: tuple[int, ...] = (3,)

    def __post_init__(self) -> None:
        check_choice("model_type", self.model_type, (OWN, *FAMILIES))
        for name in _SIZES:
            most = _MAX_LAYERS if name.endswith("_layers") else _MAX_SIZE
            check_integer(name, getattr(self, name), most)
        check_integer("position_offset", self.position_offset, _MAX_SIZE, least=0)
        if self.source_vocab_size is not None:
            check_integer("source_vocab_size", self.source_vocab_size, _MAX_SIZE)
        for name in ("encoder_attention_heads", "decoder_attention_heads"):
            heads = getattr(self, name)
            if self.head_dim is None and self.hidden_size % heads:
                raise ValueError(
                    f"config: hidden_size is {self.hidden_size}, expected a multiple of {name}, "
                    f"{heads}, or a head_dim"
                )
            check_integer("head_dim", self.head_size(heads), _MAX_HEAD_DIM)
        check_choice(
            "positions", self.positions, ("sinusoidal", "sinusoidal_halves", "learned", "relative")
        )
        if self.positions == "relative":
            buckets, reach = (
                self.relative_attention_num_buckets, self.relative_attention_max_distance,
            )  # fmt: skip
            if buckets % 4 or reach <= buckets // 2:
                raise ValueError(
                    f"config: relative_attention_num_buckets is {buckets} and "
                    f"relative_attention_max_distance {reach}, expected a multiple of 4 and more "
                    "than half of it"
                )
            check_integer("relative_attention_max_distance", reach, _ANY_LENGTH)
        check_choice("activation", self.activation, tuple(ACTIVATIONS))
        check_choice("norm", self.norm, ("layer", "rms"))
        for name in _SWITCHES:
            if type(getattr(self, name)) is not bool:
                raise ValueError(
                    f"config: {name} is {getattr(self, name)!r}, expected true or false"
                )
        if not is_number(self.norm_eps) or not 0 <= self.norm_eps <= 1:
            raise ValueError(f"config: norm_eps is {self.norm_eps!r}, expected 0 to 1")
        if self.norm == "rms" and not self.pre_norm:
            raise ValueError("config: norm is 'rms', expected pre_norm with it")
        if self.scale_output and not self.final_norm:
            raise ValueError("config: scale_output is true, expected final_norm with it")
        if not isinstance(self.eos_token_ids, tuple):
            raise ValueError(f"config: eos_token_ids is {self.eos_token_ids!r}, expected a tuple")
        ids = {"eos_token_ids": self.eos_token_ids}
        ids["decoder_start_token_id"] = (self.decoder_start_token_id,)
        for name, given in ids.items():
            for index in given:
                if type(index) is not int or not 0 <= index < self.vocab_size:
                    raise ValueError(
                        f"config: {name} holds {index!r}, expected ids below vocab_size, "
                        f"{self.vocab_size}"
                    )

    def head_size(self, heads: int) -> int:
        """head_dim of a side with so many heads."""
        return self.hidden_size // heads if self.head_dim is None else self.head_dim

    @property
    def max_length(self) -> int:
        """The most tokens that a source or a target may have."""
        return self.max_position_embeddings

    @property
    def embedding_scale(self) -> float:
        """What embeddings are multiplied by."""
        return math.sqrt(self.hidden_size) if self.scale_embedding else 1.0

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> TransformerConfig:
        """Read config.json. Of Hugging Face's families sizes have the defaults that it gives them.

        Raises ValueError for a model_type that softgate does not know, what is missing, what makes
        no sense, and what softgate does not compute.
        """
        model_type = config.get("model_type")
        check_choice("model_type", model_type, (OWN, *FAMILIES))
        if model_type == OWN:
            return cls._from_own(config)
        family = FAMILIES[str(model_type)]
        if missing := [key for key in family.required if config.get(key) is None]:
            raise ValueError(f"config: {', '.join(missing)} missing")
        values = family.traits | {
            ours: config[theirs]
            for ours, theirs in family.keys.items()
            if config.get(theirs) is not None
        }
        values |= _read_t5(config) if model_type == "t5" else _read_bart(config)
        eos = config.get("eos_token_id", family.eos_token_id)
        values["eos_token_ids"] = tuple(eos) if isinstance(eos, list) else (eos,)
        values["decoder_start_token_id"] = _start(config, family)
        return cls(model_type=str(model_type), **values)

    @classmethod
    def _from_own(cls, config: Mapping[str, Any]) -> TransformerConfig:
        known = {one.name for one in fields(cls)}
        # Beside its own fields a folder says how its weights are kept.
        values = {name: value for name, value in config.items() if name not in _ABOUT_FILES}
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"config: unknown field {unknown[0]!r}")
        if "vocab_size" not in values:
            raise ValueError("config: vocab_size missing")
        if isinstance(ends := values.get("eos_token_ids"), list):
            values["eos_token_ids"] = tuple(ends)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The config.json of the family that model_type names.

        Raises ValueError when the family has no way to say what this config does.
        """
        if self.model_type == OWN:
            return asdict(self)
        family = FAMILIES[self.model_type]
        config: dict[str, Any] = {
            theirs: getattr(self, ours) for ours, theirs in family.keys.items()
        }
        ends = self.eos_token_ids
        config |= {
            "model_type": self.model_type,
            "architectures": [family.architecture],
            "is_encoder_decoder": True,
            "eos_token_id": ends[0] if len(ends) == 1 else list(ends),
            "decoder_start_token_id": self.decoder_start_token_id,
            "pad_token_id": self.decoder_start_token_id,
            # Defaults that may lie outside the vocabulary.
            "bos_token_id": None,
            "forced_eos_token_id": None,
        }
        if self.model_type == "t5":
            act = _T5_NAMES.get(self.activation, self.activation)
            config["feed_forward_proj"] = f"gated-{act}" if self.gated else self.activation
            config["scale_decoder_outputs"] = self.scale_output
        elif self.model_type == "marian":
            config["share_encoder_decoder_embeddings"] = self.source_vocab_size is None
            config["vocab_size"] = self.source_vocab_size or self.vocab_size
            config["decoder_vocab_size"] = self.vocab_size
        check_lossless(self, TransformerConfig.from_dict(config))
        return config


@dataclass(frozen=True)
class Family:
    """What Hugging Face calls a family's fields (`keys`: ours to theirs), and what all its models
    have in common."""

    architecture: str
    keys: Mapping[str, str]
    traits: dict[str, Any]
    required: tuple[str, ...] = field(default=("vocab_size", "d_model"))
    start_token: str | None = None  # the field that says by which token targets begin by default
    eos_token_id: int | None = None


_BART_KEYS = {
    "hidden_size": "d_model", "activation": "activation_function",
    "tie_word_embeddings": "tie_word_embeddings",
} | {
    name: name
    for name in (
        "vocab_size", "encoder_layers", "decoder_layers", "encoder_attention_heads",
        "decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim", "max_position_embeddings",
        "scale_embedding",
    )
}  # fmt: skip
_BART_TRAITS: dict[str, Any] = {
    "encoder_layers": 12, "decoder_layers": 12, "encoder_attention_heads": 16,
    "decoder_attention_heads": 16, "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096,
    "activation": "gelu", "positions": "learned", "position_offset": 2, "embedding_norm": True,
    "scale_embedding": False, "output_bias": True,
}  # fmt: skip

FAMILIES = {
    "bart": Family(
        "BartForConditionalGeneration", _BART_KEYS, _BART_TRAITS, start_token="eos_token_id",
        eos_token_id=2,
    ),
    "mbart": Family(
        "MBartForConditionalGeneration",
        _BART_KEYS,
        _BART_TRAITS | {"pre_norm": True, "final_norm": True},
        eos_token_id=2,
    ),
    "marian": Family(
        "MarianMTModel",
        _BART_KEYS,
        _BART_TRAITS
        | {"positions": "sinusoidal_halves", "position_offset": 0, "embedding_norm": False},
        start_token="pad_token_id",
        eos_token_id=0,
    ),
    "t5": Family(
        "T5ForConditionalGeneration",
        {
            "vocab_size": "vocab_size", "hidden_size": "d_model", "head_dim": "d_kv",
            "encoder_layers": "num_layers", "decoder_layers": "num_decoder_layers",
            "encoder_attention_heads": "num_heads", "encoder_ffn_dim": "d_ff",
            "relative_attention_num_buckets": "relative_attention_num_buckets",
            "relative_attention_max_distance": "relative_attention_max_distance",
            "norm_eps": "layer_norm_epsilon", "tie_word_embeddings": "tie_word_embeddings",
        },
        {
            "head_dim": 64, "positions": "relative", "norm": "rms", "norm_eps": 1e-6,
            "pre_norm": True, "final_norm": True, "bias": False, "scale_embedding": False,
            "scale_attention": False, "max_position_embeddings": _ANY_LENGTH,
        },
        start_token="pad_token_id",
        eos_token_id=1,
    ),
}  # fmt: skip

_T5_NAMES = {"gelu_new": "gelu"}  # "gated-gelu" has always meant the approximation
_ABOUT_FILES = ("architectures", "torch_dtype", "quantization_config", "softgate_format")

_SIZES = (
    "vocab_size", "hidden_size", "encoder_layers", "decoder_layers", "encoder_attention_heads",
    "decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim", "max_position_embeddings",
    "relative_attention_num_buckets", "relative_attention_max_distance",
)  # fmt: skip
_SWITCHES = (
    "gated", "pre_norm", "embedding_norm", "final_norm", "bias", "scale_embedding",
    "scale_attention", "scale_output", "tie_word_embeddings", "output_bias",
)  # fmt: skip


def _start(config: Mapping[str, Any], family: Family) -> Any:
    """The token that begins a target."""
    said = config.get("decoder_start_token_id")
    if said is None and family.start_token is not None:
        said = config.get(family.start_token, family.eos_token_id)
    if said is None:
        raise ValueError("config: decoder_start_token_id missing")
    return said


def _read_bart(config: Mapping[str, Any]) -> dict[str, Any]:
    """What BART and its kin say in a way of their own."""
    target = config.get("decoder_vocab_size")
    untied = config["model_type"] != "marian" and config.get("tie_word_embeddings") is False
    if config.get("share_encoder_decoder_embeddings", True) and not untied:
        if target not in (None, config["vocab_size"]):
            raise ValueError(
                f"config: decoder_vocab_size is {target!r}, expected vocab_size, "
                f"{config['vocab_size']!r}, as embeddings are shared"
            )
        return {}
    return {
        "source_vocab_size": config["vocab_size"],
        "vocab_size": config["vocab_size"] if target is None else target,
    }


def _read_t5(config: Mapping[str, Any]) -> dict[str, Any]:
    """What T5 says in a way of its own."""
    said = config.get("feed_forward_proj", "relu")
    if not isinstance(said, str):
        raise ValueError(f"config: feed_forward_proj is {said!r}, expected a str")
    gated = said.startswith("gated-")
    act = said.removeprefix("gated-")
    layers, heads, width = (
        config.get(name, default) for name, default in _T5_DEFAULTS.items()
    )  # fmt: skip
    decoder_layers = config.get("num_decoder_layers")
    return {
        "activation": "gelu_new" if said == "gated-gelu" else act,
        "gated": gated,
        # The first T5 divides where its head is the embedding, which 1.1's is not.
        "scale_output": config.get(
            "scale_decoder_outputs", config.get("tie_word_embeddings") is not False
        ),
        "encoder_layers": layers,
        "decoder_layers": layers if decoder_layers is None else decoder_layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": width,
        "decoder_ffn_dim": width,
    }


_T5_DEFAULTS = {"num_layers": 6, "num_heads": 8, "d_ff": 2048}
