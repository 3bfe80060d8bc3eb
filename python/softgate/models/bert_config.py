"""What tells one family of encoders from another, and its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from softgate import ops
from softgate.checkpoint.errors import quote
from softgate.models.config_values import check_choice, check_integer, check_lossless, is_number
from softgate.nn.rope import RopeConfig

Task = Literal["masked-lm", "sequence-classification", "token-classification", "question-answering"]

# Hugging Face's names of activations and ours.
ACTIVATIONS: dict[str, ops.Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
FULL, SLIDING = "full_attention", "sliding_attention"
MAX_SIZE = 2**31 - 1
# Hugging Face counts MPNet's buckets so whatever its config says.
BUCKETS, BUCKETS_REACH = 32, 128
_MAX_LAYERS = 4096
_MAX_HEAD_DIM = 256
_MAX_LABELS = 2**20


@dataclass(frozen=True)
class BertConfig:
    """Sizes and switches of an encoder, named as in Hugging Face's config.json.

    The defaults are BERT's; `from_dict` sets those of the family that the dictionary names.
    `model_type` says which form the heads have and as which family `save` writes.

    embedding_size: None is hidden_size; embedding_projection: a product from one to the other.
    position_pad_id: positions count from the id after it, and only tokens other than it (RoBERTa);
    None counts all from 0. type_vocab_size: 0 has no token types. num_hidden_groups: layers share
    that many sets of weights, each of inner_group_num layers (ALBERT); None shares nothing.
    relative_attention_num_buckets: rows of a bias of scores by distance (MPNet), 0 for none.
    pre_norm: norms before attention (but the first) and feed-forward, and a last one; else after
    them. gated: the feed-forward is `down(act(gate(x)) * up(x))`. rope: None has learned positions.
    layer_types: "full_attention" or "sliding_attention" for each layer, whose tokens see
    local_attention // 2 to either side and use local_rope.

    task: what the head is for; None has no head. labels: what its classes are called.
    problem_type: "single_label_classification", "multi_label_classification", "regression", or
    None, which is multi-label for one label and single-label for several. score_activation: what a
    cross-encoder's score goes through, "sigmoid" or "identity"; None is sigmoid.

    Raises ValueError that names the field whose value makes no sense.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    model_type: str = "bert"
    embedding_size: int | None = None
    embedding_projection: bool = False
    position_pad_id: int | None = None
    num_hidden_groups: int | None = None
    inner_group_num: int = 1
    relative_attention_num_buckets: int = 0
    pre_norm: bool = False
    gated: bool = False
    norm_bias: bool = True
    attention_bias: bool = True
    mlp_bias: bool = True
    rope: RopeConfig | None = None
    local_rope: RopeConfig | None = None
    layer_types: tuple[str, ...] | None = None
    local_attention: int | None = None
    tie_word_embeddings: bool = True
    decoder_bias: bool = True
    classifier_bias: bool = True
    classifier_activation: str = "gelu"
    classifier_pooling: str = "cls"
    task: Task | None = None
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem_type: str | None = None
    score_activation: str | None = None

    def __post_init__(self) -> None:
        check_choice("model_type", self.model_type, tuple(FAMILIES))
        for name in _SIZES:
            most = _MAX_LAYERS if name in _LAYERS else MAX_SIZE
            check_integer(name, getattr(self, name), most)
        for name in ("type_vocab_size", "relative_attention_num_buckets"):
            check_integer(name, getattr(self, name), MAX_SIZE, least=0)
        for name in _OPTIONAL_SIZES:
            if getattr(self, name) is not None:
                least = 0 if name in ("position_pad_id", "local_attention") else 1
                check_integer(name, getattr(self, name), MAX_SIZE, least)
        for name in _SWITCHES:
            if type(getattr(self, name)) is not bool:
                raise ValueError(
                    f"config: {name} is {quote(getattr(self, name))}, expected true or false"
                )
        for name in ("hidden_act", "classifier_activation"):
            check_choice(name, getattr(self, name), tuple(ACTIVATIONS))
        check_choice("classifier_pooling", self.classifier_pooling, ("cls", "mean"))
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"config: hidden_size is {self.hidden_size}, expected a multiple of "
                f"num_attention_heads, {self.num_attention_heads}"
            )
        if self.head_dim > _MAX_HEAD_DIM:
            raise ValueError(
                f"config: heads of {self.head_dim}, expected hidden_size / num_attention_heads to "
                f"be at most {_MAX_HEAD_DIM}"
            )
        eps = self.layer_norm_eps
        if not is_number(eps) or not 0 <= eps <= 1:
            raise ValueError(
                f"config: layer_norm_eps is {quote(eps)}, expected a number from 0 to 1"
            )
        if self.embedding_size is None:
            object.__setattr__(self, "embedding_size", self.hidden_size)
        if not self.embedding_projection and self.embedding_size != self.hidden_size:
            raise ValueError(
                f"config: embedding_size is {self.embedding_size}, expected {self.hidden_size} "
                "without embedding_projection"
            )
        self._check_positions()
        self._check_labels()

    def _check_positions(self) -> None:
        if self.position_pad_id is not None and not self.max_length > 0:
            raise ValueError(
                f"config: max_position_embeddings is {self.max_position_embeddings}, expected more "
                f"than position_pad_id + 1, {self.position_pad_id + 1}"
            )
        if 0 < self.relative_attention_num_buckets < BUCKETS:
            raise ValueError(
                "config: relative_attention_num_buckets is "
                f"{self.relative_attention_num_buckets}, expected at least {BUCKETS}"
            )
        groups = self.num_hidden_groups
        if groups is not None and groups > self.num_hidden_layers:
            raise ValueError(
                f"config: num_hidden_groups is {groups}, expected at most num_hidden_layers, "
                f"{self.num_hidden_layers}"
            )
        for name in ("rope", "local_rope"):
            if not isinstance(getattr(self, name), RopeConfig | None):
                raise ValueError(f"config: {name} is {quote(getattr(self, name))}, expected a rope")
        if self.layer_types is None:
            object.__setattr__(self, "layer_types", (FULL,) * self.num_hidden_layers)
        if not isinstance(self.layer_types, tuple) or len(self.kinds) != self.num_hidden_layers:
            raise ValueError(
                f"config: layer_types is {quote(self.layer_types)}, expected one for each of "
                f"{self.num_hidden_layers} layers"
            )
        for kind in self.kinds:
            check_choice("layer_types", kind, (FULL, SLIDING))
        if SLIDING in self.kinds and self.num_hidden_groups is not None:
            raise ValueError("config: sliding layer_types and num_hidden_groups exclude each other")
        if SLIDING in self.kinds and self.local_attention is None:
            raise ValueError("config: local_attention is missing, some layer_types are sliding")
        if SLIDING in self.kinds and (self.rope is None) != (self.local_rope is None):
            raise ValueError("config: rope and local_rope are there together or not at all")
        if self.rope is not None and self.relative_attention_num_buckets:
            raise ValueError("config: rope and relative_attention_num_buckets exclude each other")
        for rope in self.ropes().values():
            # Others turn by the length of the batch.
            check_choice("rope_type", rope.rope_type, ("default", "linear", "llama3", "yarn"))

    def _check_labels(self) -> None:
        if self.task is not None:
            check_choice("task", self.task, tuple(TASKS))
        if self.problem_type is not None:
            check_choice("problem_type", self.problem_type, PROBLEM_TYPES)
        if self.score_activation is not None:
            check_choice("score_activation", self.score_activation, ("sigmoid", "identity"))
        if (
            not isinstance(self.labels, tuple)
            or not self.labels
            or not all(isinstance(label, str) for label in self.labels)
        ):
            raise ValueError(f"config: labels are {quote(self.labels)}, expected names")
        if self.task == "question-answering" and len(self.labels) != 2:
            raise ValueError(
                f"config: {len(self.labels)} labels, expected 2 for question-answering, "
                "a span's start and end"
            )

    @property
    def head_dim(self) -> int:
        """Elements of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def embedding_width(self) -> int:
        """embedding_size, filled in."""
        assert self.embedding_size is not None
        return self.embedding_size

    @property
    def kinds(self) -> tuple[str, ...]:
        """layer_types, filled in."""
        assert self.layer_types is not None
        return self.layer_types

    def kind(self, layer: int) -> str:
        """Of one of the layers that have weights of their own."""
        return self.kinds[layer] if self.num_hidden_groups is None else FULL

    @property
    def max_length(self) -> int:
        """The most tokens a sequence may have."""
        first = 0 if self.position_pad_id is None else self.position_pad_id + 1
        return self.max_position_embeddings - first

    @property
    def num_layers_kept(self) -> int:
        """How many layers have weights of their own."""
        if self.num_hidden_groups is None:
            return self.num_hidden_layers
        return self.num_hidden_groups * self.inner_group_num

    @property
    def layer_order(self) -> tuple[int, ...]:
        """Which of those a token goes through, in turn."""
        if self.num_hidden_groups is None:
            return tuple(range(self.num_hidden_layers))
        inner = self.inner_group_num
        # Hugging Face's own division, whose rounding decides where it is not whole.
        share = self.num_hidden_layers / self.num_hidden_groups
        groups = [int(i / share) for i in range(self.num_hidden_layers)]
        return tuple(group * inner + i for group in groups for i in range(inner))

    @property
    def has_relative_positions(self) -> bool:
        """Do scores depend on the distance of tokens?"""
        return self.rope is not None or bool(self.relative_attention_num_buckets)

    def ropes(self) -> dict[str, RopeConfig]:
        """The rotary embeddings of each kind of layer."""
        ropes = {FULL: self.rope, SLIDING: self.local_rope}
        return {kind: rope for kind, rope in ropes.items() if rope and kind in self.kinds}

    @property
    def has_pooler(self) -> bool:
        """Does the family give an output of the first token, where there is no head?"""
        return FAMILIES[self.model_type].pooler

    @property
    def head_activation(self) -> ops.Activation | None:
        """After the head's first product; None where it has only one."""
        said = FAMILIES[self.model_type].heads.get(self.task or "")
        return None if said is None else ACTIVATIONS[getattr(self, said, said)]

    @property
    def head_norm(self) -> bool:
        """Does the head's first product have a norm after it?"""
        return self.task == "masked-lm" or FAMILIES[self.model_type].head_norm

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> BertConfig:
        """Read config.json. The sizes must be there; the rest has Hugging Face's defaults.

        Raises ValueError for a model_type that softgate does not know, what is missing, what makes
        no sense, and what softgate does not compute.
        """
        model_type = config.get("model_type", "bert")
        check_choice("model_type", model_type, tuple(FAMILIES))
        family = FAMILIES[model_type]
        missing = [
            theirs
            for theirs, default in family.keys.values()
            if default is _REQUIRED and theirs not in config
        ]
        if missing:
            raise ValueError(f"config: {', '.join(missing)} missing")
        for name, value in {**_ONLY, **family.only}.items():
            if config.get(name, value) not in (value, None):
                raise ValueError(f"config: {name} is {quote(config[name])}, expected {value!r}")
        values: dict[str, Any] = {
            ours: config.get(theirs, default) for ours, (theirs, default) in family.keys.items()
        }
        values |= family.traits
        if model_type == "electra":
            same = (None, values["hidden_size"])
            values["embedding_projection"] = values["embedding_size"] not in same
        if "position_pad_id" in family.keys and values["position_pad_id"] is None:
            raise ValueError("config: pad_token_id is None, expected an integer")
        if model_type == "modernbert":
            values |= _read_modernbert(config)
        return cls(model_type=model_type, **values, **_read_head(family, config))

    def to_dict(self) -> dict[str, Any]:
        """The config.json of the family that model_type names.

        Raises ValueError when the family has no way to say what this config does.
        """
        family = FAMILIES[self.model_type]
        config: dict[str, Any] = {
            theirs: getattr(self, ours) for ours, (theirs, _) in family.keys.items()
        }
        pads = self.position_pad_id
        config |= {
            "model_type": self.model_type,
            "architectures": [family.architecture + TASKS.get(self.task or "", "Model")],
            "pad_token_id": 0 if pads is None else pads,
        }
        if self.model_type == "bert":
            config["position_embedding_type"] = "absolute"
        if self.model_type == "modernbert":
            config |= _write_modernbert(self)
        config |= _write_head(self)
        check_lossless(self, BertConfig.from_dict(config))
        return config


