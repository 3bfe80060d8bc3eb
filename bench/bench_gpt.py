"""Language models: prompts, and tokens after them one at a time.

SmolLM2 135M is the GGUF file of a package, whose weights have 4 bits, against llama.cpp on the same
file and on a Q4_0 requantisation of it, the format that llama.cpp is fastest with. GPT-2 124M has
random weights. Bytes are those of the weights as they are stored, once a step, and of the keys and
values read in float32. The arithmetic limit is float32's: products of small integers can pass it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from bench import exports, sessions
from bench.case import Array, Call, Case, Inputs
from bench.limits import Work


@dataclass(frozen=True)
class Size:
    """weights: of a layer's products; bits: of one of them, its share of scales included; kv:
    floats of keys and values that a layer keeps of a token."""

    layers: int
    weights: int
    embedding: int
    vocabulary: int
    kv: int

    def work(
        self,
        bits: float,
        embedding_bits: float,
        *,
        tokens: int,
        context: int,
        batch: int,
        steps: int,
    ) -> Work:
        """Of `steps` passes, each over `tokens` new tokens of `batch` sequences, whose keys become
        `context` on average. Only a sequence's last token gets logits."""
        products = self.layers * self.weights
        held = (products * bits + self.embedding * embedding_bits) / 8
        keys = 4 * self.layers * self.kv * context * batch
        flops = 2 * batch * (tokens * products + self.embedding)
        flops += 2 * self.layers * self.kv * batch * tokens * context
        return Work(
            flops=steps * flops,
            bytes=steps * (held + keys),
            traffic="read",
            working_set=held + keys,
        )


SMOLLM2 = Size(
    layers=30,
    weights=576 * (576 + 2 * 192) + 576 * 576 + 3 * 576 * 1536,
    embedding=49152 * 576,
    vocabulary=49152,
    kv=2 * 3 * 64,
)
GPT2 = Size(layers=12, weights=12 * 768 * 768, embedding=50257 * 768, vocabulary=50257, kv=2 * 768)


def random_ids(vocabulary: int, *shape: int) -> Array:
    return np.random.default_rng(0).integers(1000, vocabulary - 1000, shape).astype(np.int32)


def log_softmax(logits: Any) -> Array:
    """float32 `[batch, vocabulary]`."""
    rows = np.array(logits, dtype=np.float32).reshape(-1, np.shape(logits)[-1])
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows


@dataclass(frozen=True)
class SmolLM2(Case):
    """After `before` tokens that the cache holds, `steps` passes over `tokens` new ones each."""

    engines: ClassVar[tuple[str, ...]] = ("softgate", "llama_cpp", "llama_cpp_q4_0")
    # Both sides round activations to integers, in their own ways.
    tolerance: ClassVar[float] = 1.5
    oracle: ClassVar[str] = "llama_cpp"

    label: str
    before: int
    tokens: int
    steps: int = 1

    @property
    def name(self) -> str:
        return f"smollm2 {self.label}"

    @property
    def work(self) -> Work:
        context = self.before + self.tokens * self.steps // 2
        return SMOLLM2.work(5, 8.5, tokens=self.tokens, context=context, batch=1, steps=self.steps)

    @property
    def units(self) -> int:
        return self.tokens * self.steps

    def tolerance_of(self, engine: str) -> float:
        """Requantised, it is another model: this only tells it from nonsense."""
        return 10.0 if engine == "llama_cpp_q4_0" else self.tolerance

    def inputs(self) -> Inputs:
        ids = random_ids(SMOLLM2.vocabulary, self.before + self.units)
        before, new = np.split(ids, [self.before])
        return {"before": before, "new": new.reshape(self.steps, self.tokens)}

    def softgate(self, inputs: Inputs) -> Call:
        import softgate

        model: Any = softgate.load(exports.smollm2_file())
        cache = model.new_cache(1, self.before + self.units)
        if self.before:
            model(inputs["before"], None, cache, logits="last")

        def run() -> Any:
            cache.truncate(0, self.before)
            for ids in inputs["new"]:
                logits = model(ids, None, cache, logits="last")
            return logits

        return Call(run, lambda logits: log_softmax(logits.numpy()))

    def llama_cpp(self, inputs: Inputs) -> Call:
        return self._llama_cpp(inputs, exports.smollm2_file())

    def llama_cpp_q4_0(self, inputs: Inputs) -> Call:
        return self._llama_cpp(inputs, exports.export_path("smollm2", "q4_0") / "model.gguf")

    def _llama_cpp(self, inputs: Inputs, path: os.PathLike[str]) -> Call:
        import llama_cpp

        llm = llama_cpp.Llama(
            os.fspath(path),
            n_ctx=self.before + self.units,
            n_batch=512,
            n_ubatch=512,
            n_threads=sessions.threads(),
            n_threads_batch=sessions.threads(),
            verbose=False,
        )
        llm.eval(inputs["before"].tolist())
        new = inputs["new"].tolist()

        def run() -> Any:
            llm.n_tokens = self.before  # `eval` forgets what the cache holds beyond
            for ids in new:
                llm.eval(ids)
            return llama_cpp.llama_get_logits_ith(llm._ctx.ctx, -1)

        return Call(
            run, lambda logits: log_softmax(np.ctypeslib.as_array(logits, (1, llm.n_vocab())))
        )


