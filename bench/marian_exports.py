"""A Marian translation model with random weights for the benchmarks."""

from __future__ import annotations

from pathlib import Path

VOCABULARY = 58000
PAD = VOCABULARY - 1  # the last, as in Marian's own; it begins a target and never is in one
END = 0


def huggingface(folder: Path) -> None:
    """The size of OPUS-MT's models: 6 + 6 layers, hidden 512."""
    import torch
    from transformers import GenerationConfig, MarianConfig, MarianMTModel

    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=VOCABULARY,
        d_model=512,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        max_position_embeddings=512,
        activation_function="swish",
        scale_embedding=True,
        pad_token_id=PAD,
        decoder_start_token_id=PAD,
        eos_token_id=END,
        forced_eos_token_id=None,
    )
    model = MarianMTModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed_positions" not in name:
                parameter.normal_(0, 0.05)  # the usual 0.02 makes all tokens about as likely
        model.model.shared.weight[PAD] = 0
    model.generation_config = GenerationConfig(
        pad_token_id=PAD, decoder_start_token_id=PAD, eos_token_id=END, bad_words_ids=[[PAD]]
    )
    model.save_pretrained(folder)


def ctranslate2(source: Path, folder: Path) -> None:
    """Through the converter's own loader of Marian models, without a tokenizer: tokens are named
    t0, t1, ..., and the last, which only begins targets, is left out as it does."""
    from ctranslate2.converters.transformers import MarianMTLoader
    from transformers import MarianMTModel

    spec = MarianMTLoader().get_model_spec(MarianMTModel.from_pretrained(source))
    tokens = [f"t{index}" for index in range(PAD)]
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    spec.config.eos_token = spec.config.decoder_start_token = tokens[END]
    spec.config.unk_token = tokens[1]
    spec.validate()
    spec.optimize(quantization=None)
    spec.save(str(folder))