@dataclass(frozen=True)
class Family:
    """One of Hugging Face's model types.

    architecture: how its classes' names begin. keys: our field to its key and default in
    config.json. traits: fields that no config.json of the family changes. only: keys with the one
    value that softgate computes. heads: for a task whose head has two products, the activation
    between them, or the field that says it. head_norm: they have a norm there for every task.
    """

    architecture: str
    keys: Mapping[str, tuple[str, Any]]
    heads: Mapping[str, str]
    traits: Mapping[str, Any] = field(default_factory=dict)
    only: Mapping[str, Any] = field(default_factory=dict)
    pooler: bool = True
    head_norm: bool = False


TASKS: dict[str, str] = {
    "masked-lm": "ForMaskedLM",
    "sequence-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
}
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
_LAYERS = ("num_hidden_layers", "inner_group_num")
_SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "inner_group_num",
)  # fmt: skip
_OPTIONAL_SIZES = ("embedding_size", "num_hidden_groups", "local_attention", "position_pad_id")
_SWITCHES = (
    "embedding_projection", "pre_norm", "gated", "norm_bias", "attention_bias", "mlp_bias",
    "tie_word_embeddings", "decoder_bias", "classifier_bias",
)  # fmt: skip
_REQUIRED = object()
_ONLY = {
    "is_decoder": False,
    "add_cross_attention": False,
    "position_embedding_type": "absolute",
}


