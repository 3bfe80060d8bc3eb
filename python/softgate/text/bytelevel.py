"""The printable characters that byte-level BPE writes bytes as.

Bytes that Latin-1 prints stand for themselves, the others for U+0100, U+0101 and so on in order
(Radford et al. 2019, https://github.com/openai/gpt-2/blob/master/src/encoder.py).
"""

from __future__ import annotations


def _alphabet() -> dict[str, int]:
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }


BYTES = _alphabet()


def token_bytes(token: str) -> bytes:
    """The bytes of a token; one that is not in the alphabet, an added token, is its own text."""
    try:
        return bytes(BYTES[character] for character in token)
    except KeyError:
        return token.encode()
