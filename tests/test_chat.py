"""Conversations on models whose logits are a plain function of the tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from language import END, Array, Model, random_logits

TEMPLATE_TOKENS = len("user:") + len("assistant:") + 3  # of a turn beside its content


def echo(tokens: Array) -> Array:
    """Says back the last message in capitals."""
    text = bytes(t if t < 256 else 0 for t in tokens.tolist())
    message = text.rsplit(b"user:", 1)[1].split(b"\0")[0]
    said = text.rsplit(b"assistant:", 1)[1]
    rest = message.upper()[len(said) :]
    logits = np.zeros(258)
    logits[rest[0] if rest else END] = 9
    return logits


def test_history_is_kept_and_only_what_is_new_is_computed() -> None:
    lm = Model(echo)
    conversation = lm.chat(system="Be loud.")
    stream = conversation.say("warp")
    assert lm.calls == []
    assert list(stream) == list("WARP")
    assert stream.generation.finish_reason == "stop_token"
    first = lm.computed
    prompt = stream.generation.prompt_tokens
    assert prompt == len("system:Be loud.") + 2 + TEMPLATE_TOKENS + 1 + 4 - 1
    assert first == prompt + 4
    assert stream.generation.cached_tokens == 0

    stream = conversation.say("weft")
    assert "".join(stream) == "WEFT"
    # The end of the first reply was drawn but not computed: it is new as well.
    assert stream.generation.cached_tokens == first
    new = 1 + TEMPLATE_TOKENS + len("weft")
    assert stream.generation.prompt_tokens == first + new
    assert lm.computed == first + new + 4
    assert conversation.messages == [
        {"role": "system", "content": "Be loud."},
        {"role": "user", "content": "warp"},
        {"role": "assistant", "content": "WARP"},
        {"role": "user", "content": "weft"},
        {"role": "assistant", "content": "WEFT"},
    ]


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 3}], ids=["greedy", "drawn"])
def test_a_cached_conversation_says_what_a_fresh_one_would(settings: dict[str, Any]) -> None:
    lm = Model(random_logits())
    conversation = lm.chat(max_new_tokens=12, **settings)
    for content in ("warp", "직물", "a longer message, to be sure"):
        messages = [*conversation.messages, {"role": "user", "content": content}]
        prompt = lm.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        expected = lm.generate(prompt, max_new_tokens=12, **settings)
        stream = conversation.say(content)
        assert "".join(stream) == expected.text
        assert stream.generation.token_ids == expected.token_ids
        assert conversation.messages[-1] == {"role": "assistant", "content": expected.text}


def test_a_changed_history_is_computed_anew_from_there() -> None:
    lm = Model(echo)
    conversation = lm.chat()
    list(conversation.say("warp"))
    conversation.messages[-1]["content"] = "WARNING"
    stream = conversation.say("weft")
    assert "".join(stream) == "WEFT"
    assert stream.generation.cached_tokens == 2 + len("user:warp") + 1 + len("assistant:WAR")


def test_the_same_prompt_again_computes_its_last_token() -> None:
    lm = Model(echo)
    conversation = lm.chat()
    list(conversation.say("warp"))
    conversation.reset()
    assert conversation.messages == []
    lm.calls.clear()
    stream = conversation.say("warp")
    assert "".join(stream) == "WARP"
    assert lm.calls[0] == [1]


def test_reset_keeps_the_system_message() -> None:
    conversation = Model(echo).chat(system="Be loud.")
    list(conversation.say("warp"))
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "Be loud."}]


def test_ctrl_c_keeps_the_reply_so_far() -> None:
    lm = Model(echo)
    conversation = lm.chat()
    lm.interrupt_at = 3
    with pytest.raises(KeyboardInterrupt):
        list(conversation.say("warp"))
    assert conversation.messages[-1] == {"role": "assistant", "content": "WAR"}
    lm.interrupt_at = None
    stream = conversation.say("weft")
    assert "".join(stream) == "WEFT"
    assert stream.generation.cached_tokens == lm.calls[0][0] + 2


def test_a_reply_left_early_stays_as_far_as_it_came() -> None:
    conversation = Model(echo).chat()
    stream = conversation.say("warp")
    assert next(stream) == "W"
    assert conversation.messages[-1]["content"] == "W"
    assert "".join(conversation.say("weft")) == "WEFT"
    assert [m["content"] for m in conversation.messages] == ["warp", "W", "weft", "WEFT"]
    assert list(stream) == []


def test_refused_messages_leave_the_conversation_alone() -> None:
    conversation = Model(echo, context=60).chat(max_new_tokens=10)
    list(conversation.say("warp"))
    before = [dict(message) for message in conversation.messages]
    for content, settings, message in (
        ("", {}, "content is empty"),
        ("x" * 60, {}, r"the conversation has \d+ tokens, expected at most 59"),
        ("weft", {"top_p": 0.0}, "top_p is 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            conversation.say(content, **settings)
    assert conversation.messages == before
    assert "".join(conversation.say("w")) == "W"


def test_a_sliding_conversation_forgets_its_oldest_messages() -> None:
    lm = Model(echo, context=80)
    conversation = lm.chat(system="Loud.", context="slide", max_new_tokens=10)
    shown = []
    for content in ("warp", "weft", "reed", "loom"):
        stream = conversation.say(content)
        assert "".join(stream) == content.upper()
        shown.append(stream.generation.prompt_tokens)
    system, asked, answered = len("Loud.") + 9, len("warp") + 7, len("WARP") + 12
    start = len("assistant:") + 1
    # What fits into 80 tokens beside 10 new ones: the last exchange and the new message.
    one, two = system + asked + start, system + 2 * asked + answered + start
    assert two <= 70 < two + asked + answered
    assert shown == [one, two, two, two]
    assert len(conversation.messages) == 9


def test_a_sliding_reply_goes_on() -> None:
    lm = Model(random_logits(), context=60)
    conversation = lm.chat(context="slide", max_new_tokens=100, stop_tokens=())
    stream = conversation.say("warp")
    list(stream)
    assert len(stream.generation.token_ids) == 100
    stream = conversation.say(
        "a message that is as long as the whole context of the model, or more"
    )
    list(stream)
    assert len(stream.generation.token_ids) == 100