def _keys(**changed: Any) -> dict[str, tuple[str, Any]]:
    """BERT's keys; a value for a field is its default, a pair its key too, ... leaves it out."""
    required = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "intermediate_size",
    )  # fmt: skip
    keys: dict[str, Any] = dict.fromkeys(required, _REQUIRED) | {
        "hidden_act": "gelu",
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "tie_word_embeddings": True,
    }
    pairs = (keys | changed).items()
    return {n: v if isinstance(v, tuple) else (n, v) for n, v in pairs if v is not ...}


_ROBERTA = Family(
    "Roberta",
    _keys(position_pad_id=("pad_token_id", 1)),
    {"masked-lm": "gelu", "sequence-classification": "tanh"},
)

FAMILIES: dict[str, Family] = {
    "bert": Family(
        "Bert", _keys(), {"masked-lm": "hidden_act", "sequence-classification": "tanh"}
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": Family("XLMRoberta", _ROBERTA.keys, _ROBERTA.heads),
    "distilbert": Family(
        "DistilBert",
        _keys(
            hidden_size=("dim", _REQUIRED),
            num_hidden_layers=("n_layers", _REQUIRED),
            num_attention_heads=("n_heads", _REQUIRED),
            intermediate_size=("hidden_dim", _REQUIRED),
            hidden_act=("activation", "gelu"),
            type_vocab_size=...,
            layer_norm_eps=...,
        ),
        {"masked-lm": "hidden_act", "sequence-classification": "relu"},
        {"type_vocab_size": 0, "layer_norm_eps": 1e-12},
        pooler=False,
    ),
    "albert": Family(
        "Albert",
        _keys(
            embedding_size=128, num_hidden_groups=1, inner_group_num=1, hidden_act="gelu_new"
        ),
        {"masked-lm": "hidden_act", "sequence-classification": "tanh"},
        {"embedding_projection": True},
    ),
    "electra": Family(
        "Electra",
        _keys(embedding_size=128),
        {"masked-lm": "gelu", "sequence-classification": "gelu"},
        pooler=False,
    ),
    "mpnet": Family(
        "MPNet",
        _keys(relative_attention_num_buckets=BUCKETS, type_vocab_size=...),
        {"masked-lm": "gelu", "sequence-classification": "tanh"},
        {"type_vocab_size": 0, "position_pad_id": 1},
    ),
    "modernbert": Family(
        "ModernBert",
        _keys(
            hidden_act=("hidden_activation", "gelu"),
            layer_norm_eps=("norm_eps", 1e-5),
            max_position_embeddings=8192,
            type_vocab_size=...,
            norm_bias=False,
            attention_bias=False,
            mlp_bias=False,
            decoder_bias=True,
            classifier_bias=False,
            classifier_activation="gelu",
            classifier_pooling="cls",
            local_attention=128,
        ),
        dict.fromkeys(TASKS, "classifier_activation"),
        {"type_vocab_size": 0, "pre_norm": True, "gated": True},
        pooler=False,
        head_norm=True,
    ),
}  # fmt: skip


def _read_modernbert(config: Mapping[str, Any]) -> dict[str, Any]:
    """Ropes and kinds of layers, from old and new keys."""
    found = config.get("rope_parameters") or {}
    if not isinstance(found, dict):
        raise ValueError(f"config: rope parameters are {quote(found)}, expected an object")
    ropes = {}
    for ours, kind, key, default in (
        ("rope", FULL, "global_rope_theta", 160_000.0),
        ("local_rope", SLIDING, "local_rope_theta", 10_000.0),
    ):
        parameters = found.get(kind) or {}
        if not isinstance(parameters, dict):
            raise ValueError(f"config: rope parameters are {quote(parameters)}, expected an object")
        theta = config.get(key, default)
        if theta is None:  # an old file's word for the other kind's
            theta = config.get("global_rope_theta", 160_000.0)
        parameters = {"rope_theta": theta, **parameters}
        if parameters.get("rope_type") in ("llama3", "yarn"):
            parameters.setdefault(
                "original_max_position_embeddings", config.get("max_position_embeddings", 8192)
            )
        ropes[ours] = RopeConfig.from_dict(parameters)
    kinds = config.get("layer_types")
    if kinds is None:
        period, layers = config.get("global_attn_every_n_layers", 3), config["num_hidden_layers"]
        check_integer("global_attn_every_n_layers", period, MAX_SIZE)
        check_integer("num_hidden_layers", layers, _MAX_LAYERS)
        kinds = [SLIDING if i % period else FULL for i in range(layers)]
    return {**ropes, "layer_types": tuple(kinds) if isinstance(kinds, list) else kinds}


def _write_modernbert(config: BertConfig) -> dict[str, Any]:
    """Old and new keys, so that every version of transformers understands them."""
    if config.rope is None or config.local_rope is None:
        raise ValueError("config: a config.json of modernbert has rope and local_rope")
    return {
        "layer_types": list(config.kinds),
        "global_rope_theta": config.rope.rope_theta,
        "local_rope_theta": config.local_rope.rope_theta,
        "rope_parameters": {FULL: config.rope.to_dict(), SLIDING: config.local_rope.to_dict()},
        # Defaults lie outside small vocabularies.
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), None),
    }