@dataclass(frozen=True)
class Gpt2(Case):
    """From a prompt of `prompt` tokens, `steps` tokens greedily; the first comes from the prompt.

    What is compared is the last token's log-probabilities after fixed ids, fed as the case does.
    """

    engines: ClassVar[tuple[str, ...]] = ("softgate", "torch", "ctranslate2")
    tolerance: ClassVar[float] = 1e-3
    dtype: ClassVar[Literal["float32", "int8"]] = "float32"

    label: str
    prompt: int
    steps: int
    batch: int = 1

    @property
    def name(self) -> str:
        return f"gpt2 {self.dtype} {self.label}"

    @property
    def work(self) -> Work:
        bits = 8 if self.dtype == "int8" else 32
        context = self.prompt if self.steps == 1 else (self.prompt + self.steps) // 2
        return GPT2.work(
            bits, bits, tokens=self.prompt, context=context, batch=self.batch, steps=self.steps
        )

    @property
    def units(self) -> int:
        return self.batch * (self.prompt if self.steps == 1 else self.steps)

    def inputs(self) -> Inputs:
        """The prompts, and ids that the check goes on with."""
        ids = random_ids(GPT2.vocabulary, self.batch, self.prompt + 8)
        return {"prompts": ids[:, : self.prompt], "more": ids[:, self.prompt :]}

    def softgate(self, inputs: Inputs) -> Call:
        import softgate

        model: Any = softgate.load(exports.export_path("gpt2", "huggingface"), dtype=self.dtype)
        prompts = [row.tolist() for row in inputs["prompts"]]

        def check(_: Any) -> Array:
            cache = model.new_cache(self.batch, self.prompt + 8)
            offsets = self.prompt * np.arange(self.batch + 1)
            model(inputs["prompts"].ravel(), offsets, cache, logits="last")
            for ids in inputs["more"].T:
                logits = model(ids, np.arange(self.batch + 1), cache, logits="last")
            return log_softmax(logits.numpy())

        return Call(
            lambda: model.generate(
                prompts, max_new_tokens=self.steps, stop_tokens=(), batch_size=self.batch
            ),
            check,
        )

    def torch(self, inputs: Inputs) -> Call:
        import torch
        from transformers import DynamicCache, GPT2LMHeadModel

        model: Any = GPT2LMHeadModel.from_pretrained(exports.export_path("gpt2", "huggingface"))
        model.eval()
        prompts = torch.from_numpy(inputs["prompts"].astype(np.int64))
        more = torch.from_numpy(inputs["more"].astype(np.int64))

        def forward(ids: Any, cache: Any) -> Any:
            return model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]

        def generate() -> None:
            with torch.inference_mode():
                ids, cache = prompts, DynamicCache()
                for _ in range(self.steps):
                    ids = forward(ids, cache).argmax(dim=-1, keepdim=True)

        def check(_: Any) -> Array:
            with torch.inference_mode():
                cache = DynamicCache()
                forward(prompts, cache)
                for ids in more.T:
                    logits = forward(ids[:, None], cache)
                return log_softmax(logits.numpy())

        return Call(generate, check)

    def ctranslate2(self, inputs: Inputs) -> Call:
        import ctranslate2

        generator = ctranslate2.Generator(
            str(exports.export_path("gpt2", "ctranslate2")),
            compute_type=self.dtype,
            inter_threads=1,
            intra_threads=sessions.threads(),
        )
        prompts = [[f"t{token}" for token in row] for row in inputs["prompts"]]
        whole = np.concatenate([inputs["prompts"], inputs["more"]], axis=1).tolist()
        return Call(
            lambda: generator.generate_batch(
                prompts,
                max_length=self.steps,
                min_length=self.steps,  # the token that ends a text must not
                sampling_topk=1,
                include_prompt_in_result=False,
            ),
            lambda _: log_softmax(np.array(generator.forward_batch(whole))[:, -1]),
        )


@dataclass(frozen=True)
class Gpt2Int8(Gpt2):
    """Weights of 8 bits, a scale a row; activations rounded to 8 bits on the fly."""

    engines: ClassVar[tuple[str, ...]] = ("softgate", "ctranslate2")
    tolerance: ClassVar[float] = 0.2
    oracle: ClassVar[str] = "ctranslate2"
    dtype: ClassVar[Literal["float32", "int8"]] = "int8"


CASES = [
    SmolLM2("decode", before=128, tokens=1, steps=32),
    SmolLM2("decode at 4096", before=4096 - 16, tokens=1, steps=32),
    SmolLM2("prompt 512", before=0, tokens=512),
    Gpt2("prompt 128", prompt=128, steps=1),
    Gpt2("decode", prompt=1, steps=64),
    Gpt2Int8("prompt 128", prompt=128, steps=1),
    Gpt2Int8("decode", prompt=1, steps=64),
    Gpt2Int8("decode batch 8", prompt=1, steps=64, batch=8),
]