def _read_head(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """The task that an architecture stands for, and its labels."""
    names = config.get("architectures")
    known = {family.architecture + ending: task for task, ending in TASKS.items()}
    known[f"{family.architecture}ForPreTraining"] = "masked-lm"
    if family.architecture == "Electra":
        del known["ElectraForPreTraining"]  # which tells replaced tokens from others
    first = names[0] if isinstance(names, list) and names else None
    task = known.get(first) if isinstance(first, str) else None
    labels = config.get("id2label")
    if labels is None:
        count = config.get("num_labels", 2)
        check_integer("num_labels", count, _MAX_LABELS)
        labels = {i: f"LABEL_{i}" for i in range(count)}
    if not isinstance(labels, dict) or {str(key) for key in labels} != set(
        map(str, range(len(labels)))
    ):
        raise ValueError(
            f"config: id2label is {quote(labels)}, expected names for 0, 1, 2 and so on"
        )
    by_index = {int(key): label for key, label in labels.items()}
    return {
        "task": task,
        "labels": tuple(by_index[i] for i in range(len(by_index))),
        "problem_type": config.get("problem_type"),
        "score_activation": _read_score_activation(config),
    }


def _read_score_activation(config: Mapping[str, Any]) -> str | None:
    """What sentence-transformers' cross-encoders name: a class of torch."""
    said = config.get("sentence_transformers")
    name = said.get("activation_fn") if isinstance(said, dict) else None
    name = name or config.get("sbert_ce_default_activation_function")
    if name is None:
        return None
    activation = str(name).rsplit(".", 1)[-1].lower()
    if activation not in ("sigmoid", "identity"):
        raise ValueError(f"config: activation_fn is {quote(name)}, expected Sigmoid or Identity")
    return activation


def _write_head(config: BertConfig) -> dict[str, Any]:
    written: dict[str, Any] = {
        "id2label": {str(i): label for i, label in enumerate(config.labels)},
        "label2id": {label: i for i, label in enumerate(config.labels)},
    }
    if config.problem_type is not None:
        written["problem_type"] = config.problem_type
    if config.score_activation is not None:
        name = f"torch.nn.modules.{_TORCH_MODULES[config.score_activation]}"
        written["sentence_transformers"] = {"activation_fn": name}
    return written


_TORCH_MODULES = {"sigmoid": "activation.Sigmoid", "identity": "linear.Identity"}
